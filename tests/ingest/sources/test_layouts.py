"""Public layouts: written as their data sets are, recognised, and read back with states and masks."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import Encoding, phantom_voxels, write_series

from hepar.cases import LabelState, Modality
from hepar.errors import DataError, Refusal, StorageError
from hepar.ingest.building import build_case
from hepar.ingest.quarantine import Refused
from hepar.ingest.sources import LAYOUTS, open_source
from hepar.ingest.sources.archive import unpacked
from hepar.ingest.sources.source import SourceCase
from hepar.params import Params

MANUAL, UNKNOWN = LabelState.MANUAL, LabelState.UNKNOWN
Array = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def labels(*values: int) -> Array:
    """A label map with a box of each value, four voxels wide, side by side along x."""
    labels_zyx = np.zeros((9, 10, 24), np.uint8)
    for number, value in enumerate(values):
        labels_zyx[2:6, 3:7, 1 + 4 * number : 5 + 4 * number] = value
    return labels_zyx


def write(path: Path, voxels_zyx: Array | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if voxels_zyx is None:
        voxels_zyx = np.random.default_rng(len(str(path))).integers(0, 99, (9, 10, 24)).astype(np.uint8)
    image = sitk.GetImageFromArray(voxels_zyx)
    image.SetSpacing((1.5, 2.0, 3.0))
    sitk.WriteImage(image, str(path))


def found(folder: Path, tiny: Params, layout: str = "auto") -> dict[str, SourceCase]:
    with open_source(str(folder), tiny.ingest.model_copy(update={"layout": layout})) as cases:
        return {case.case_id: case for case in cases}


def voxels(case: SourceCase, structure: str) -> Array:
    volume = getattr(case, structure)
    assert volume is not None
    return np.asarray(sitk.GetArrayFromImage(volume.read()))


def lits(folder: Path) -> None:
    write(folder / "batch 1" / "volume-3.nii")
    write(folder / "batch 1" / "segmentation-3.nii", labels(1, 2))
    write(folder / "batch 2" / "volume-28.nii")
    write(folder / "test-volume-1.nii")


def pair(image: str, label: str, *values: int) -> Callable[[Path], None]:
    """A writer of `imagesTr` and `labelsTr`, with one labelled and one unlabelled image."""

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


@dataclass(frozen=True)
class Example:
    """A case that a layout's reader must find: its states, and its masks where there are any."""

    layout: str
    make: Callable[[Path], None]
    case_id: str
    modality: Modality
    liver_state: LabelState
    tumour_state: LabelState
    liver_zyx: Array | None = None
    tumour_zyx: Array | None = None


MSD_LIVER = pair("liver_{}.nii.gz", "liver_{}.nii.gz", 1, 2)
MSD_VESSEL = pair("hepaticvessel_{:03d}.nii.gz", "hepaticvessel_{:03d}.nii.gz", 1, 2)
ATLAS = pair("im{}.nii.gz", "lb{}.nii.gz", 1, 2)
AMOS_CT = pair("amos_{:04d}.nii.gz", "amos_{:04d}.nii.gz", 1, 6, 15)
AMOS_MR = pair("amos_{:04d}.nii.gz", "amos_{:04d}.nii.gz", 6)
CT, MR = Modality.CT, Modality.MR
EXAMPLES = [
    Example("lits", lits, "lits-003", CT, MANUAL, MANUAL, labels(1, 1), labels(0, 1)),
    Example("lits", lits, "lits-028", CT, UNKNOWN, UNKNOWN),
    Example("msd-liver", MSD_LIVER, "msd03-001", CT, MANUAL, MANUAL, labels(1, 1), labels(0, 1)),
    Example("msd-hepatic-vessel", MSD_VESSEL, "msd08-001", CT, UNKNOWN, MANUAL, None, labels(0, 1)),
    Example("atlas", ATLAS, "atlas-001", MR, MANUAL, MANUAL, labels(1, 1), labels(0, 1)),
    Example("amos", AMOS_CT, "amos-0001", CT, MANUAL, UNKNOWN, labels(0, 1)),
    Example("amos", AMOS_MR, "amos-0507", MR, UNKNOWN, UNKNOWN),
    Example("totalsegmentator", totalsegmentator, "ts-ct-s0001", CT, MANUAL, UNKNOWN, labels(1)),
    Example("totalsegmentator", totalsegmentator, "ts-mr-s0002", MR, UNKNOWN, UNKNOWN),
    Example("nnunet", nnunet, "a", CT, MANUAL, MANUAL, labels(0, 1, 1), labels(0, 0, 1)),
    Example("bids", bids, "sub-01_T1w", MR, UNKNOWN, UNKNOWN),
    Example("bids", bids, "sub-01_T2w", MR, MANUAL, UNKNOWN, labels(1)),
    Example("bids", bids, "sub-02_ses-1_ct", CT, MANUAL, MANUAL, labels(1, 1), labels(0, 1)),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.layout}-{example.case_id}")
