"""Follow-up of a real patient, whose second date is made from the first: turned, shifted, resampled, lesions scaled.

No real patient with two dates is at hand, so nothing here shows how livers deform between two scans.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from predicted import predictor

from hepar.cases import Modality
from hepar.imaging.volumes import Geometry, to_array, to_image
from hepar.inference.prediction import Segmentation
from hepar.ingest.sources.source import VolumeFile
from hepar.prediction.folder import PredictionFolder
from hepar.prediction.follow_up import Fate, follow
from hepar.prediction.measurements import measure
from hepar.prediction.outputs import Output
from hepar.prediction.predicted_scan import PredictedScan
from hepar.prediction.scans import Scan
from hepar.prediction.writing import write_prediction

TURN_DEGREES, SHIFT_MM = 10.0, (15.0, -12.0, 9.0)
SPACING_XYZ_MM = (1.2, 1.2, 2.5)  # of the second date; 1.486, 1.486, 1.6 at the first
LESIONS = ("livertumor1", "livertumor2")
MARGIN = 40  # voxels around the liver
STEPS_XYZ = (2, 2, 1)  # every second voxel within a slice is enough

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def masks(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, sitk.Image]:
    """The masks of 3D-IRCADb patient 17 around the liver: 0 and 1, `liver` and each tumour."""
    folder, archive = tmp_path_factory.mktemp("masks"), real_data / "3dircadb1.17" / "MASKS_DICOM.zip"
    if not archive.is_file():
        pytest.skip(f"there is no {archive}")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    reader = sitk.ImageSeriesReader()
    found = {}
    for name in ("liver", *LESIONS):
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder / "MASKS_DICOM" / name)))
        found[name] = sitk.Cast(reader.Execute() > 0, sitk.sitkUInt8)
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(found["liver"])
    low_xyz, size_xyz = np.split(np.array(statistics.GetBoundingBox(1)), 2)
    high_xyz = low_xyz + size_xyz + MARGIN
    x, y, z = map(slice, np.maximum(0, low_xyz - MARGIN).tolist(), high_xyz.tolist(), STEPS_XYZ)
    return {name: mask[x, y, z] for name, mask in found.items()}


def centre_mm(mask: sitk.Image) -> tuple[float, ...]:
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(mask)
    return tuple(statistics.GetCentroid(1))


def second_date(masks: Mapping[str, sitk.Image], scales: Mapping[str, float]) -> dict[str, sitk.Image]:
    """The masks of the moved patient on a grid of its own, each lesion scaled around its own centre."""
    liver = masks["liver"]
    back = sitk.Euler3DTransform()  # from the second date to the first
    back.SetCenter(centre_mm(liver))
    back.SetRotation(0.0, 0.0, np.deg2rad(TURN_DEGREES))
    back.SetTranslation([-mm for mm in SHIFT_MM])
    extent_mm = np.multiply(liver.GetSize(), liver.GetSpacing())
    grid = sitk.Image([int(mm / step) for mm, step in zip(extent_mm, SPACING_XYZ_MM, strict=True)], sitk.sitkUInt8)
    grid.SetSpacing(SPACING_XYZ_MM)
    grid.SetOrigin(np.add(liver.GetOrigin(), SHIFT_MM).tolist())
    moved = {"liver": sitk.Resample(liver, grid, back, sitk.sitkNearestNeighbor)}
    for name, scale in scales.items():
        shrink = sitk.ScaleTransform(3, [1 / scale] * 3)
        shrink.SetCenter(centre_mm(masks[name]))
        both = sitk.CompositeTransform([shrink, back])  # the last one first
        moved[name] = sitk.Resample(masks[name], grid, both, sitk.sitkNearestNeighbor)
    return moved


def write(masks: Mapping[str, sitk.Image], folder: Path) -> PredictionFolder:
    """Masks and measurements of a scan in which the liver has 100 HU and tumours 50."""
    grid = Geometry.of(masks["liver"])
    tumour_zyx = np.logical_or.reduce([to_array(masks[name]) > 0 for name in LESIONS])
    liver_zyx = (to_array(masks["liver"]) > 0) | tumour_zyx
    image_zyx = np.where(tumour_zyx, 50, np.where(liver_zyx, 100, -1000)).astype(np.int16)
    probability_rzyx = np.stack([liver_zyx, tumour_zyx]).astype(np.float32)
    found = Segmentation(liver_zyx, tumour_zyx, probability_rzyx, grid, ("liver", "tumour"), 0.0)
    measured = measure(found, image_zyx, Modality.CT)
    source = Scan(folder.name, VolumeFile(Path(__file__)))  # any file: by its content a result is known as the scan's
    scan = PredictedScan(source, to_image(image_zyx, grid), Modality.CT, "--modality", found, measured, (), predictor())
    write_prediction(scan, folder, (Output.MASKS, Output.JSON))
    return PredictionFolder(folder)


@pytest.mark.parametrize(
    ("scales", "category"),
    [((0.6, 0.7), "PR"), ((1.0, 1.0), "SD"), ((1.25, 1.3), "PD")],
)
def test_lesions_of_a_moved_patient_are_matched_and_change_as_they_were_scaled(
    masks: dict[str, sitk.Image], scales: tuple[float, float], category: str, tmp_path: Path
) -> None:
    scale_of = dict(zip(LESIONS, scales, strict=True))
    baseline = write(masks, tmp_path / "before")
    found = follow(baseline, write(second_date(masks, scale_of), tmp_path / "after"))
    assert found.alignment.liver_dice > 0.93
    assert found.alignment.rotation_degrees == pytest.approx(TURN_DEGREES, abs=2)
    centres_mm = {row["number"]: row["centre_lps_mm"] for row in baseline.load_measurements()["lesions"]}
    assert [(lesion.fate, lesion.baseline) for lesion in found.lesions] == [(Fate.MATCHED, 1), (Fate.MATCHED, 2)]
    for lesion in found.lesions:
        (name,) = [name for name in LESIONS if np.allclose(centre_mm(masks[name]), centres_mm[lesion.baseline], atol=2)]
        assert lesion.change_percent == pytest.approx(100 * (scale_of[name] - 1), abs=5)
    assert found.response.category == category
