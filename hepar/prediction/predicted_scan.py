"""A scan with all that was found in it: what every output is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import SimpleITK as sitk

from hepar import __version__
from hepar.cases import Modality
from hepar.errors import DataError, Refusal
from hepar.evaluation.research_use import RESEARCH_USE
from hepar.imaging.diameters import axial_tilt_degrees, slice_axis
from hepar.imaging.modality import guess_evidence, guess_modality, is_mask
from hepar.imaging.volumes import to_array
from hepar.inference.prediction import Model, Segmentation, segment
from hepar.inference.settings import PredictionSettings
from hepar.inference.window_count import OnWindow
from hepar.ingest.checks import check_finite
from hepar.prediction.frame_of_reference import check_frame
from hepar.prediction.measurements import ScanMeasurements, measure
from hepar.prediction.out_of_distribution import ScanWarning, check_scan
from hepar.prediction.scans import Scan

SCHEMA = 1  # of the JSON; a change that breaks readers raises it


@dataclass(frozen=True)
class Predictor:
    """A model as an ensemble, its hash, and how it predicts."""

    models: Sequence[Model]
    model_hash: str
    settings: PredictionSettings
    whole: bool = False  # predict all windows, not only those that matter to the liver

    @property
    def description(self) -> str:
        """Program and model, for people."""
        return f"hepar {__version__}, model {self.model_hash[:12]}"

    def facts(self) -> dict[str, Any]:
        """Program, model and settings by name."""
        settings = self.settings.for_model(self.models[0].spec).facts()
        model = {"model_hash": self.model_hash, "members": len(self.models)}
        return {"hepar": __version__, **model, "settings": settings, "whole": self.whole}


@dataclass(frozen=True)
class PredictedScan:
    """One scan, its intensities, and what was found. `evidence` says where the modality comes from."""

    scan: Scan
    image: sitk.Image = field(repr=False)
    modality: Modality
    evidence: str
    found: Segmentation = field(repr=False)
    measured: ScanMeasurements
    warnings: tuple[ScanWarning, ...]
    predictor: Predictor

    def measurements(self) -> dict[str, Any]:
        """All measurements by name, as `measurements.json` has them."""
        grid = self.found.geometry
        scan = {
            "name": self.scan.name,
            "source": self.scan.source or None,
            "source_number": self.scan.source_number,
            "modality": str(self.modality),
            "modality_from": self.evidence,
            "sequence": self.scan.sequence,
            "size_xyz": list(grid.size_zyx[::-1]),
            "spacing_xyz_mm": [round(mm, 4) for mm in grid.spacing_zyx_mm[::-1]],
            "slice_axis": "zyx"[slice_axis(grid)],
            "slice_tilt_degrees": round(axial_tilt_degrees(grid), 1),
        }
        return {
            "schema": SCHEMA,
            "use": RESEARCH_USE,
            "scan": scan,
            "made_by": self.predictor.facts(),
            "measurements": self.measured.rounded(),
            "lesions": [lesion.rounded() for lesion in self.measured.lesions],
            "warnings": [warning.rounded() for warning in self.warnings],
        }


def predict_scan(
    predictor: Predictor, scan: Scan, modality: Modality | None = None, on_window: OnWindow | None = None
) -> PredictedScan:
    """Segment and measure one scan, all of whose files are on this disk. `on_window` is told the progress.

    The modality is that of the DICOM header, else `modality`, else guessed from the intensities. Raises DataError if
    the scan cannot be read, has NaN or infinite voxels or those of a mask, `modality` is not that of the header, the
    intensities fit CT and MR, or the model was not trained on that modality.
    """
    image = scan.image.read()
    try:
        check_finite(sitk.GetArrayViewFromImage(image))
    except Refusal as refusal:
        raise DataError(f"{scan.source or scan.name}: {refusal}") from None
    if is_mask(image):
        raise DataError(f"{scan.source or scan.name} is a mask: its voxels are 0 or {to_array(image).max():g}")
    kind, evidence = _modality_of(scan, image, modality)
    found = segment(predictor.models, image, kind, predictor.settings, predictor.whole, on_window)
    measured = measure(found, to_array(image), kind)
    warnings = (*check_scan(image, kind, found, measured, predictor.models[0].spec), *check_frame(scan))
    return PredictedScan(scan, image, kind, evidence, found, measured, warnings, predictor)


def _modality_of(scan: Scan, image: sitk.Image, given: Modality | None) -> tuple[Modality, str]:
    if scan.modality is not None:
        if given not in (None, scan.modality):
            raise DataError(f"{scan.name} is {scan.modality} by its DICOM header, not {given}")
        return scan.modality, "DICOM header"
    if given is not None:
        return given, "the user's choice"
    guessed = guess_modality(image, scan.image.files[0])
    return guessed, f"intensities: {guess_evidence(image, guessed)}"


def shown(measurements: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a scan that the command line prints."""
    return {
        **{name: measurements["scan"][name] for name in ("name", "source", "source_number", "modality")},
        **{name: measurements["measurements"][name] for name in ("liver_ml", "tumour_ml", "burden_percent", "lesions")},
        "warnings": [warning["message"] for warning in measurements["warnings"]],
    }
