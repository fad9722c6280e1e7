"""The operating point of a model: tumour threshold and smallest lesion, chosen on the pool's validation patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hepar.cases import LIVER, STRUCTURES, TUMOUR, LabelState
from hepar.evaluation.lesions import LesionCounts, detect_lesions, match_lesions
from hepar.evaluation.overlap import OverlapCounts, count_overlap
from hepar.imaging.masks import Mask, bounding_box, voxel_mm3
from hepar.inference.liver_choice import choose_liver
from hepar.inference.liver_region import LIVER_THRESHOLD
from hepar.inference.model_folder import ModelSpec
from hepar.inference.prediction import grown_lesions, postprocess
from hepar.inference.settings import OperatingPoint
from hepar.inference.sliding_window import Probabilities, sliding_window
from hepar.params import SizeZYX
from hepar.pool.table import Pool, PoolEntry
from hepar.runtime.device import autocast
from hepar.training.validation import WINDOW_OVERLAP, tumour_free_score

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
VOLUMES_ML = (0.0, 0.1, 0.2, 0.5, 1.0)
MIN_GAIN = 0.01  # less is chance on a handful of validation patients
ANY_OVERLAP = 0.0  # the intersection over union that a detected lesion exceeds


@dataclass(frozen=True)
class Outcome:
    """One case at one operating point: voxels of the tumour, detected lesions, and the predicted tumour in ml."""

    voxels: OverlapCounts
    lesions: LesionCounts
    predicted_ml: float


def choose_operating_point(
    networks: Sequence[nn.Module],
    pool: Pool,
    entries: Sequence[PoolEntry],
    spec: ModelSpec,
    device: torch.device,
    precision: str,
) -> OperatingPoint:
    """The operating point with the highest `score` over the cases whose tumour is manual or absent.

    The networks, in evaluation mode and on the device, predict each case on the pool's grid, and their mean is
    postprocessed as a prediction is. Of points with equal scores the nearest to the default is taken, first by its
    threshold, then by its volume. It is the default without such a case, or if no point is better by `MIN_GAIN`.
    """
    assert not any(network.training for network in networks), "networks must be in evaluation mode"
    outcomes: dict[OperatingPoint, list[Outcome]] = {}
    voxel_ml = voxel_mm3(pool.plan.spacing_zyx_mm) / 1000
    for entry in entries:
        if entry.tumour.state not in (LabelState.MANUAL, LabelState.ABSENT):
            continue
        arrays = pool.arrays(entry).loaded()
        reference_zyx = arrays.tumour_zyx > 0
        if reference_zyx.any() != (entry.tumour.state == LabelState.MANUAL):
            continue  # its tumours are too small for the pool's grid: neither found nor absent there
        image_zyx = np.asarray(arrays.image_zyx, np.float32)
        with autocast(device, precision):
            probability_rzyx = _mean_probability(networks, image_zyx, spec.patch_zyx, device)
        expected = spec.liver_intensity.get(entry.modality)
        found = _outcomes(probability_rzyx, image_zyx, reference_zyx, spec.taught, voxel_ml, expected)
        for point, outcome in found.items():
            outcomes.setdefault(point, []).append(outcome)
    default = OperatingPoint()

    def rank(point: OperatingPoint) -> tuple[float, float, float]:
        """Highest score first; rounded, so that the order of a sum does not break a tie."""
        off_threshold = abs(point.tumour_threshold - default.tumour_threshold)
        off_volume_ml = abs(point.min_lesion_ml - default.min_lesion_ml)
        return -round(score(outcomes[point]), 9), round(off_threshold, 9), round(off_volume_ml, 9)

    best = min(outcomes, key=rank, default=default)
    if not outcomes or score(outcomes[best]) < score(outcomes[default]) + MIN_GAIN:
        return default
    return best


def score(outcomes: Sequence[Outcome]) -> float:
    """The mean of up to three terms, 0 to 1, higher is better; 0 without a case.

    The mean tumour Dice of the cases with a tumour; the F1 of lesions with any overlap, pooled over all cases; and the
    `tumour_free_score`. Without a tumour the first two are left out, without a tumour-free case the third.
    """
    dice = [outcome.voxels.dice or 0.0 for outcome in outcomes if outcome.voxels.reference_voxels]
    false_ml = [outcome.predicted_ml for outcome in outcomes if not outcome.voxels.reference_voxels]
    terms = []
    if dice:
        numerators, denominators = zip(*(outcome.lesions.f1_terms for outcome in outcomes), strict=True)
        terms += [np.mean(dice), sum(numerators) / sum(denominators)]
    if false_ml:
        terms.append(tumour_free_score(false_ml))
    return float(np.mean(terms)) if terms else 0.0


def _mean_probability(
    networks: Sequence[nn.Module], image_zyx: npt.NDArray[np.float32], patch_zyx: SizeZYX, device: torch.device
) -> Probabilities:
    """The mean prediction of the networks, float32 rzyx."""
    total_rzyx = np.zeros((len(STRUCTURES), *image_zyx.shape), np.float32)
    for network in networks:
        total_rzyx += sliding_window(network, image_zyx, patch_zyx, WINDOW_OVERLAP, device)
    return np.asarray(total_rzyx / len(networks), np.float32)


def _outcomes(
    probability_rzyx: Probabilities,
    image_zyx: npt.NDArray[np.float32],
    reference_zyx: Mask,
    taught: Sequence[str],
    voxel_ml: float,
    expected: tuple[float, float] | None,
) -> dict[OperatingPoint, Outcome]:
    """The outcome of one case at every operating point of the grid; `expected` as in `choose_liver`."""

    def choose(found_zyx: Mask) -> Mask:
        return choose_liver(found_zyx, expected, lambda: image_zyx[box])

    relevant_zyx = reference_zyx | (probability_rzyx[TUMOUR] > OperatingPoint(min(THRESHOLDS)).outline_threshold)
    relevant_zyx |= probability_rzyx[LIVER] > LIVER_THRESHOLD
    box = bounding_box(relevant_zyx) or (slice(0, 1),) * relevant_zyx.ndim  # all masks lie in it, so nothing is cut off
    liver_zyx, probability_zyx = probability_rzyx[LIVER][box] > LIVER_THRESHOLD, probability_rzyx[TUMOUR][box]
    inside_zyx, found = reference_zyx[box], {}
    for threshold in THRESHOLDS:
        whole_zyx, all_zyx = postprocess(liver_zyx, probability_zyx > threshold, taught, voxel_ml, 0.0, choose)
        outline_zyx = probability_zyx > OperatingPoint(threshold).outline_threshold
        for min_lesion_ml in VOLUMES_ML:  # the last step of postprocessing
            tumour_zyx = grown_lesions(all_zyx, outline_zyx, whole_zyx, taught, min_lesion_ml / voxel_ml)
            voxels = count_overlap(inside_zyx, tumour_zyx)
            lesions = detect_lesions(match_lesions(inside_zyx, tumour_zyx), ANY_OVERLAP, voxel_mm3=None).counts
            outcome = Outcome(voxels, lesions, voxels.prediction_voxels * voxel_ml)
            found[OperatingPoint(threshold, min_lesion_ml)] = outcome
    return found
