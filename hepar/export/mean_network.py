"""The network of an exported model: probabilities of one window, the mean over the members of an ensemble."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hepar.inference.prediction import Model

EXAMPLE_SEED = 0


class MeanNetwork(nn.Module):
    """Maps a preprocessed window, float32 b1dhw, to the probabilities of whole liver and tumour, float32 brdhw."""

    def __init__(self, models: Sequence[Model]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(model.network for model in models)

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        members = [network(image_bcdhw).float().sigmoid() for network in self.networks]
        return members[0] if len(members) == 1 else torch.stack(members).mean(dim=0)


def example_window(models: Sequence[Model]) -> Tensor:
    """Noise of the size of a window, 1 1 d h w: exported models take one window at a time."""
    generator = torch.Generator().manual_seed(EXAMPLE_SEED)
    return torch.randn(1, 1, *models[0].spec.patch_zyx, generator=generator)
