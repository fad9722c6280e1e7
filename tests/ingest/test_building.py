"""Building one case: what is refused and why, and that a mask comes back to the grid of its source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from phantom_folder import SCAN, PhantomFolder, ingest, quarantine

from hepar.cases import Cohort, Modality
from hepar.errors import DataError, Refusal
from hepar.imaging.volumes import canonical, read_image, to_array, to_source_grid
from hepar.ingest.building import build_case
from hepar.ingest.checks import check_image
from hepar.ingest.cohort_building import build_cases
from hepar.ingest.quarantine import Refused
from hepar.ingest.sources.source import VolumeFile
from hepar.ingest.sources.table import read_table
from hepar.ingest.splits import assign_splits
from hepar.ingest.summary import cohort_table
from hepar.params import Params, SplitParams
from hepar.phantoms import write_phantoms

SPLIT = SplitParams(test=0.2, val=0.1)


def shifted(image: sitk.Image) -> sitk.Image:
    image.SetOrigin([value + 1 for value in image.GetOrigin()])
    return image


@pytest.mark.parametrize(
    ("file", "edit", "rule", "value"),
    [
        ("image", lambda image: image * 0, "the image has contrast", "every voxel is 0"),
        ("image", lambda image: image[:5, :, :], "the image has at least 8 voxels along each axis", "5×"),
        ("tumour", lambda mask: mask[:-1, :, :], "the tumour mask has the image's size", " but the image is "),
        ("tumour", shifted, "the tumour mask lies on the image's grid", " but the image has "),
        ("tumour", lambda mask: mask * 3, "the tumour mask contains only 0 and 1", "value 3"),
        ("tumour", lambda mask: mask * 0, "a manual tumour mask is not empty", "0 voxels"),
    ],
)
def test_a_case_that_breaks_a_rule_is_quarantined_with_rule_and_value(
    source: PhantomFolder, tiny: Params, file: str, edit: Callable[[sitk.Image], sitk.Image], rule: str, value: str
) -> None:
    source.change(f"{SCAN}/{file}.nii.gz", edit)
    folder = ingest(source, tiny.ingest)
    (line,) = quarantine(folder)
    assert line["case_id"] == SCAN
    assert line["rule"].startswith(rule)
    assert value in line["value"]
    assert len(Cohort.load(folder)) == 7
    assert not (folder / Cohort.VOLUMES / SCAN).exists()


def test_a_file_on_which_a_library_breaks_refuses_its_case(
    source: PhantomFolder, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = VolumeFile.read

    def breaking(volume: VolumeFile) -> sitk.Image:
        if volume.path.parent.name == SCAN and volume.path.name.startswith("tumour"):
            raise AttributeError("Anna Example has no PixelData")
        return whole(volume)

    monkeypatch.setattr(VolumeFile, "read", breaking)
    listed = assign_splits(read_table(source.folder / "cohort.csv"), tiny.ingest.split)
    built = [build_case(case, tmp_path / "cohort") for case in listed]
    (refused,) = [result for result in built if isinstance(result, Refused)]
    assert refused == Refused(SCAN, "every file can be read", "reading the tumour mask failed: AttributeError")


def test_a_missing_file_refuses_its_case(source: PhantomFolder, tiny: Params) -> None:
    (source.folder / SCAN / "tumour.nii.gz").unlink()
    (line,) = quarantine(ingest(source, tiny.ingest))
    assert (line["case_id"], line["rule"]) == (SCAN, "every file can be read")
    assert line["value"].endswith("tumour.nii.gz does not exist")


def test_a_case_with_nan_is_quarantined_and_listed_below_the_accepted_ones(source: PhantomFolder, tiny: Params) -> None:
    source.spoil_with_nan(SCAN)
    folder = ingest(source, tiny.ingest)
    assert quarantine(folder) == [
        {"case_id": SCAN, "rule": "all voxels of the image are finite", "value": "2 voxels are NaN or infinite"}
    ]
    table = cohort_table(folder)
    assert table.case_id.tolist()[-1] == SCAN
    assert table.refused.tolist() == [""] * 7 + ["all voxels of the image are finite: 2 voxels are NaN or infinite"]


def flip(axis: int) -> Callable[[sitk.Image], sitk.Image]:
    def edit(mask: sitk.Image) -> sitk.Image:
        flipped = sitk.GetImageFromArray(np.flip(sitk.GetArrayFromImage(mask), axis))
        flipped.CopyInformation(mask)
        return flipped

    return edit


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_liver_is_refused(axis: int, tmp_path: Path, tiny: Params) -> None:
    write_phantoms(tmp_path / "source", cases=8, seed=5, size_zyx=(40, 60, 60))
    source = PhantomFolder(tmp_path / "source")
    row = next(row for row in source.rows() if row["liver"] and row["tumour"] and row["split"] == "val")
    for name in ("liver", "tumour"):
        source.change(row[name], flip(axis))
    (line,) = quarantine(ingest(source, tiny.ingest))
    assert line["case_id"] == row["case_id"]
    assert "lies" in line["rule"]


def test_mr_declared_as_ct_and_ct_declared_as_mr_are_refused(source: PhantomFolder, tiny: Params) -> None:
    other = {"CT": "MR", "MR": "CT"}
    for number in (6, 7):
        rows = source.rows()
        rows[number]["modality"] = other[rows[number]["modality"]]
        source.rewrite(rows)
        lines = quarantine(ingest(source, tiny.ingest.model_copy(update={"max_refused_share": 1.0})))
        assert rows[number]["case_id"] in {
            line["case_id"] for line in lines if "image values match the modality" in line["rule"]
        }


def test_a_ct_of_fractions_is_rounded_to_whole_hu(source: PhantomFolder, tiny: Params) -> None:
    exact_zyx = to_array(read_image(source.folder / SCAN / "image.nii.gz"))
    fraction = np.where(np.indices(exact_zyx.shape).sum(0) % 2, 0.4, -0.4)  # 0.6 stands for 1, and -0.6 for -1
    assert {0.6, -0.6} <= set((exact_zyx + fraction).round(1).ravel())

    def with_fractions(image: sitk.Image) -> sitk.Image:
        real = sitk.GetImageFromArray((exact_zyx + fraction).astype(np.float32))
        real.CopyInformation(image)
        return real

    original = read_image(source.folder / SCAN / "image.nii.gz")
    source.change(f"{SCAN}/image.nii.gz", with_fractions)
    stored = read_image(ingest(source, tiny.ingest) / Cohort.volume(SCAN, "image"))
    assert stored.GetPixelID() == sitk.sitkInt16
    assert (to_array(stored) == to_array(canonical(original))).all()


def test_a_header_that_claims_a_tebibyte_allocates_nothing(source: PhantomFolder, tiny: Params) -> None:
    header = "ObjectType = Image\nNDims = 3\nDimSize = 10000 10000 10000\nElementType = MET_UCHAR\n"
    (source.folder / SCAN / "image.mha").write_text(header + "ElementDataFile = LOCAL\n")
    rows = source.rows()
    for row in rows:
        if row["case_id"] == SCAN:
            row["image"] = f"{SCAN}/image.mha"
    source.rewrite(rows)
    (line,) = quarantine(ingest(source, tiny.ingest))
    assert "claims 10000×10000×10000 voxels, but the file has" in line["value"]


@given(
    orientation=st.sampled_from(["LPS", "RAS", "LAI", "PIR", "SAL", "IPR", "ARS"]),
    degrees=st.floats(-20, 20),
    scale=st.tuples(*[st.floats(0.9, 1.1)] * 3),
)
@settings(max_examples=15, deadline=None)
def test_a_mask_comes_back_to_the_grid_of_its_source_bit_for_bit(
    phantom_source: Path,
    tmp_path_factory: pytest.TempPathFactory,
    orientation: str,
    degrees: float,
    scale: tuple[float, float, float],
) -> None:
    folder = tmp_path_factory.mktemp("oblique")
    turn = sitk.Euler3DTransform()
    turn.SetRotation(*np.deg2rad([degrees, -degrees / 2, degrees / 3]).tolist())
    originals = {}
    for name in ("image", "liver"):
        volume = sitk.DICOMOrient(read_image(phantom_source / "phantom-ct-0000" / f"{name}.nii.gz"), orientation)
        axes = np.array(turn.GetMatrix()).reshape(3, 3) @ np.array(volume.GetDirection()).reshape(3, 3)
        volume.SetDirection(axes.ravel().tolist())
        volume.SetSpacing([mm * by for mm, by in zip(volume.GetSpacing(), scale, strict=True)])
        sitk.WriteImage(volume, str(folder / f"{name}.nii.gz"))
        originals[name] = sitk.ReadImage(str(folder / f"{name}.nii.gz"))
    (folder / "table.csv").write_text(
        "case_id,modality,image,liver,liver_state,tumour_state\none,CT,image.nii.gz,liver.nii.gz,manual,unknown\n"
    )
    listed = assign_splits(read_table(folder / "table.csv"), SPLIT)
    (case,), refused = build_cases(listed, folder / "cohort", earlier=None)
    assert refused == []
    for name, original in originals.items():
        back = to_source_grid(read_image(folder / "cohort" / getattr(case, name)), case.header)
        assert np.array_equal(to_array(back), to_array(original))
        assert (back.GetOrigin(), back.GetSpacing()) == (original.GetOrigin(), original.GetSpacing())
        assert back.GetDirection() == original.GetDirection()
    with pytest.raises(DataError, match=r"voxels along x, y, z but must have those of its source, "):
        to_source_grid(back[1:, :, :], case.header)


def test_a_scan_of_more_voxels_than_nifti_counts_is_refused() -> None:
    image = sitk.GetImageFromArray(np.arange(8 * 8 * 32768, dtype=np.float32).reshape(8, 8, 32768))
    with pytest.raises(Refusal, match="at most 32767 voxels along each axis: 32768×8×8"):
        check_image(image, Modality.MR)
