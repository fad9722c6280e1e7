"""Measurements as a DICOM Structured Report, TID 1500 (DICOM PS3.16): one group for the liver and one a lesion.

What has no code of DICOM, SNOMED or UCUM has one of the scheme `99HEPAR`, as private schemes are named. Warnings and
the note on use are comments of the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pydicom
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from hepar import __version__
from hepar.cases import Modality
from hepar.evaluation.research_use import RESEARCH_USE
from hepar.imaging.diameters import Diameter
from hepar.prediction.dicom_segmentation import (
    LIVER_CODE,
    LIVER_LABEL,
    MANUFACTURER,
    NEOPLASM,
    REPORT_SERIES,
    SERIES_DESCRIPTION,
    Segment,
    headers_that_fit,
    lesion_label,
)
from hepar.prediction.measurements import MeasuredLesion
from hepar.prediction.predicted_scan import PredictedScan

SCHEME = "99HEPAR"
MILLILITRE, MILLIMETRE = Code("mL", "UCUM", "milliliter"), Code("mm", "UCUM", "millimeter")
PERCENT, NO_UNIT, HOUNSFIELD = (
    Code("%", "UCUM", "percent"),
    Code("1", "UCUM", "no units"),
    Code("[hnsf'U]", "UCUM", "HU"),
)
VOLUME = Code("118565006", "SCT", "Volume")
LONG_AXIS, SHORT_AXIS = Code("103339001", "SCT", "Long Axis"), Code("103340004", "SCT", "Short Axis")
ATTENUATION, MEAN = Code("112031", "DCM", "Attenuation Coefficient"), Code("373098007", "SCT", "Mean")
TUMOUR_VOLUME = Code("tumour-volume", SCHEME, "Volume of all tumours")
BURDEN = Code("tumour-burden", SCHEME, "Tumour volume in percent of the liver")
LESIONS = Code("lesions", SCHEME, "Number of lesions")
CAPSULE = Code("capsule-distance", SCHEME, "Distance to the surface of the liver")
CANTLIE = Code("cantlie-plane", SCHEME, "Distance to the estimated Cantlie plane, negative right of it")
CONTRAST = Code("contrast", SCHEME, "Mean less that of the liver around")
CONFIDENCE = Code("confidence", SCHEME, "Highest tumour probability in the lesion")
COMMENT, REPORT_TITLE = Code("121106", "DCM", "Comment"), Code("126000", "DCM", "Imaging Measurement Report")
PROCEDURE, DEVICE = Code("363679005", "SCT", "Imaging procedure"), Code("121007", "DCM", "Device")


def make_report(
    predicted: PredictedScan, sources: Sequence[pydicom.Dataset], segments: Sequence[Segment], segmentation: Any
) -> Any:
    """A `highdicom.sr.Comprehensive3DSR`. `segmentation` holds `segments`, and is None if nothing was found.

    Raises DataError if the headers of the scan do not allow it.
    """
    import highdicom

    series = highdicom.sr.SourceSeriesForSegmentation(str(sources[0].SeriesInstanceUID))
    references = {
        segment.label: (
            highdicom.sr.ReferencedSegment(
                segmentation.SOPClassUID, segmentation.SOPInstanceUID, number, source_series=series
            ),
            segmentation.SegmentSequence[number - 1].TrackingUID,
        )
        for number, segment in enumerate(segments, start=1)
    }
    with headers_that_fit(predicted, "DICOM SR"):
        groups = [_liver_group(predicted, references), *_lesion_groups(predicted, references, sources[0])]
        content = highdicom.sr.MeasurementReport(
            observation_context=_observer(predicted),
            procedure_reported=PROCEDURE,
            imaging_measurements=groups,
            title=REPORT_TITLE,
            referenced_images=list(sources) if "PixelSpacing" in sources[0] else None,  # no multi-frame file
        )
        for text in (RESEARCH_USE, *(f"Warning: {warning.message}" for warning in predicted.warnings)):
            relation = highdicom.sr.RelationshipTypeValues.CONTAINS
            content[0].ContentSequence.append(highdicom.sr.TextContentItem(COMMENT, text, relation))
        return highdicom.sr.Comprehensive3DSR(
            evidence=[*sources, *([] if segmentation is None else [segmentation])],
            content=content[0],
            series_instance_uid=generate_uid(),
            series_number=REPORT_SERIES,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            is_complete=True,
            series_description=SERIES_DESCRIPTION,
        )


def _observer(predicted: PredictedScan) -> Any:
    import highdicom

    attributes = highdicom.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[predicted.predictor.description]),
        name=predicted.predictor.description,
        manufacturer_name=MANUFACTURER,
        model_name=f"hepar {__version__}",
        serial_number=predicted.predictor.model_hash[:16],
    )
    return highdicom.sr.ObservationContext(observer_device_context=highdicom.sr.ObserverContext(DEVICE, attributes))


def _liver_group(predicted: PredictedScan, references: Mapping[str, tuple[Any, str]]) -> Any:
    measured = predicted.measured
    values = [
        (VOLUME, measured.liver_ml, MILLILITRE),
        (TUMOUR_VOLUME, measured.tumour_ml, MILLILITRE),
        (BURDEN, measured.burden_percent, PERCENT),
        (LESIONS, None if measured.tumour_ml is None else len(measured.lesions), NO_UNIT),
    ]
    measurements = [_measurement(name, value, unit) for name, value, unit in values if value is not None]
    return _group(LIVER_LABEL, references.get(LIVER_LABEL), predicted, measurements, LIVER_CODE)


def _lesion_groups(
    predicted: PredictedScan, references: Mapping[str, tuple[Any, str]], source: pydicom.Dataset
) -> list[Any]:
    frame = str(source.FrameOfReferenceUID)
    return [
        _group(
            lesion_label(lesion.number),
            references.get(lesion_label(lesion.number)),
            predicted,
            _lesion_measurements(
                lesion, predicted.modality, None if lesion_label(lesion.number) in references else frame
            ),
            NEOPLASM,
        )
        for lesion in predicted.measured.lesions
    ]


def _lesion_measurements(lesion: MeasuredLesion, modality: Modality, frame: str | None) -> list[Any]:
    """The measurements of a lesion; with the ends of its diameters in a frame of reference if one is given."""
    contrast, unit = lesion.contrast, HOUNSFIELD if modality == Modality.CT else NO_UNIT
    measurements = [
        _measurement(VOLUME, lesion.found.volume_ml, MILLILITRE),
        _axis(LONG_AXIS, lesion.diameters.longest, frame),
        _axis(SHORT_AXIS, lesion.diameters.perpendicular, frame),
        _measurement(CONFIDENCE, lesion.found.confidence, NO_UNIT),
    ]
    if modality == Modality.CT:
        measurements.append(_measurement(ATTENUATION, contrast.mean, HOUNSFIELD, derivation=MEAN))
    if contrast.difference is not None:
        measurements.append(_measurement(CONTRAST, contrast.difference, unit))
    if lesion.capsule_mm is not None:
        measurements.append(_measurement(CAPSULE, lesion.capsule_mm, MILLIMETRE))
    if lesion.cantlie_mm is not None:
        measurements.append(_measurement(CANTLIE, lesion.cantlie_mm, MILLIMETRE))
    return measurements


def _axis(name: Code, diameter: Diameter, frame: str | None) -> Any:
    import highdicom

    if frame is None:  # the measurements of a segment must not have coordinates of their own (TID 1411)
        return _measurement(name, diameter.length_mm, MILLIMETRE)
    coordinates = highdicom.sr.CoordinatesForMeasurement3D(
        graphic_type=highdicom.sr.GraphicTypeValues3D.POLYLINE,
        graphic_data=np.array(diameter.ends_lps_mm),
        frame_of_reference_uid=frame,
    )
    return _measurement(name, diameter.length_mm, MILLIMETRE, referenced_coordinates=[coordinates])


def _measurement(name: Code, value: float, unit: Code, **more: Any) -> Any:
    import highdicom

    return highdicom.sr.Measurement(name=name, value=round(value, 3), unit=unit, **more)


def _group(
    name: str, reference: tuple[Any, str] | None, predicted: PredictedScan, measurements: list[Any], finding: Code
) -> Any:
    """The measurements of a segment (TID 1411), or of something that has none (TID 1501)."""
    import highdicom

    identified = highdicom.sr.AlgorithmIdentification(name="hepar", version=predicted.predictor.description)
    given: dict[str, Any] = {
        "tracking_identifier": highdicom.sr.TrackingIdentifier(reference[1] if reference else generate_uid(), name),
        "finding_type": finding,
        "finding_sites": [highdicom.sr.FindingSite(LIVER_CODE)],
        "algorithm_id": identified,
        "measurements": measurements,
    }
    if reference is None:
        return highdicom.sr.MeasurementsAndQualitativeEvaluations(**given)
    return highdicom.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=reference[0], **given)
