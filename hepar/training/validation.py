"""Validation of a network during its training: which cases, their overlaps, and the score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hepar.cases import LIVER, TUMOUR, LabelState, Modality, Split
from hepar.evaluation.overlap import OverlapCounts, count_overlap, global_dice
from hepar.imaging.masks import voxel_mm3
from hepar.inference.liver_region import LIVER_THRESHOLD
from hepar.inference.prediction import postprocess
from hepar.inference.settings import OperatingPoint
from hepar.inference.sliding_window import sliding_window
from hepar.params import TrainingParams
from hepar.pool.table import Pool, PoolEntry
from hepar.runtime.device import autocast
from hepar.training import distributed

WINDOW_OVERLAP = 0.25  # of sliding windows, relative to their side
TUMOUR_FREE_EVERY = 3  # of the validation cases of a modality one in three is free of tumour, where there are such
HALF_SCORE_ML = 5.0  # false tumour in a tumour-free case that halves its score


@dataclass(frozen=True)
class Overlaps:
    """Voxel counts by case: of manual livers, and of tumours that are manual or confirmed absent."""

    livers: Sequence[OverlapCounts]
    tumours: Sequence[OverlapCounts]
    voxel_ml: float

    def metrics(self) -> dict[str, float]:
        """`liver_dice`, the mean over cases; `tumour_dice`, the global Dice; `tumour_free`, the `tumour_free_score` of
        the cases without a tumour.

        A metric is left out if it is undefined: no case has a liver, a tumour, or is free of tumour.
        """
        liver_dice = [counts.dice for counts in self.livers if counts.dice is not None]
        tumour_dice = global_dice(self.tumours) if any(counts.reference_voxels for counts in self.tumours) else None
        false_ml = [c.prediction_voxels * self.voxel_ml for c in self.tumours if not c.reference_voxels]
        metrics = {"liver_dice": float(np.mean(liver_dice))} if liver_dice else {}
        if tumour_dice is not None:
            metrics["tumour_dice"] = tumour_dice
        if false_ml:
            metrics["tumour_free"] = tumour_free_score(false_ml)
        return metrics


def tumour_free_score(false_ml: Sequence[float]) -> float:
    """The mean over one or more tumour-free cases of a score of their false tumour in ml.

    The score is 1 without false tumour and a half at `HALF_SCORE_ML`.
    """
    return float(np.mean([HALF_SCORE_ML / (HALF_SCORE_ML + ml) for ml in false_ml]))


def validation_cases(pool: Pool, max_cases: int) -> dict[Modality, list[PoolEntry]]:
    """Validation cases of each modality with a manual liver or tumour, at most `max_cases`, in the order of the pool.

    One in `TUMOUR_FREE_EVERY` is known to be free of tumour, where there are such, because only they show what a model
    does with a healthy liver; more if there are too few others. Modalities without a case are left out.
    """
    chosen = {}
    for modality in sorted({entry.modality for entry in pool.entries}):
        entries = [
            entry
            for entry in pool.select(Split.VAL)
            if entry.modality == modality and LabelState.MANUAL in (entry.liver.state, entry.tumour.state)
        ]
        tumour_free = [entry for entry in entries if entry.tumour.state == LabelState.ABSENT]
        others = [entry for entry in entries if entry.tumour.state != LabelState.ABSENT]
        wanted = min(len(tumour_free), max(math.ceil(max_cases / TUMOUR_FREE_EVERY), max_cases - len(others)))
        taken = {entry.case_id for entry in [*tumour_free[:wanted], *others[: max_cases - wanted]]}
        if taken:
            chosen[modality] = [entry for entry in entries if entry.case_id in taken]
    return chosen


def count_overlaps(
    network: nn.Module,
    pool: Pool,
    entries: Sequence[PoolEntry],
    params: TrainingParams,
    device: torch.device,
    taught: Sequence[str],
    should_stop: Callable[[], bool],
) -> Overlaps:
    """Segment some cases, shared by all processes, and count voxels; returns early if `should_stop`.

    Masks are postprocessed as those of a prediction are, since what stands apart from the liver does not reach a user;
    but the liver is the largest component, whatever its brightness.
    """
    livers, tumours, voxel_ml, point = [], [], voxel_mm3(pool.plan.spacing_zyx_mm) / 1000, OperatingPoint()
    for entry in entries[distributed.rank() :: distributed.world_size()]:
        if should_stop():
            break
        arrays = pool.arrays(entry).loaded()
        image_zyx = np.asarray(arrays.image_zyx, np.float32)
        with autocast(device, params.precision):
            probability_rzyx = sliding_window(network, image_zyx, params.patch_zyx, WINDOW_OVERLAP, device)
        liver_zyx, tumour_zyx = postprocess(
            probability_rzyx[LIVER] > LIVER_THRESHOLD,
            probability_rzyx[TUMOUR] > point.tumour_threshold,
            taught,
            voxel_ml,
            min_lesion_ml=0,
            outline_zyx=probability_rzyx[TUMOUR] > point.outline_threshold,
        )
        if entry.liver.state == LabelState.MANUAL:
            livers.append(count_overlap(arrays.liver_zyx > 0, liver_zyx))
        if entry.tumour.state in (LabelState.MANUAL, LabelState.ABSENT):
            tumours.append(count_overlap(arrays.tumour_zyx > 0, tumour_zyx))
    by_rank = distributed.all_gather((livers, tumours))
    all_livers = [counts for livers, _ in by_rank for counts in livers]
    all_tumours = [counts for _, tumours in by_rank for counts in tumours]
    return Overlaps(all_livers, all_tumours, voxel_ml)


def validation_score(by_modality: Iterable[Overlaps]) -> float | None:
    """Mean of the liver Dice and the score of tumour-free cases of each modality, and one global tumour Dice over all.

    None if all are undefined. False positives lower the tumour Dice too, also in a modality without tumours.
    """
    scores: list[float] = []
    tumours: list[OverlapCounts] = []
    for overlaps in by_modality:
        metrics = overlaps.metrics()
        scores += [metrics[name] for name in ("liver_dice", "tumour_free") if name in metrics]
        tumours += overlaps.tumours
    if any(counts.reference_voxels for counts in tumours) and (dice := global_dice(tumours)) is not None:
        scores.append(dice)
    return float(np.mean(scores)) if scores else None
