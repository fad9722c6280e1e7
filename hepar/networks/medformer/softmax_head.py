"""MedFormers of three exclusive classes, as published ones are, read as two nested structures."""

from __future__ import annotations

import torch
from torch import Tensor

from hepar.networks.medformer.network import MedFormer

CLASSES = 3  # background, liver, tumour


class ExclusiveMedFormer(MedFormer):
    """A MedFormer with a softmax over background, liver and tumour that gives the logits of whole liver and tumour.

    Their sigmoids are what the softmax gives to liver and tumour together, and to tumour.
    """

    def forward(self, image_bcdhw: Tensor) -> Tensor | list[Tensor]:
        output = super().forward(image_bcdhw)
        return [nested(scale) for scale in output] if isinstance(output, list) else nested(output)


def nested(logits_bcdhw: Tensor) -> Tensor:
    """Logits of three exclusive classes to logits b r d h w of two nested structures."""
    background, liver, tumour = logits_bcdhw.float().unbind(1)
    inside = torch.logaddexp(liver, tumour) - background
    return torch.stack([inside, tumour - torch.logaddexp(background, liver)], dim=1)
