"""The masked loss of the mixed-label pool. Class 0 is the whole liver L, class 1 the tumour T, nested in it.

Legend: b batch, r the two structures, d h w space. `y` targets in {0, 1}, `m` in 0..1 how far a voxel is known. Sums
run over the batch of all processes of a training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hepar.cases import LIVER, TUMOUR
from hepar.training.distributed import add_up

_SPACE_AND_BATCH = (0, 2, 3, 4)


@dataclass(frozen=True)
class LossParts:
    """The loss and what it is made of, each a scalar tensor; `total` is what is minimised."""

    total: Tensor
    bce: Tensor
    dice: Tensor
    nesting: Tensor


def masked_loss(
    logits_per_scale: Sequence[Tensor],
    y_brdhw: Tensor,
    m_brdhw: Tensor,
    nesting_weight: float,
    bce_weights: tuple[float, float],
) -> LossParts:
    """Cross entropy and Dice over what is known, at every scale, and the penalty on tumour outside the liver.

    `bce_weights` are the weights of liver and tumour in the cross entropy.

    Each of `logits_per_scale` is b r d h w on the targets' grid; scale s weighs 2**-s, normalised to 1. The nesting
    term reads the first.
    """
    weights = [0.5**scale for scale in range(len(logits_per_scale))]
    bce = torch.zeros((), device=y_brdhw.device)
    dice = torch.zeros((), device=y_brdhw.device)
    for weight, logits_brdhw in zip(weights, logits_per_scale, strict=True):
        logits_brdhw = logits_brdhw.float()
        bce = bce + weight / sum(weights) * masked_bce(logits_brdhw, y_brdhw, m_brdhw, bce_weights)
        dice = dice + weight / sum(weights) * masked_dice(logits_brdhw.sigmoid(), y_brdhw, m_brdhw)
    nesting = nesting_penalty(logits_per_scale[0].float().sigmoid())
    return LossParts(bce + dice + nesting_weight * nesting, bce, dice, nesting)


def masked_bce(logits_brdhw: Tensor, y_brdhw: Tensor, m_brdhw: Tensor, weights: Sequence[float]) -> Tensor:
    """Weighted sum over the structures of the mean cross entropy of known voxels; 0 for one of which none is known."""
    per_voxel = m_brdhw * F.binary_cross_entropy_with_logits(logits_brdhw, y_brdhw, reduction="none")
    sum_r, known_r = _sums(per_voxel, m_brdhw)
    mean_r = sum_r / known_r.clamp(min=1)
    return (mean_r * mean_r.new_tensor(weights)).sum()


def masked_dice(p_brdhw: Tensor, y_brdhw: Tensor, m_brdhw: Tensor, smoothing: float = 1.0) -> Tensor:
    """Sum of 1 - batch Dice over the structures that have a known voxel of their own in the batch; 0 without any."""
    my_brdhw = m_brdhw * y_brdhw
    overlap_r, predicted_r, wanted_r = _sums(p_brdhw * my_brdhw, m_brdhw * p_brdhw, my_brdhw)
    loss_r = 1 - (2 * overlap_r + smoothing) / (predicted_r + wanted_r + smoothing)
    return (loss_r * (wanted_r > 0)).sum()


def nesting_penalty(p_brdhw: Tensor) -> Tensor:
    """Mean over voxels of how far tumour is likelier than liver."""
    outside_bdhw = F.relu(p_brdhw[:, TUMOUR] - p_brdhw[:, LIVER])
    return _mean(outside_bdhw.sum(), outside_bdhw.new_tensor(outside_bdhw.numel()))


def consistency(p_brdhw: Tensor, taught_brdhw: Tensor, m_brdhw: Tensor) -> Tensor:
    """Mean squared difference to a teacher's probabilities, each voxel weighted by how far it is unknown; 0 if none is.

    After Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017.
    """
    unknown_brdhw = 1 - m_brdhw
    return _mean((unknown_brdhw * (p_brdhw - taught_brdhw) ** 2).sum(), unknown_brdhw.sum())


def _mean(total: Tensor, count: Tensor) -> Tensor:
    total, count = add_up(torch.stack([total, count])).unbind()
    return total / count.clamp(min=1)


def _sums(*per_voxel_brdhw: Tensor) -> tuple[Tensor, ...]:
    """Sums by structure over space and the batch, that of all processes."""
    return add_up(torch.stack([voxels.sum(dim=_SPACE_AND_BATCH) for voxels in per_voxel_brdhw])).unbind()
