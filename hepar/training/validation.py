"""Validation of a network during its training: which cases, their overlaps, and the score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hepar.cases import LIVER, TUMOUR, LabelState, Modality, Split
from hepar.evaluation.overlap import OverlapCounts, count_overlap, global_dice
from hepar.inference.sliding_window import sliding_window
from hepar.params import TrainingParams
from hepar.pool.table import Pool, PoolEntry
from hepar.runtime.device import autocast
from hepar.training import distributed

WINDOW_OVERLAP = 0.25  # of sliding windows, relative to their side


@dataclass(frozen=True)
class Overlaps:
    """Voxel counts by case: of manual livers, and of tumours that are manual or confirmed absent."""

    livers: Sequence[OverlapCounts]
    tumours: Sequence[OverlapCounts]

    def metrics(self) -> dict[str, float]:
        """`liver_dice`, the mean over cases, and `tumour_dice`, the global Dice.

        A metric is left out if it is undefined: no case has a liver, or no case has a tumour.
        """
        liver_dice = [counts.dice for counts in self.livers if counts.dice is not None]
        tumour_dice = global_dice(self.tumours) if any(counts.reference_voxels for counts in self.tumours) else None
        metrics = {"liver_dice": float(np.mean(liver_dice))} if liver_dice else {}
        return metrics if tumour_dice is None else metrics | {"tumour_dice": tumour_dice}


def validation_cases(pool: Pool, max_cases: int) -> dict[Modality, list[PoolEntry]]:
    """The first `max_cases` validation cases of each modality with a manual liver or tumour.

    Modalities without such a case are left out.
    """
    chosen = {}
    for modality in sorted({entry.modality for entry in pool.entries}):
        entries = [
            entry
            for entry in pool.select(Split.VAL)
            if entry.modality == modality and LabelState.MANUAL in (entry.liver.state, entry.tumour.state)
        ]
        if entries[:max_cases]:
            chosen[modality] = entries[:max_cases]
    return chosen


def count_overlaps(
    network: nn.Module,
    pool: Pool,
    entries: Sequence[PoolEntry],
    params: TrainingParams,
    device: torch.device,
    should_stop: Callable[[], bool],
) -> Overlaps:
    """Segment some cases, shared by all processes, and count voxels; returns early if `should_stop`."""
    livers, tumours = [], []
    for entry in entries[distributed.rank() :: distributed.world_size()]:
        if should_stop():
            break
        arrays = pool.arrays(entry).loaded()
        image_zyx = np.asarray(arrays.image_zyx, np.float32)
        with autocast(device, params.precision):
            probability_rzyx = sliding_window(network, image_zyx, params.patch_zyx, WINDOW_OVERLAP, device)
        if entry.liver.state == LabelState.MANUAL:
            livers.append(count_overlap(arrays.liver_zyx > 0, probability_rzyx[LIVER] > 0.5))
        if entry.tumour.state in (LabelState.MANUAL, LabelState.ABSENT):
            tumours.append(count_overlap(arrays.tumour_zyx > 0, probability_rzyx[TUMOUR] > 0.5))
    by_rank = distributed.all_gather((livers, tumours))
    return Overlaps([c for livers, _ in by_rank for c in livers], [c for _, tumours in by_rank for c in tumours])


def validation_score(by_modality: Iterable[Overlaps]) -> float | None:
    """Mean of the liver Dice of each modality and one global tumour Dice over all; None if all are undefined.

    False positives lower the tumour Dice, also in a modality without tumours.
    """
    overlaps = list(by_modality)
    liver_dice = [metrics["liver_dice"] for each in overlaps if "liver_dice" in (metrics := each.metrics())]
    tumours = [counts for each in overlaps for counts in each.tumours]
    scores = [*liver_dice, *Overlaps((), tumours).metrics().values()]
    return float(np.mean(scores)) if scores else None
