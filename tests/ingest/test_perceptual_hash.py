"""Perceptual hashes: a scan is found again whatever happened to its grid; another patient's is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from hepar.cases import Modality
from hepar.imaging.volumes import Geometry, canonical, read_image, resample, to_array, write_image
from hepar.ingest.cohort_building import build_cases
from hepar.ingest.perceptual_hash import SIZE_ZYX, perceptual_hash
from hepar.ingest.sources.table import read_table
from hepar.ingest.splits import assign_splits
from hepar.params import Params
from hepar.phantoms import write_phantoms


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms large enough that their resampled copies still are scans."""
    folder = tmp_path_factory.mktemp("scans")
    write_phantoms(folder, cases=8, seed=7, size_zyx=(48, 72, 72))
    return folder


def coarser(image: sitk.Image) -> sitk.Image:
    geometry = Geometry.of(image)
    z_mm, y_mm, x_mm = (1.4 * mm for mm in geometry.spacing_zyx_mm)
    return resample(image, geometry.with_spacing((z_mm, y_mm, x_mm)))


def mirrored(image: sitk.Image) -> sitk.Image:
    copy = sitk.GetImageFromArray(to_array(image)[:, :, ::-1])
    copy.CopyInformation(image)
    return copy


def trimmed(image: sitk.Image) -> sitk.Image:
    return image[:, :, 1:]


def test_the_hash_of_a_ramp_is_the_ranks_of_its_blocks() -> None:
    values_zyx = np.arange(np.prod(SIZE_ZYX), dtype=float).reshape(SIZE_ZYX)
    found = perceptual_hash(values_zyx.repeat(2, 0).repeat(3, 1).repeat(2, 2), Modality.CT)
    assert found.dtype == np.int8
    assert (found.ravel()[0], found.ravel()[-1]) == (-127, 127)
    assert (np.diff(found.ravel().astype(int)) >= 0).all()


def test_the_hash_does_not_depend_on_the_intensity_scale_of_mr(scans: Path) -> None:
    image_zyx = to_array(canonical(read_image(scans / "phantom-mr-0001" / "image.nii.gz"))).astype(np.float32)
    assert np.array_equal(perceptual_hash(image_zyx, Modality.MR), perceptual_hash(image_zyx * 4, Modality.MR))


@pytest.mark.parametrize("change", [coarser, mirrored, trimmed])
@pytest.mark.parametrize("scan", ["phantom-ct-0006", "phantom-mr-0007"])
def test_a_copy_under_another_patients_name_is_refused(
    scan: str, change: Callable[[sitk.Image], sitk.Image], scans: Path, tmp_path: Path, tiny: Params
) -> None:
    write_image(change(read_image(scans / scan / "image.nii.gz")), tmp_path / "copy.nii.gz")
    cases = read_table(scans / "cohort.csv")
    original = next(case for case in cases if case.case_id == scan)
    table = ["case_id,patient_id,modality,sequence,image,liver_state,tumour_state"]
    table += [
        f"{case.case_id},{case.patient_id},{case.modality},{case.sequence},{case.image.files[0]},unknown,unknown"
        for case in cases
    ]
    table += [
        f"copy,another,{original.modality},{original.sequence},{tmp_path / 'copy.nii.gz'},unknown,unknown",
        f"phase,{original.patient_id},{original.modality},other,{tmp_path / 'copy.nii.gz'},unknown,unknown",
    ]
    (tmp_path / "table.csv").write_text("\n".join(table) + "\n")
    listed = assign_splits(read_table(tmp_path / "table.csv"), tiny.ingest.split)
    accepted, refused = build_cases(listed, tmp_path / "cohort", earlier=None)
    assert [line.case_id for line in refused] == ["copy"]
    assert f"copy of case {scan} of another patient" in refused[0].value
    assert {case.case_id for case in accepted} == {case.case_id for case in cases} | {"phase"}
