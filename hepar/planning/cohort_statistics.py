"""Statistics of a cohort on which proposals are based; nnU-Net calls them the fingerprint of a data set.

Only training and validation patients are read. Legend: n scans, livers or voxels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hepar.cases import Case, Cohort, LabelState, Modality, Split
from hepar.imaging.grid_rules import size_text
from hepar.imaging.masks import body_mask, bounding_box, lesion_diameters_mm
from hepar.imaging.volumes import Geometry, read_image, read_mask, to_array
from hepar.runtime.progress import Stage, current_stage

VOXELS_PER_CASE = 4096  # intensities kept of a liver, evenly spaced in scan order
UNNAMED = "unnamed"  # stands for an empty sequence
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ModalityStatistics:
    """Statistics of the scans of one modality. An array of nothing has n = 0."""

    scans: int
    sequences: Mapping[str, int]  # scans of each
    spacing_n3_mm: Floats  # z, y, x of scans with a known spacing
    size_n3: npt.NDArray[np.int64]  # voxels along z, y, x of all scans
    liver_box_n3_mm: Floats  # sides z, y, x of the bounding box of each manual liver
    intensity_n_of: Mapping[str, Floats]  # inside manual livers, by sequence
    liver_percentile_n2: Floats  # of the body's intensities, between which 99% of each manual MR liver lie
    lesion_diameters_mm: tuple[float, ...]  # ascending

    @property
    def intensity_n(self) -> Floats:
        """Intensities inside manual livers of all sequences."""
        return np.concatenate([np.empty(0), *self.intensity_n_of.values()])


CohortStatistics = Mapping[Modality, ModalityStatistics]  # without modalities that have no scan


def compute_statistics(cohort: Cohort) -> CohortStatistics:
    """Read the headers of all training and validation scans, and the voxels of those with a manual mask."""
    cases = cohort.select(None, (Split.TRAIN, Split.VAL))
    by_modality = {modality: [case for case in cases if case.modality == modality] for modality in Modality}
    with current_stage().counting(len(cases), "scans") as count:
        return {
            modality: _modality_statistics(cohort, members, count)
            for modality, members in by_modality.items()
            if members
        }


def summarise_statistics(statistics: CohortStatistics) -> list[str]:
    """The statistics as sentences."""
    return [sentence for modality, found in statistics.items() for sentence in _summarise(modality, found)]


@dataclass(frozen=True)
class _LiverStatistics:
    """One manual liver; `percentiles` is empty in CT."""

    box_mm: list[float]
    intensity_n: Floats
    percentiles: list[float]


def _modality_statistics(cohort: Cohort, cases: Sequence[Case], count: Stage) -> ModalityStatistics:
    livers: list[_LiverStatistics] = []
    intensities: dict[str, list[Floats]] = {}
    diameters_mm: list[float] = []
    for case in cases:
        if case.liver_state == LabelState.MANUAL:
            livers.append(_liver_statistics(cohort, case))
            intensities.setdefault(case.sequence or UNNAMED, []).append(livers[-1].intensity_n)
        if case.tumour_state == LabelState.MANUAL:
            tumour = read_image(cohort.file(case.tumour))
            diameters_mm += lesion_diameters_mm(to_array(tumour) > 0, Geometry.of(tumour).voxel_ml)
        count.advance()
    return ModalityStatistics(
        scans=len(cases),
        sequences=Counter(case.sequence or UNNAMED for case in cases),
        spacing_n3_mm=np.array([case.spacing_mm for case in cases if case.distances_known]).reshape(-1, 3),
        size_n3=np.array([case.size for case in cases]).reshape(-1, 3),
        liver_box_n3_mm=np.array([liver.box_mm for liver in livers]).reshape(-1, 3),
        intensity_n_of={sequence: np.concatenate(values) for sequence, values in sorted(intensities.items())},
        liver_percentile_n2=np.array([liver.percentiles for liver in livers if liver.percentiles]).reshape(-1, 2),
        lesion_diameters_mm=tuple(sorted(diameters_mm)),
    )


def _liver_statistics(cohort: Cohort, case: Case) -> _LiverStatistics:
    liver_zyx = read_mask(cohort.file(case.liver))
    image_zyx = to_array(read_image(cohort.file(case.image)))
    box = bounding_box(liver_zyx)
    assert box is not None, "ingest refuses an empty manual mask"
    box_mm = [(side.stop - side.start) * mm for side, mm in zip(box, case.spacing_mm, strict=True)]
    liver_n = image_zyx[liver_zyx]
    percentiles: list[float] = []
    if case.modality == Modality.MR:
        body_n = image_zyx[body_mask(image_zyx, case.modality)]
        percentiles = [
            100 * np.count_nonzero(body_n < end) / max(body_n.size, 1) for end in np.percentile(liver_n, (0.5, 99.5))
        ]
    sampled_n = liver_n[:: max(1, liver_n.size // VOXELS_PER_CASE)].astype(np.float64)
    return _LiverStatistics(box_mm, sampled_n, percentiles)


def _summarise(modality: Modality, found: ModalityStatistics) -> list[str]:
    sequences = ", ".join(f"{count} {name}" for name, count in sorted(found.sequences.items()))
    sentences = [f"{modality}: {found.scans} training and validation scans ({sequences})."]
    if len(found.spacing_n3_mm):
        low, median, high = np.percentile(found.spacing_n3_mm, (0, 50, 100), axis=0)
        axes = (
            f"{axis} {a:.2g} to {c:.2g} (median {b:.2g})"
            for axis, a, b, c in zip("zyx", low, median, high, strict=True)
        )
        sentences.append(f"{modality}: spacing in mm: {', '.join(axes)}.")
    smallest, median_size, largest = (
        size_text([round(n) for n in np.percentile(found.size_n3, share, axis=0)]) for share in (0, 50, 100)
    )
    sentences.append(f"{modality}: size in voxels x×y×z: {smallest} to {largest}, median {median_size}.")
    for sequence, value_n in found.intensity_n_of.items():
        low, median, high = np.percentile(value_n, (0.5, 50, 99.5))
        sentences.append(
            f"{modality} {sequence}: intensity in manual livers {low:.4g} to {high:.4g} (0.5th and 99.5th percentile),"
            f" median {median:.4g}, mean {value_n.mean():.4g}, SD {value_n.std():.4g}."
        )
    if diameters_mm := found.lesion_diameters_mm:
        low, median, high = np.percentile(diameters_mm, (10, 50, 90))
        sentences.append(
            f"{modality}: {len(diameters_mm)} lesions, diameter {median:.0f} mm (median), {low:.0f} to {high:.0f} mm"
            " (10th and 90th percentile)."
        )
    return sentences
