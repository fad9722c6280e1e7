"""The choice of what a prediction writes."""

from __future__ import annotations

from enum import StrEnum


class Output(StrEnum):
    """What is written for a scan; the DICOM objects need DICOM input."""

    MASKS = "masks"
    SEG = "seg"
    SR = "sr"
    JSON = "json"
    CSV = "csv"
    PICTURE = "picture"
    PAGE = "page"
