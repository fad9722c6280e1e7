"""A cohort of phantoms whose labels do not agree, written as NIfTI with a table."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from hepar.phantoms.acquisition import CT_PHASES, MR_SEQUENCES
from hepar.phantoms.make import Phantom, make_phantom
from hepar.runtime.device import available_cores

MIN_CASES = 8
MIN_PARALLEL_CASES = 16
ORIENTATIONS = ("LPS", "RAS", "LAS", "RPI", "SLP")
COLUMNS = [
    "case_id",
    "patient_id",
    "modality",
    "sequence",
    "image",
    "liver",
    "tumour",
    "liver_state",
    "tumour_state",
    "split",
    "source",
    "licence",
    "spacing_known",
]


@dataclass(frozen=True)
class Labels:
    """Split and label states of a case."""

    split: str
    liver: str
    tumour: str


_BOTH, _TUMOUR_ONLY, _LIVER_ONLY = ("manual", "manual"), ("unknown", "manual"), ("manual", "unknown")
_NONE, _HEALTHY = ("unknown", "unknown"), ("manual", "absent")
# of one modality, in turn; so a larger cohort begins with the smaller one
PATTERN = (
    Labels("test", *_BOTH),
    Labels("train", *_BOTH),
    Labels("val", *_BOTH),
    Labels("train", *_TUMOUR_ONLY),
    Labels("train", *_LIVER_ONLY),
    Labels("train", *_BOTH),
    Labels("train", *_NONE),
    Labels("train", *_BOTH),
    Labels("test", *_BOTH),
    Labels("train", *_HEALTHY),
    Labels("train", *_TUMOUR_ONLY),
    Labels("train", *_BOTH),
    Labels("val", *_BOTH),
    Labels("train", *_BOTH),
    Labels("test", *_HEALTHY),
    Labels("train", *_BOTH),
    Labels("train", *_TUMOUR_ONLY),
    Labels("train", *_BOTH),
)
# to learn from beside other data: nothing is hidden, nothing held out
TEACHING = (Labels("train", *_BOTH),)


def write_phantoms(
    out: Path,
    cases: int,
    seed: int,
    size_zyx: tuple[int, int, int] = (64, 96, 96),
    progress: Callable[[int, int], None] | None = None,
    hidden: Path | None = None,
    pattern: Sequence[Labels] = PATTERN,
    modalities: Sequence[str] = ("CT", "MR"),
) -> Path:
    """Write `out/cohort.csv` and the volumes of `cases` scans, `modalities` in turn; gives the table's path.

    Splits and label states of each modality follow `pattern` in turn. A mask whose state is not manual is not
    written; with `hidden` every true mask goes there too, as
    `<case>_liver.nii.gz` and `<case>_tumour.nii.gz`. A cohort of the same seed with more cases begins with these.
    Raises ValueError for fewer than 8 cases.
    """
    if cases < MIN_CASES:
        raise ValueError(f"a phantom cohort has at least {MIN_CASES} cases, {cases} are too few")
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    write = partial(
        _write_case,
        out,
        seed=seed,
        size_zyx=size_zyx,
        hidden=hidden,
        pattern=tuple(pattern),
        modalities=tuple(modalities),
    )
    with _many(cases) as run:
        for row in run(write, range(cases)):
            rows.append(row)
            if progress is not None:
                progress(len(rows), cases)
    table = out / "cohort.csv"
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return table


@contextmanager
def _many(cases: int) -> Iterator[Callable[..., Iterable[dict[str, str]]]]:
    """A `map` over all cores, or a plain one where starting processes would take longer than the work."""
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
    hidden: Path | None,
    pattern: Sequence[Labels],
    modalities: Sequence[str],
) -> dict[str, str]:
    rng = np.random.default_rng([seed, index])
    number, turn = divmod(index, len(modalities))
    modality = modalities[turn]
    labels = pattern[number % len(pattern)]
    sequence = _sequence(modality, number, seed)
    # the field of view of an abdomen whatever the number of voxels
    height_mm, width_mm = rng.uniform(235, 275), rng.uniform(330, 365)
    spacing = (height_mm / size_zyx[0], width_mm / size_zyx[2], width_mm / size_zyx[2])
    healthy = labels.tumour == "absent"
    phantom = make_phantom(int(rng.integers(2**31)), modality, sequence, size_zyx, spacing, 0 if healthy else None)

    case_id = f"phantom-{modality.lower()}-{index:04d}"
    orientation = ORIENTATIONS[int(rng.integers(len(ORIENTATIONS)))]
    origin_mm = rng.uniform(-200, 200, 3)
    tilt_degrees = float(rng.uniform(-8, 8)) if rng.random() < 0.2 else 0.0
    image = phantom.image_zyx.astype(np.int16) if modality == "CT" else phantom.image_zyx
    masks = {"liver": (phantom.liver_zyx, labels.liver), "tumour": (phantom.tumour_zyx, labels.tumour)}

    def write(array: npt.NDArray[np.generic], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        volume = _place(array, phantom, orientation, origin_mm, tilt_degrees)
        sitk.WriteImage(volume, str(path), useCompression=True)

    write(image, out / case_id / "image.nii.gz")
    files = {}
    for name, (mask, state) in masks.items():
        if state == "manual":
            files[name] = f"{case_id}/{name}.nii.gz"
            write(mask.astype(np.uint8), out / files[name])
        if hidden is not None:
            write(mask.astype(np.uint8), hidden / f"{case_id}_{name}.nii.gz")
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
        "source": "phantom",
        "licence": "CC0-1.0",
        "spacing_known": "yes",
    }


def _sequence(modality: str, number: int, seed: int) -> str:
    """The phase or sequence of a modality's case: each once, in random order, before any comes again."""
    names = list(CT_PHASES if modality == "CT" else MR_SEQUENCES)
    turn, position = divmod(number, len(names))
    return names[int(np.random.default_rng([seed, turn, len(names)]).permutation(len(names))[position])]


def _place(
    array_zyx: npt.NDArray[np.generic],
    phantom: Phantom,
    orientation: str,
    origin_mm: npt.NDArray[np.float64],
    tilt_degrees: float,
) -> sitk.Image:
    """The array as a volume stored in some orientation, shifted and perhaps tilted about x."""
    image = sitk.GetImageFromArray(array_zyx)
    image.SetSpacing([float(s) for s in phantom.spacing_zyx_mm[::-1]])
    image.SetOrigin(origin_mm.tolist())
    cosine, sine = np.cos(np.deg2rad(tilt_degrees)), np.sin(np.deg2rad(tilt_degrees))
    image.SetDirection([1, 0, 0, 0, cosine, -sine, 0, sine, cosine])
    return sitk.DICOMOrient(image, orientation)
