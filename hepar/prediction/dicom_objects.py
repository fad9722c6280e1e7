"""The DICOM objects of a predicted scan, as far as the headers of its slices allow them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hepar.errors import DataError
from hepar.prediction.folder import PredictionFolder
from hepar.prediction.out_of_distribution import ScanWarning
from hepar.prediction.predicted_scan import PredictedScan

RULE = "DICOM objects"


@dataclass(frozen=True)
class DicomObjects:
    """Objects by the names of their files; `missing` says of each that the headers do not allow why."""

    by_name: Mapping[str, Any]
    missing: tuple[str, ...]
    nothing_found: bool

    def warnings(self) -> tuple[ScanWarning, ...]:
        """A warning about what is missing; () if nothing is."""
        if not self.missing:
            return ()
        return (ScanWarning(RULE, len(self.missing), 0.0, "missing", "; ".join(self.missing)),)


def make_objects(predicted: PredictedScan, by_lesion: bool, with_report: bool) -> DicomObjects:
    """The DICOM-SEG of a DICOM scan if anything was found, and the SR `with_report`.

    A report without a segmentation refers to the slices alone. If not `by_lesion`, all tumours are one segment.
    """
    from hepar.prediction.dicom_report import make_report
    from hepar.prediction.dicom_segmentation import make_segmentation, make_segments
    from hepar.prediction.source_headers import read_headers

    assert predicted.scan.stack is not None
    sources, segments = read_headers(predicted.scan.stack.paths), make_segments(predicted, by_lesion)
    made: dict[str, Any] = {}
    missing: list[str] = []
    nothing_found, segmentation = not segments, None
    if segments:
        try:
            segmentation = made[PredictionFolder.SEG] = make_segmentation(predicted, segments, sources)
        except DataError as error:
            missing.append(str(error))
            segments = []
    if with_report:
        so_far = DicomObjects(made, tuple(missing), nothing_found).warnings()
        warned = replace(predicted, warnings=(*predicted.warnings, *so_far))
        try:
            made[PredictionFolder.SR] = make_report(warned, sources, segments, segmentation)
        except DataError as error:
            missing.append(str(error))
    return DicomObjects(made, tuple(missing), nothing_found)