def test_a_layout_is_recognised_and_read(
    example: Example, tmp_path: Path, tiny: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    example.make(tmp_path / "data")
    case = found(tmp_path / "data", tiny)[example.case_id]
    assert f"layout {example.layout}: " in capsys.readouterr().err
    assert case.modality == example.modality
    assert (case.liver_state, case.tumour_state) == (example.liver_state, example.tumour_state)
    for structure, mask_zyx in (("liver", example.liver_zyx), ("tumour", example.tumour_zyx)):
        assert (getattr(case, structure) is not None) == (mask_zyx is not None)
        if mask_zyx is not None:
            assert np.array_equal(voxels(case, structure), mask_zyx)


@pytest.mark.parametrize(("layout", "make"), dict.fromkeys((e.layout, e.make) for e in EXAMPLES if e.layout != "atlas"))
def test_no_other_layout_recognises_it(layout: str, make: Callable[[Path], None], tmp_path: Path, tiny: Params) -> None:
    make(tmp_path)
    others = [name for name, other in LAYOUTS.items() if name != layout and other.recognise(tmp_path)]
    assert others == []


def test_masks_of_ircadb_that_keep_the_intercept_of_the_ct_are_not_empty(tmp_path: Path, tiny: Params) -> None:
    patient, hu_of_zero = tmp_path / "3Dircadb1.4", -1024
    mask_zyx = np.zeros((12, 20, 24), np.int16)
    mask_zyx[3:6, 5:10, 5:10] = 255
    write_series(patient / "PATIENT_DICOM", phantom_voxels())
    for name in ("liver", "livertumor1"):
        write_series(patient / "MASKS_DICOM" / name, mask_zyx + hu_of_zero, encoding=Encoding(intercept=hu_of_zero))
    case = found(tmp_path, tiny)["ircadb-04"]
    assert case.tumour_state == MANUAL
    for structure in ("liver", "tumour"):
        assert np.array_equal(voxels(case, structure), mask_zyx // 255)


def test_the_test_volumes_of_the_challenge_are_left_out(tmp_path: Path, tiny: Params) -> None:
    lits(tmp_path)
    assert sorted(found(tmp_path, tiny)) == ["lits-003", "lits-028"]


@pytest.mark.parametrize(("name", "prefix"), [("volume-{}.nii", "lits"), ("imagesTr/liver_{}.nii.gz", "msd03")])
def test_scans_of_one_lits_patient_share_it(name: str, prefix: str, tmp_path: Path, tiny: Params) -> None:
    for number in range(6, 17):
        write(tmp_path / name.format(number))
    shared = {8: 7, 9: 7, 10: 7, 15: 14}
    patients = {case_id: case.patient_id for case_id, case in found(tmp_path, tiny).items()}
    assert patients == {f"{prefix}-{n:03d}": f"{prefix}-{shared.get(n, n):03d}" for n in range(6, 17)}


def test_a_value_that_the_layout_does_not_declare_is_refused(tmp_path: Path, tiny: Params) -> None:
    write(tmp_path / "volume-1.nii")
    write(tmp_path / "segmentation-1.nii", labels(1, 2, 7))
    with pytest.raises(Refusal, match=r"contains only declared values \(0, 1, 2\): value 7"):
        voxels(found(tmp_path, tiny)["lits-001"], "liver")


def test_an_nnunet_set_of_several_channels_is_refused(tmp_path: Path, tiny: Params) -> None:
    nnunet(tmp_path)
    description = json.loads((tmp_path / "dataset.json").read_text())
    description["channel_names"] = {"0": "T1", "1": "T2"}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"channel_names has 2 channels but must have one"):
        found(tmp_path, tiny)


def test_a_folder_of_no_layout_is_refused_with_the_list_of_layouts(tmp_path: Path, tiny: Params) -> None:
    write(tmp_path / "something.nii.gz")
    with pytest.raises(DataError, match=r"layout not recognised; known layouts: table, msd-liver, .*, dicom"):
        found(tmp_path, tiny)


def test_a_layout_that_does_not_fit_finds_no_case(tmp_path: Path, tiny: Params) -> None:
    lits(tmp_path)
    with pytest.raises(DataError, match=r"no cases found for layout amos"):
        found(tmp_path, tiny, layout="amos")


@pytest.mark.parametrize("place", ["LiTS.zip", "LiTS.ZIP", "folder/LiTS.ZIP"])
def test_a_zip_reads_as_the_folder_inside(place: str, tmp_path: Path, tiny: Params) -> None:
    lits(tmp_path / "LiTS")
    (tmp_path / place).parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(tmp_path / place, "w") as archive:
        for path in sorted((tmp_path / "LiTS").rglob("*.nii")):
            archive.write(path, path.relative_to(tmp_path))
    with open_source(str(tmp_path / Path(place).parts[0]), tiny.ingest) as cases:
        assert np.array_equal(voxels(cases[0], "tumour"), labels(0, 1))


@pytest.mark.parametrize("name", ["../outside.nii", "/etc/outside.nii", "a/../../outside.nii", "..\\outside.nii"])
def test_a_zip_that_writes_outside_its_folder_is_refused(name: str, tmp_path: Path, tiny: Params) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(name, b"0")
    with pytest.raises(DataError, match=r"leaves the folder"), open_source(str(tmp_path / "bad.zip"), tiny.ingest):
        pass
    assert not list(tmp_path.rglob("outside.nii"))


def test_a_zip_bomb_is_refused(tmp_path: Path, tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hepar.ingest.sources.archive.MIN_LIMIT_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10**7))
    with (
        pytest.raises(DataError, match=r"unpacks to 10000000 bytes"),
        open_source(str(tmp_path / "bomb.zip"), tiny.ingest),
    ):
        pass


