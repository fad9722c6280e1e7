"""Public layouts: each written as its data set writes it, recognised, and read back with states and masks."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from hepar.cases import LabelState, Modality
from hepar.errors import DataError, Refusal
from hepar.ingest.sources import LAYOUTS, open_source
from hepar.ingest.sources.source import SourceCase
from hepar.params import Params

MANUAL, UNKNOWN = LabelState.MANUAL, LabelState.UNKNOWN
Array = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def labels(*values: int) -> Array:
    """A label map with a box of each value, four voxels wide, one after the other along x."""
    array = np.zeros((9, 10, 24), np.uint8)
    for number, value in enumerate(values):
        array[2:6, 3:7, 1 + 4 * number : 5 + 4 * number] = value
    return array


def write(path: Path, array: Array | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if array is None:
        array = np.random.default_rng(len(str(path))).integers(0, 99, (9, 10, 24)).astype(np.uint8)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.5, 2.0, 3.0))
    sitk.WriteImage(image, str(path))


def found(folder: Path, tiny: Params, layout: str = "auto") -> dict[str, SourceCase]:
    with open_source(str(folder), tiny.ingest.model_copy(update={"layout": layout})) as cases:
        return {case.case_id: case for case in cases}


def voxels(case: SourceCase, structure: str) -> Array:
    volume = getattr(case, structure)
    assert volume is not None
    return np.asarray(sitk.GetArrayFromImage(volume.read()))


def states(case: SourceCase) -> tuple[LabelState, LabelState]:
    return case.liver_state, case.tumour_state


def lits(folder: Path) -> None:
    write(folder / "batch 1" / "volume-3.nii")
    write(folder / "batch 1" / "segmentation-3.nii", labels(1, 2))
    write(folder / "batch 2" / "volume-28.nii")
    write(folder / "test-volume-1.nii")


def pair(image: str, label: str, *values: int) -> Callable[[Path], None]:
    """A layout of `imagesTr` and `labelsTr`, with one labelled and one unlabelled image."""

    def make(folder: Path) -> None:
        for number in (1, 507):
            write(folder / ("imagesTr" if number == 1 else "imagesTs") / image.format(number))
        write(folder / "labelsTr" / label.format(1), labels(*values))
        (folder / "imagesTr" / f"._{image.format(1)}").write_bytes(b"left by a Macintosh")

    return make


def totalsegmentator(folder: Path) -> None:
    write(folder / "s0001" / "ct.nii.gz")
    write(folder / "s0001" / "segmentations" / "liver.nii.gz", labels(1))
    write(folder / "s0001" / "segmentations" / "spleen.nii.gz", labels(0, 1))
    write(folder / "s0002" / "mri.nii.gz")
    write(folder / "s0002" / "segmentations" / "spleen.nii.gz", labels(1))


def nnunet(folder: Path) -> None:
    write(folder / "imagesTr" / "a_0000.nii.gz")
    write(folder / "labelsTr" / "a.nii.gz", labels(4, 1, 2))
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": [1, 2], "tumor": 2, "spleen": 4},
        "file_ending": ".nii.gz",
        "name": "Dataset123_Livers",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def bids(folder: Path) -> None:
    write(folder / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    write(folder / "sub-01" / "anat" / "sub-01_T2w.nii.gz")
    write(folder / "derivatives" / "manual" / "sub-01" / "anat" / "sub-01_T2w_label-liver_mask.nii.gz", labels(1))
    write(folder / "sub-02" / "ses-1" / "ct" / "sub-02_ses-1_ct.nii.gz")
    write(folder / "sub-02" / "ses-1" / "ct" / "sub-02_ses-1_label-liver_mask.nii.gz", labels(1, 1))
    write(folder / "sub-02" / "ses-1" / "ct" / "sub-02_ses-1_label-lesion_mask.nii.gz", labels(0, 1))


CASES = [
    ("lits", lits, "lits-003", Modality.CT, (MANUAL, MANUAL), (labels(1, 1), labels(0, 1))),
    ("lits", lits, "lits-028", Modality.CT, (UNKNOWN, UNKNOWN), (None, None)),
    (
        "msd-liver",
        pair("liver_{}.nii.gz", "liver_{}.nii.gz", 1, 2),
        "msd03-001",
        Modality.CT,
        (MANUAL, MANUAL),
        (labels(1, 1), labels(0, 1)),
    ),
    (
        "msd-hepatic-vessel",
        pair("hepaticvessel_{:03d}.nii.gz", "hepaticvessel_{:03d}.nii.gz", 1, 2),
        "msd08-001",
        Modality.CT,
        (UNKNOWN, MANUAL),
        (None, labels(0, 1)),
    ),
    (
        "atlas",
        pair("im{}.nii.gz", "lb{}.nii.gz", 1, 2),
        "atlas-001",
        Modality.MR,
        (MANUAL, MANUAL),
        (labels(1, 1), labels(0, 1)),
    ),
    (
        "amos",
        pair("amos_{:04d}.nii.gz", "amos_{:04d}.nii.gz", 1, 6, 15),
        "amos-0001",
        Modality.CT,
        (MANUAL, UNKNOWN),
        (labels(0, 1), None),
    ),
    (
        "amos",
        pair("amos_{:04d}.nii.gz", "amos_{:04d}.nii.gz", 6),
        "amos-0507",
        Modality.MR,
        (UNKNOWN, UNKNOWN),
        (None, None),
    ),
    ("totalsegmentator", totalsegmentator, "ts-ct-s0001", Modality.CT, (MANUAL, UNKNOWN), (labels(1), None)),
    ("totalsegmentator", totalsegmentator, "ts-mr-s0002", Modality.MR, (UNKNOWN, UNKNOWN), (None, None)),
    ("nnunet", nnunet, "a", Modality.CT, (MANUAL, MANUAL), (labels(0, 1, 1), labels(0, 0, 1))),
    ("bids", bids, "sub-01_T1w", Modality.MR, (UNKNOWN, UNKNOWN), (None, None)),
    ("bids", bids, "sub-01_T2w", Modality.MR, (MANUAL, UNKNOWN), (labels(1), None)),
    ("bids", bids, "sub-02_ses-1_ct", Modality.CT, (MANUAL, MANUAL), (labels(1, 1), labels(0, 1))),
]


@pytest.mark.parametrize(("layout", "make", "case_id", "modality", "expected", "masks"), CASES)
def test_a_layout_is_recognised_and_read(
    layout: str,
    make: Callable[[Path], None],
    case_id: str,
    modality: Modality,
    expected: tuple[LabelState, LabelState],
    masks: tuple[Array | None, Array | None],
    tmp_path: Path,
    tiny: Params,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path / "data")
    case = found(tmp_path / "data", tiny)[case_id]
    assert f"layout {layout}: " in capsys.readouterr().err
    assert case.modality == modality
    assert states(case) == expected
    for structure, mask in zip(("liver", "tumour"), masks, strict=True):
        assert (getattr(case, structure) is not None) == (mask is not None)
        if mask is not None:
            assert np.array_equal(voxels(case, structure), mask)


@pytest.mark.parametrize(("layout", "make"), {(row[0], row[1]) for row in CASES if row[0] != "atlas"})
def test_no_other_layout_reads_it(layout: str, make: Callable[[Path], None], tmp_path: Path, tiny: Params) -> None:
    make(tmp_path)
    others = [name for name, other in LAYOUTS.items() if name != layout and other.recognise(tmp_path)]
    assert others == []


def test_a_challenge_volume_without_a_number_of_its_own_is_left_out(tmp_path: Path, tiny: Params) -> None:
    lits(tmp_path)
    assert sorted(found(tmp_path, tiny)) == ["lits-003", "lits-028"]


def test_a_value_that_the_layout_does_not_declare_is_refused(tmp_path: Path, tiny: Params) -> None:
    write(tmp_path / "volume-1.nii")
    write(tmp_path / "segmentation-1.nii", labels(1, 2, 7))
    with pytest.raises(Refusal, match=r"declared values \(0, 1, 2\) only: value 7"):
        voxels(found(tmp_path, tiny)["lits-001"], "liver")


def test_an_nnunet_set_of_several_channels_is_refused(tmp_path: Path, tiny: Params) -> None:
    nnunet(tmp_path)
    description = json.loads((tmp_path / "dataset.json").read_text())
    description["channel_names"] = {"0": "T1", "1": "T2"}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"channel_names has 2 channels, must have one"):
        found(tmp_path, tiny)


def test_a_folder_of_no_layout_is_refused_with_the_list_of_layouts(tmp_path: Path, tiny: Params) -> None:
    write(tmp_path / "something.nii.gz")
    with pytest.raises(DataError, match=r"no layout is recognised; there are table, msd-liver, .*, dicom"):
        found(tmp_path, tiny)


def test_a_layout_that_is_asked_for_and_not_there_finds_no_case(tmp_path: Path, tiny: Params) -> None:
    lits(tmp_path)
    with pytest.raises(DataError, match=r"layout amos finds no case"):
        found(tmp_path, tiny, layout="amos")


def test_a_zip_reads_as_the_folder_that_it_holds(tmp_path: Path, tiny: Params) -> None:
    lits(tmp_path / "LiTS")
    with zipfile.ZipFile(tmp_path / "LiTS.zip", "w") as archive:
        for path in sorted((tmp_path / "LiTS").rglob("*.nii")):
            archive.write(path, path.relative_to(tmp_path))
    with open_source(str(tmp_path / "LiTS.zip"), tiny.ingest) as cases:
        assert np.array_equal(voxels(cases[0], "tumour"), labels(0, 1))


@pytest.mark.parametrize("name", ["../outside.nii", "/etc/outside.nii", "a/../../outside.nii", "..\\outside.nii"])
def test_a_zip_that_writes_outside_its_folder_is_refused(name: str, tmp_path: Path, tiny: Params) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(name, b"0")
    with pytest.raises(DataError, match=r"leaves the folder"), open_source(str(tmp_path / "bad.zip"), tiny.ingest):
        pass
    assert not list(tmp_path.rglob("outside.nii"))


def test_a_zip_that_expands_beyond_all_measure_is_refused(
    tmp_path: Path, tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hepar.ingest.sources.archive.MIN_LIMIT_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10**7))
    with (
        pytest.raises(DataError, match=r"unpack to 10000000 bytes"),
        open_source(str(tmp_path / "bomb.zip"), tiny.ingest),
    ):
        pass
