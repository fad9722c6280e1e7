"""The loss of partially labelled batches: each voxel counts for a structure as far as its label is known.

The structures are nested: the whole liver, tumours included, and the tumours. Sums run over the batch of all processes.

Legend: b batch, r structure (`LIVER`, `TUMOUR`), d h w space; all tensors are float32.
- `logits_brdhw`, `probability_brdhw`: output of the network, and its sigmoid
- `target_brdhw`: 0 or 1
- `weight_brdhw`: 0 (unknown) to 1 (known)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hepar.cases import LIVER, TUMOUR
from hepar.params import TrainingParams
from hepar.training.distributed import all_reduce_sum

FALSE_POSITIVE_VOXELS = 100.0  # of probability 1, at which the loss of an absent structure is one half
SMOOTHING = 1.0  # of the Dice: voxels added above and below
INSIDE_VOXELS = 20.0  # of a structure in a batch, below which its own cross entropy fades
_BATCH_AND_SPACE = (0, 2, 3, 4)


@dataclass(frozen=True)
class LossWeights:
    """What the terms of the loss weigh against Dice; of liver and tumour where there are two numbers.

    `bce` is of the cross entropy over all known voxels, `inside` of that over the voxels of a structure alone.
    """

    bce: tuple[float, float] = (1.0, 1.0)
    inside: tuple[float, float] = (0.0, 0.0)
    nesting: float = 0.0

    @classmethod
    def of(cls, params: TrainingParams, step: int) -> LossWeights:
        """Those of a training at a step, counted from 0."""
        left = 1 - step / params.steps
        liver, tumour = params.inside_weights
        return cls(params.bce_weights, (left * liver, left * tumour), params.nesting_weight)


@dataclass(frozen=True)
class LossParts:
    """The loss and its terms, each a scalar tensor; `total` is minimised."""

    total: Tensor
    bce: Tensor
    dice: Tensor
    nesting: Tensor


def masked_loss(
    logits_per_scale: Sequence[Tensor],
    target_brdhw: Tensor,
    weight_brdhw: Tensor,
    weights: LossWeights,
) -> LossParts:
    """Cross entropy and Dice over known voxels at every scale, and the nesting penalty at the first.

    Each item of `logits_per_scale` is brdhw on the grid of the targets; scale s weighs 2**-s, normalised to a sum of 1.
    """
    scale_weights = [0.5**scale for scale in range(len(logits_per_scale))]
    bce = torch.zeros((), device=target_brdhw.device)
    dice = torch.zeros((), device=target_brdhw.device)
    for scale_weight, logits_brdhw in zip(scale_weights, logits_per_scale, strict=True):
        logits_brdhw = logits_brdhw.float()
        share = scale_weight / sum(scale_weights)
        bce = bce + share * masked_bce(logits_brdhw, target_brdhw, weight_brdhw, weights)
        dice = dice + share * masked_dice(logits_brdhw.sigmoid(), target_brdhw, weight_brdhw)
    nesting = nesting_penalty(logits_per_scale[0].float().sigmoid())
    return LossParts(bce + dice + weights.nesting * nesting, bce, dice, nesting)


def masked_bce(logits_brdhw: Tensor, target_brdhw: Tensor, weight_brdhw: Tensor, weights: LossWeights) -> Tensor:
    """Binary cross entropy: its means over the known voxels, and over those of them inside a structure, weighted.

    In the first a lesion vanishes among the voxels around it, and the Dice of one with a probability near 0 has next to
    no gradient, so without the second a network takes long to find a first lesion. It makes lesions likely, so it fades
    until the end of a training. Of fewer than `INSIDE_VOXELS` voxels
    the second is the sum divided by that. A structure without a known voxel contributes 0.
    """
    bce_brdhw = weight_brdhw * F.binary_cross_entropy_with_logits(logits_brdhw, target_brdhw, reduction="none")
    sum_r, known_r, inside_sum_r, inside_r = _sums_per_structure(
        bce_brdhw, weight_brdhw, bce_brdhw * target_brdhw, weight_brdhw * target_brdhw
    )
    mean_r, inside_mean_r = sum_r / known_r.clamp(min=1), inside_sum_r / inside_r.clamp(min=INSIDE_VOXELS)
    return (mean_r * mean_r.new_tensor(weights.bce) + inside_mean_r * mean_r.new_tensor(weights.inside)).sum()


def masked_dice(probability_brdhw: Tensor, target_brdhw: Tensor, weight_brdhw: Tensor) -> Tensor:
    """Soft Dice loss of the whole batch over known voxels, summed over structures.

    A structure that is known but absent in the whole batch contributes n / (n + `FALSE_POSITIVE_VOXELS`), where n is
    the sum of its squared probabilities over known voxels: the loss of a false lesion depends on its own size, not on
    the number of voxels around it. Squares, because many voxels of a hundredth would saturate the sum. A structure
    without a known voxel contributes 0.
    """
    known_brdhw = weight_brdhw * probability_brdhw  # of the products, only this one is kept for the backward pass
    overlap_r, predicted_r, target_r, squares_r = _sums_per_structure(
        known_brdhw * target_brdhw, known_brdhw, weight_brdhw * target_brdhw, known_brdhw * probability_brdhw
    )
    dice_loss_r = 1 - (2 * overlap_r + SMOOTHING) / (predicted_r + target_r + SMOOTHING)
    return torch.where(target_r > 0, dice_loss_r, squares_r / (squares_r + FALSE_POSITIVE_VOXELS)).sum()


def nesting_penalty(probability_brdhw: Tensor) -> Tensor:
    """Mean over voxels of the tumour probability in excess of the liver probability."""
    excess_bdhw = F.relu(probability_brdhw[:, TUMOUR] - probability_brdhw[:, LIVER])
    return _mean(excess_bdhw.sum(), excess_bdhw.new_tensor(excess_bdhw.numel()))


def consistency(probability_brdhw: Tensor, teacher_brdhw: Tensor, weight_brdhw: Tensor) -> Tensor:
    """Mean squared difference to the teacher's probabilities, weighted by 1 - weight; 0 if every voxel is known.

    After Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017.
    """
    unknown_brdhw = 1 - weight_brdhw
    return _mean((unknown_brdhw * (probability_brdhw - teacher_brdhw) ** 2).sum(), unknown_brdhw.sum())


def _mean(total: Tensor, count: Tensor) -> Tensor:
    total, count = all_reduce_sum(torch.stack([total, count])).unbind()
    return total / count.clamp(min=1)


def _sums_per_structure(*voxels_brdhw: Tensor) -> tuple[Tensor, ...]:
    """Sums over space and the batch of all processes, each of shape r."""
    return all_reduce_sum(torch.stack([voxels.sum(dim=_BATCH_AND_SPACE) for voxels in voxels_brdhw])).unbind()
