"""MedFormer with the published softmax over three classes, converted to two nested structures."""

from __future__ import annotations

import torch
from torch import Tensor

from hepar.networks.medformer.network import MedFormer

SOFTMAX_CLASSES = 3  # background, liver, tumour


class SoftmaxMedFormer(MedFormer):
    """A MedFormer over background, liver and tumour that returns the logits of the whole liver and of the tumour.

    Their sigmoids are the softmax of liver plus tumour, and that of tumour.
    """

    def forward(self, image_bcdhw: Tensor) -> Tensor | list[Tensor]:
        output = super().forward(image_bcdhw)
        return [nested_logits(scale) for scale in output] if isinstance(output, list) else nested_logits(output)


def nested_logits(logits_bcdhw: Tensor) -> Tensor:
    """Convert softmax logits of background, liver and tumour to sigmoid logits brdhw of whole liver and tumour."""
    background, liver, tumour = logits_bcdhw.float().unbind(1)
    whole_liver = torch.logaddexp(liver, tumour) - background
    return torch.stack([whole_liver, tumour - torch.logaddexp(background, liver)], dim=1)
