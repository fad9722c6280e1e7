"""The header of one DICOM file, checked tag by tag: what later code reads of it has the right type and count.

A tag that breaks a rule is taken out, and the header says which rule it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pydicom
from pydicom.multival import MultiValue

from hepar.errors import Refusal
from hepar.imaging.grid_rules import check_axes, check_spacing

RULE = "every DICOM header is valid"
MAGIC, MAGIC_AT = b"DICM", 128
VECTORS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
SINGLE = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
SEVERAL = (MultiValue, list, tuple)
WHOLE = ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames")


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do. Raises OSError if it cannot be opened."""
    with path.open("rb") as file:
        file.seek(MAGIC_AT)
        return file.read(len(MAGIC)) == MAGIC


def check_tags(tags: pydicom.Dataset, names: Iterable[str]) -> Refusal | None:
    """The first rule that a header breaks, None if it keeps them all; removes or mends the tags that break one."""
    fault: Refusal | None = None
    for name in dict.fromkeys(names):
        try:
            _check_tag(tags, name)
        except Refusal as found:
            fault = fault or found
        except Exception as error:  # whatever the text of a tag does to its conversion
            fault = fault or Refusal(RULE, f"{name} raises {type(error).__name__}")
            _drop(tags, name)
    return fault


def _check_tag(tags: pydicom.Dataset, name: str) -> None:
    """Raise Refusal if a tag has the wrong values; missing tags have none."""
    value = tags.get(name)
    if value is None or value == "":
        return
    if name in SINGLE and isinstance(value, SEVERAL):
        setattr(tags, name, str(value[0]) if value else "")
        raise Refusal(RULE, f"{name} has {len(value)} values but must have one")
    if name in WHOLE and (isinstance(value, SEVERAL) or not 0 < int(value) < 2**31):
        _drop(tags, name)
        raise Refusal(RULE, f"{name} is not one whole number above 0")
    if name in VECTORS:
        _check_vector(tags, name, value)


def _check_vector(tags: pydicom.Dataset, name: str, value: Any) -> None:
    count = len(value) if isinstance(value, SEVERAL) else 1
    try:
        if count != VECTORS[name]:
            raise Refusal(RULE, f"{name} has {count} values but must have {VECTORS[name]}")
        numbers = [float(part) for part in value]
        if not all(math.isfinite(number) for number in numbers):
            raise Refusal(RULE, f"{name} is not finite")
        if name == "PixelSpacing":
            check_spacing(numbers)
        if name == "ImageOrientationPatient":
            check_axes([numbers[:3], numbers[3:]])
    except (Refusal, TypeError, ValueError):
        _drop(tags, name)
        raise


def _drop(tags: pydicom.Dataset, name: str) -> None:
    if name in tags:
        del tags[name]
