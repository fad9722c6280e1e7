"""The frame of reference of DICOM-SEG and SR: that of the slices, or one made from their series if they name none.

DICOM demands a FrameOfReferenceUID of CT and MR images (PS3.3, C.7.4.1), which some published data sets lack. The
objects need one too; where they lie follows from the slices that they refer to, whose positions they share. So one is
made for each series. It is the same in every run, so that all objects of a series agree, and that of no other series,
since nothing tells whether two series without one share their coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence

import pydicom
from pydicom.uid import generate_uid

from hepar.prediction.out_of_distribution import ScanWarning
from hepar.prediction.scans import Scan

RULE = "frame of reference"
MESSAGE = (
    "the slices name no FrameOfReferenceUID: DICOM-SEG and SR have one made from the SeriesInstanceUID; they lie on the"
    " slices that they refer to, but a viewer that matches by that UID may not overlay them"
)


def check_frame(scan: Scan) -> tuple[ScanWarning, ...]:
    """A warning about a DICOM scan whose slices name no frame of reference, with their number; else ()."""
    instances = () if scan.stack is None else scan.stack.instances
    without = sum(not instance.get("FrameOfReferenceUID") for instance in instances)
    return (ScanWarning(RULE, without, 0.0, "slices", MESSAGE),) if without else ()


def add_frame(sources: Sequence[pydicom.Dataset]) -> None:
    """Give the headers of a series a frame of reference if they have none."""
    for source in sources:
        if not source.get("FrameOfReferenceUID"):
            source.FrameOfReferenceUID = generate_uid(entropy_srcs=[RULE, str(source.SeriesInstanceUID)])
