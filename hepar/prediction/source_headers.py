"""The headers of a DICOM scan as DICOM-SEG and SR are made from them: complete, and without malformed values.

Anonymisers delete attributes that must be there, if empty (type 2 of PS3.3), and write values that are not of their
type. highdicom refuses such headers. What is missing or malformed is empty here, so the objects say as much as the
slices do, and the slices stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom

from hepar.ingest.sources.dicom import ENHANCED
from hepar.prediction.frame_of_reference import add_frame

MAY_BE_EMPTY = (  # attributes of patient and study that every object copies
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
FORMS = {  # of PS3.5, 6.2; a date of all zeros is none
    "PatientBirthDate": r"(?!0000)\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])",
    "StudyDate": r"(?!0000)\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])",
    "StudyTime": r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?",
    "PatientSex": r"[MFO]",
}
DEFAULT_REPERTOIRE = "ISO 2022 IR 6"  # that an empty first value of SpecificCharacterSet stands for, beside others


def read_headers(paths: Sequence[Path]) -> list[pydicom.Dataset]:
    """The headers of the slices of a scan, in their order along it, or of its multi-frame file.

    They have a frame of reference, and single slices a thickness, which is their distance if they do not say it.
    """
    sources: list[pydicom.Dataset] = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    add_frame(sources)
    for source in sources:
        _complete(source)
    if sources[0].SOPClassUID not in ENHANCED:
        _add_thickness(sources)
    return sources


def _complete(source: pydicom.Dataset) -> None:
    for name in MAY_BE_EMPTY:
        if name not in source:
            setattr(source, name, "")
    for name, form in FORMS.items():
        if not re.fullmatch(form, str(source[name].value or "").strip()):
            setattr(source, name, "")
    repertoires = source.get("SpecificCharacterSet")
    if isinstance(repertoires, Sequence) and not isinstance(repertoires, str) and not repertoires[0]:
        source.SpecificCharacterSet = [DEFAULT_REPERTOIRE, *repertoires[1:]]


def _add_thickness(sources: Sequence[pydicom.Dataset]) -> None:
    if all(source.get("SliceThickness") for source in sources):
        return
    first, last = (np.array(source.ImagePositionPatient, float) for source in (sources[0], sources[-1]))
    step_mm = round(float(np.linalg.norm(last - first)) / max(1, len(sources) - 1), 6)
    for source in sources:
        source.SliceThickness = source.get("SliceThickness") or step_mm
