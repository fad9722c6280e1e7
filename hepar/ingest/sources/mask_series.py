"""Series of DICOM images that are masks: their name is that of a structure, and their voxels have two values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pydicom

from hepar.ingest.parallel import parallel_map
from hepar.ingest.sources.dicom import Stack
from hepar.ingest.sources.dicom_scan import seconds_to_read
from hepar.ingest.sources.dicom_volume import DicomVolume
from hepar.ingest.sources.structure_names import meaning


@dataclass(frozen=True)
class MaskSeries:
    """A series that is a mask of a structure by its name and, if `is_read`, by its voxels; a store still has them."""

    structure: str
    stack: Stack
    is_read: bool


def find_mask_series(stacks: Iterable[Stack]) -> list[MaskSeries]:
    """The masks among stacks that keep the rules of headers. Only the voxels of those named as masks are read.

    One with more than two values, or that cannot be read, is an image, and reading that may refuse it.
    """
    named = [(structure, stack) for stack in stacks if not stack.fault and (structure := structure_of(stack))]
    with parallel_map(_is_mask, [stack.paths for _, stack in named], seconds_to_read) as results:
        found = [
            (MaskSeries(structure, stack, result is not None), result)
            for (structure, stack), result in zip(named, results, strict=True)
        ]
    return [series for series, result in found if result is None or result is True]


def structure_of(stack: Stack) -> str:
    """`liver` or `tumour` if the description or folder of a series is the name of a mask; empty for an image."""
    names = (str(stack.first.get("SeriesDescription") or ""), stack.first.path.parent.name)
    return next(filter(None, map(named_structure, names)), "")


def named_structure(name: str) -> str:
    """`liver` or `tumour` if a text is the name of its masks alone, empty otherwise."""
    return meaning([name.replace("-", " ")]).structure


def _is_mask(paths: tuple[Path, ...]) -> bool | None:
    """Whether files hold a mask; None if their pixels are elsewhere."""
    try:
        if not any("PixelData" in pydicom.dcmread(path, specific_tags=["PixelData"]) for path in paths):
            return None
        DicomVolume(paths, "resample", mask=True).read()
    except MemoryError:
        raise
    except Exception:  # reading the image says what is wrong
        return False
    return True
