"""Writes a partially labelled cohort of phantoms as NIfTI files with a table."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from hepar.cases import PHANTOM
from hepar.imaging.volumes import write_image
from hepar.phantoms.acquisition import CT_PHASES, MR_SEQUENCES
from hepar.phantoms.phantom import Phantom, make_phantom
from hepar.runtime.device import available_cores
from hepar.runtime.whole_files import write_text

TABLE = "cohort.csv"
MIN_CASES = 8
MIN_PARALLEL_CASES = 16
ORIENTATIONS = ("LPS", "RAS", "LAS", "RPI", "SLP")


@dataclass(frozen=True)
class CaseLabels:
    """The split of a case, and the label states of liver and tumour."""

    split: str
    liver: str
    tumour: str


_BOTH, _TUMOUR_ONLY, _LIVER_ONLY = ("manual", "manual"), ("unknown", "manual"), ("manual", "unknown")
_NONE, _HEALTHY = ("unknown", "unknown"), ("manual", "absent")
# of one modality, in turn, so that a larger cohort begins with the smaller one; each split has healthy patients, so
# that false lesions are learned from, count when weights and thresholds are chosen, and are scored
PARTIALLY_LABELLED = (
    CaseLabels("test", *_BOTH),
    CaseLabels("train", *_BOTH),
    CaseLabels("val", *_BOTH),
    CaseLabels("train", *_TUMOUR_ONLY),
    CaseLabels("train", *_HEALTHY),
    CaseLabels("test", *_HEALTHY),
    CaseLabels("train", *_LIVER_ONLY),
    CaseLabels("train", *_BOTH),
    CaseLabels("val", *_HEALTHY),
    CaseLabels("train", *_NONE),
    CaseLabels("train", *_BOTH),
    CaseLabels("train", *_TUMOUR_ONLY),
    CaseLabels("test", *_BOTH),
    CaseLabels("train", *_BOTH),
    CaseLabels("train", *_HEALTHY),
    CaseLabels("val", *_BOTH),
    CaseLabels("train", *_TUMOUR_ONLY),
    CaseLabels("train", *_BOTH),
    CaseLabels("train", *_BOTH),
    CaseLabels("test", *_BOTH),
    CaseLabels("train", *_TUMOUR_ONLY),
    CaseLabels("train", *_BOTH),
    CaseLabels("train", *_BOTH),
    CaseLabels("train", *_BOTH),
)
# to add to other training data
FULLY_LABELLED = (CaseLabels("train", *_BOTH),)


@dataclass(frozen=True)
class CohortDesign:
    """Labels by case of each modality, repeated in turn, and the modalities, also in turn."""

    pattern: tuple[CaseLabels, ...] = PARTIALLY_LABELLED
    modalities: tuple[str, ...] = ("CT", "MR")

    def revealed(self) -> CohortDesign:
        """The design of the same scans with every true mask; healthy patients stay known as such."""
        healthy = _HEALTHY[1]
        pattern = tuple(
            CaseLabels(labels.split, *(_HEALTHY if labels.tumour == healthy else _BOTH)) for labels in self.pattern
        )
        return replace(self, pattern=pattern)


def write_phantoms(
    out: Path,
    cases: int,
    seed: int,
    size_zyx: tuple[int, int, int] = (64, 96, 96),
    design: CohortDesign = CohortDesign(),
    hidden: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `out/cohort.csv` and the volumes of `cases` scans; returns the path of the table.

    Only masks in state manual are written. With `hidden` the true masks of all cases are also written there, as
    `<case>_liver.nii.gz` and `<case>_tumour.nii.gz`. `progress` is called with the cases done and the total. A larger
    cohort of the same seed begins with the same cases. Raises ValueError for fewer than 8 cases.
    """
    if cases < MIN_CASES:
        raise ValueError(f"a phantom cohort has {cases} cases but must have at least {MIN_CASES}")
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    write = partial(_write_case, out, seed=seed, size_zyx=size_zyx, design=design, hidden=hidden)
    with _parallel_map(cases) as run:
        for row in run(write, range(cases)):
            rows.append(row)
            if progress is not None:
                progress(len(rows), cases)
    table = out / TABLE
    lines = StringIO(newline="")
    writer = csv.DictWriter(lines, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(table, lines.getvalue())
    return table


@contextmanager
def _parallel_map(cases: int) -> Iterator[Callable[..., Iterable[dict[str, str]]]]:
    """A `map` over all cores, or a plain one if starting processes would take longer than the work."""
    if cases < MIN_PARALLEL_CASES or available_cores() == 1:
        yield map
        return
    with ProcessPoolExecutor(available_cores(), mp_context=get_context("spawn")) as executor:
        yield executor.map


def _write_case(
    out: Path,
    index: int,
    seed: int,
    size_zyx: tuple[int, int, int],
    design: CohortDesign,
    hidden: Path | None,
) -> dict[str, str]:
    """Write the volumes of a case; returns its row of the table."""
    rng = np.random.default_rng([seed, index])
    number, turn = divmod(index, len(design.modalities))
    modality = design.modalities[turn]
    labels = design.pattern[number % len(design.pattern)]
    sequence = _sequence(modality, number, seed)
    # the field of view of an abdomen, whatever the number of voxels
    height_mm, width_mm = rng.uniform(235, 275), rng.uniform(330, 365)
    spacing = (height_mm / size_zyx[0], width_mm / size_zyx[2], width_mm / size_zyx[2])
    healthy = labels.tumour == "absent"
    phantom = make_phantom(int(rng.integers(2**31)), modality, sequence, size_zyx, spacing, 0 if healthy else None)

    case_id = f"phantom-{modality.lower()}-{index:04d}"
    orientation = ORIENTATIONS[int(rng.integers(len(ORIENTATIONS)))]
    origin_mm = rng.uniform(-200, 200, 3)
    tilt_degrees = float(rng.uniform(-8, 8)) if rng.random() < 0.2 else 0.0
    image_zyx = phantom.image_zyx.astype(np.int16) if modality == "CT" else phantom.image_zyx
    masks = {"liver": (phantom.liver_zyx, labels.liver), "tumour": (phantom.tumour_zyx, labels.tumour)}

    def write(array_zyx: npt.NDArray[np.generic], path: Path) -> None:
        write_image(_to_volume(array_zyx, phantom, orientation, origin_mm, tilt_degrees), path)

    write(image_zyx, out / case_id / "image.nii.gz")
    files = {}
    for name, (mask_zyx, state) in masks.items():
        if state == "manual":
            files[name] = f"{case_id}/{name}.nii.gz"
            write(mask_zyx.astype(np.uint8), out / files[name])
        if hidden is not None:
            write(mask_zyx.astype(np.uint8), hidden / f"{case_id}_{name}.nii.gz")
    return {
        "case_id": case_id,
        "patient_id": f"phantom-{index:04d}",
        "modality": modality,
        "sequence": sequence,
        "image": f"{case_id}/image.nii.gz",
        "liver": files.get("liver", ""),
        "tumour": files.get("tumour", ""),
        "liver_state": labels.liver,
        "tumour_state": labels.tumour,
        "split": labels.split,
        "source": PHANTOM,
        "licence": "CC0-1.0",
        "spacing_known": "yes",
    }


def _sequence(modality: str, number: int, seed: int) -> str:
    """The phase or sequence of a case: all of a modality in random order, then all again in another order."""
    names = list(CT_PHASES if modality == "CT" else MR_SEQUENCES)
    turn, position = divmod(number, len(names))
    return names[int(np.random.default_rng([seed, turn, len(names)]).permutation(len(names))[position])]


def _to_volume(
    array_zyx: npt.NDArray[np.generic],
    phantom: Phantom,
    orientation: str,
    origin_mm: npt.NDArray[np.float64],
    tilt_degrees: float,
) -> sitk.Image:
    """An array as a volume stored in `orientation`, with the given origin and tilt about x."""
    image = sitk.GetImageFromArray(array_zyx)
    image.SetSpacing([float(s) for s in phantom.spacing_zyx_mm[::-1]])
    image.SetOrigin(origin_mm.tolist())
    cosine, sine = np.cos(np.deg2rad(tilt_degrees)), np.sin(np.deg2rad(tilt_degrees))
    image.SetDirection([1, 0, 0, 0, cosine, -sine, 0, sine, cosine])
    return sitk.DICOMOrient(image, orientation)
