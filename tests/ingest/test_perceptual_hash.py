"""PerceptualHashs: the same scan is found again whatever was done to its grid; another patient's is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from hepar.cases import Modality
from hepar.imaging.volumes import Geometry, canonical, read_image, resample, to_array, write_image
from hepar.ingest.perceptual_hash import SIZE_ZYX, perceptual_hash
from hepar.ingest.sources.table import read_table
from hepar.params import Params
from hepar.phantoms import write_phantoms
from hepar.stages import ingest


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms large enough that their resampled copies still are scans."""
    folder = tmp_path_factory.mktemp("scans")
    write_phantoms(folder, cases=8, seed=7, size_zyx=(48, 72, 72))
    return folder


def coarser(image: sitk.Image) -> sitk.Image:
    spacing_zyx_mm = Geometry.of(image).spacing_zyx_mm
    return resample(image, Geometry.of(image).with_spacing(tuple(1.4 * mm for mm in spacing_zyx_mm)))  # type: ignore[arg-type]


def mirrored(image: sitk.Image) -> sitk.Image:
    copy = sitk.GetImageFromArray(to_array(image)[:, :, ::-1])
    copy.CopyInformation(image)
    return copy


def trimmed(image: sitk.Image) -> sitk.Image:
    return image[:, :, 1:]


def test_of_a_block_it_is_its_ranks() -> None:
    values = np.arange(np.prod(SIZE_ZYX), dtype=float).reshape(SIZE_ZYX)
    found = perceptual_hash(values.repeat(2, 0).repeat(3, 1).repeat(2, 2), Modality.CT)
    assert found.dtype == np.int8
    assert (found.ravel()[0], found.ravel()[-1]) == (-127, 127)
    assert (np.diff(found.ravel().astype(int)) >= 0).all()


def test_it_does_not_know_the_scale_of_mr(scans: Path) -> None:
    array = to_array(canonical(read_image(scans / "phantom-mr-0001" / "image.nii.gz"))).astype(np.float32)
    assert np.array_equal(perceptual_hash(array, Modality.MR), perceptual_hash(array * 4, Modality.MR))


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
    accepted, refused = ingest._ingest(read_table(tmp_path / "table.csv"), tmp_path / "c", tiny.ingest.split, None)
    assert [line.case_id for line in refused] == ["copy"]
    assert f"as case {scan} of another patient" in refused[0].value
    assert {case.case_id for case in accepted} == {case.case_id for case in cases} | {"phase"}