def zipped(path: Path, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{path.stem}/file", content)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_zip_is_refused_and_the_others_are_read(compression: int, tmp_path: Path, tiny: Params) -> None:
    lits(tmp_path / "LiTS")
    zipped(tmp_path / "LiTS" / "GRIMALDI.zip", np.random.default_rng(0).bytes(5000), compression)
    content = bytearray((tmp_path / "LiTS" / "GRIMALDI.zip").read_bytes())
    content[200:400] = bytes(200)
    (tmp_path / "LiTS" / "GRIMALDI.zip").write_bytes(content)
    zipped(tmp_path / "LiTS" / "good.zip", b"x")
    with open_source(str(tmp_path / "LiTS"), tiny.ingest) as cases:
        *good, bad = cases
        assert len(good) == 2
        assert all(case.fault is None for case in good)
        refused = build_case(bad, tmp_path)
    assert isinstance(refused, Refused)
    assert (refused.case_id, refused.rule) == ("zip-1", "every zip can be unpacked")
    assert refused.value.startswith("zip 1 of 2, ordered by path: it is damaged (")
    with (
        pytest.raises(DataError, match=r"GRIMALDI\.zip cannot be unpacked: it is damaged \("),
        open_source(str(tmp_path / "LiTS" / "GRIMALDI.zip"), tiny.ingest),
    ):
        pass


def test_all_zips_of_a_folder_have_one_limit_together(
    tmp_path: Path, tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hepar.ingest.sources.archive.MIN_LIMIT_BYTES", 25_000)
    monkeypatch.setattr("hepar.ingest.sources.archive.MAX_EXPANSION", 1)
    lits(tmp_path / "LiTS")
    for name in "abcd":
        zipped(tmp_path / "LiTS" / f"{name}.zip", bytes(10_000))
    with open_source(str(tmp_path / "LiTS"), tiny.ingest) as cases:
        faults = [str(case.fault) for case in cases if case.fault]
    assert faults == [
        f"every zip can be unpacked: zip {number} of 4, ordered by path: it unpacks to 10000 bytes, more than 5000"
        for number in (3, 4)
    ]


def test_a_zip_of_zips_reads_as_the_folders_inside(
    tmp_path: Path, tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 3D-IRCADb is published; a damaged zip, or one beyond what the outer zip may unpack to, is refused alone."""
    lits(tmp_path / "LiTS")
    for path in sorted((tmp_path / "LiTS").rglob("*.nii")):
        with zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path, path.name)
        path.unlink()
    (tmp_path / "LiTS" / "a-damaged.zip").write_bytes(b"PK")
    zipped(tmp_path / "LiTS" / "z-bomb.zip", bytes(10**7))
    monkeypatch.setattr("hepar.ingest.sources.archive.MIN_LIMIT_BYTES", 1_000_000)
    with zipfile.ZipFile(tmp_path / "LiTS.zip", "w") as outer:
        for path in sorted((tmp_path / "LiTS").rglob("*.zip")):
            outer.write(path, path.relative_to(tmp_path))
    with open_source(str(tmp_path / "LiTS.zip"), tiny.ingest) as cases:
        read = [case for case in cases if case.fault is None]
        faults = [case.fault.value for case in cases if case.fault is not None]
        assert len(read) == 2
        assert np.array_equal(voxels(read[0], "tumour"), labels(0, 1))
    damaged, bomb = faults
    assert damaged == "zip 1 of 6, ordered by path: it is damaged (BadZipFile)"
    assert "it unpacks to 10000000 bytes, more than " in bomb


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("within", ["folder", "zip"])
def test_a_zip_harms_nothing_that_lies_beside_it(within: str, tmp_path: Path) -> None:
    """Neither the folder that was unpacked from it, nor a file of its name; what a Macintosh adds is no zip."""
    source = tmp_path / "scans"
    for name in ("P1", "P3"):
        (source / name).mkdir(parents=True)
        (source / name / "file").write_bytes(b"beside")
    (source / "P2").write_bytes(b"a file without an ending")
    (source / "._P1.zip").write_bytes(b"left by a Macintosh")
    for name in ("P1", "P2", "P4"):
        zipped(source / f"{name}.zip", b"inside")
    (source / "P3.zip").write_bytes(b"PK damaged")
    if within == "zip":
        source = Path(shutil.make_archive(str(source), "zip", source))
    with unpacked(source) as opened:
        read = {name: content for name, content in tree(opened.folder).items() if not name.startswith(".")}
        assert [case.fault.value for case in opened.refused if case.fault] == [
            "zip 3 of 4, ordered by path: it is damaged (BadZipFile)"
        ]
    inside = dict.fromkeys(("P1-2/file", "P2-2/file", "P4/file"), b"inside")
    assert read == {"P1/file": b"beside", "P3/file": b"beside", "P2": b"a file without an ending", **inside}


def test_a_disk_too_small_for_a_zip_is_no_fault_of_the_zip(
    tmp_path: Path, tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped(tmp_path / "a.zip", bytes(10_000))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=9_999))
    with (
        pytest.raises(StorageError, match=r"a\.zip unpacks to 10000 bytes, but .* has 9999"),
        open_source(str(tmp_path / "a.zip"), tiny.ingest),
    ):
        pass
