"""What a comparison is broken down by; apart from it, since the command line needs the names before any library."""

from __future__ import annotations

from enum import StrEnum


class Breakdown(StrEnum):
    """The groups of cases or lesions that have rows of their own. Modalities always have."""

    MODALITY = "modality"
    SOURCE = "source"
    SIZE = "size"  # of lesions, by equivalent diameter
