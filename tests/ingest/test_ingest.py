"""Ingest: what is refused and in which words, and that one bad scan does not stop the others."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from hepar.cases import Cohort, LabelState, Modality, Split
from hepar.errors import DataError
from hepar.imaging.volumes import read_image, to_array, to_source_grid
from hepar.ingest.sources.source import SourceCase, VolumeFile
from hepar.ingest.sources.table import read_table
from hepar.ingest.summary import cohort_table
from hepar.params import AddedPhantoms, IngestParams, Params, SplitParams
from hepar.phantoms import write_phantoms
from hepar.runtime.artifacts import read_manifest
from hepar.stages.ingest import QUARANTINE, _ingest, run, split_of

SCAN = "phantom-ct-0006"  # it trains, and its tumour is drawn but not its liver
SPLIT = SplitParams(test=0.2, val=0.1)
Row = dict[str, str]


@dataclass(frozen=True)
class Source:
    """A folder of phantoms that a test may spoil."""

    folder: Path

    def rows(self) -> list[Row]:
        with (self.folder / "cohort.csv").open() as stream:
            return list(csv.DictReader(stream))

    def rewrite(self, rows: list[Row], columns: list[str] | None = None) -> None:
        names = columns or list(self.rows()[0])
        with (self.folder / "cohort.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    def change(self, file: str, edit: Callable[[sitk.Image], sitk.Image]) -> None:
        path = self.folder / file
        sitk.WriteImage(edit(sitk.ReadImage(str(path))), str(path))


@pytest.fixture
def source(tmp_path: Path, phantom_source: Path) -> Source:
    shutil.copytree(phantom_source, tmp_path / "source")
    return Source(tmp_path / "source")


def ingest(source: Source, params: IngestParams) -> Path:
    cohort = source.folder.parent / "cohort"
    run(str(source.folder), cohort, params)
    return cohort


def quarantine(cohort: Path) -> list[Row]:
    with (cohort / QUARANTINE).open() as stream:
        return list(csv.DictReader(stream))


def refusal(source: Source, params: IngestParams) -> str:
    with pytest.raises(DataError) as caught:
        ingest(source, params)
    assert not (source.folder.parent / "cohort").exists()
    return str(caught.value)


def spoil_with_nan(source: Source, case_id: str) -> None:
    """Set two voxels to NaN. The image becomes a NRRD file: ITK's NIfTI reader turns NaN into 0."""
    image = read_image(source.folder / case_id / "image.nii.gz")
    array = to_array(image).astype(np.float32)
    array[3, 4, 5:7] = np.nan
    spoiled = sitk.GetImageFromArray(array)
    spoiled.CopyInformation(image)
    sitk.WriteImage(spoiled, str(source.folder / case_id / "image.nrrd"))
    rows = source.rows()
    for row in rows:
        if row["case_id"] == case_id:
            row["image"] = f"{case_id}/image.nrrd"
    source.rewrite(rows)


def shifted(image: sitk.Image) -> sitk.Image:
    image.SetOrigin([value + 1 for value in image.GetOrigin()])
    return image


def test_a_sound_source_is_ingested_whole_in_one_orientation(source: Source, tiny: Params) -> None:
    folder = ingest(source, tiny.ingest)
    cohort = Cohort.load(folder)
    assert [case.case_id for case in cohort] == sorted(row["case_id"] for row in source.rows())
    assert quarantine(folder) == []
    for case in cohort:
        image = read_image(cohort.file(case.image))
        assert np.allclose(np.reshape(image.GetDirection(), (3, 3)), np.eye(3), atol=0.2)  # but for the table's tilt
        assert case.size == to_array(image).shape == (24, 40, 40)
        assert bool(case.liver) == (case.liver_state == LabelState.MANUAL)
        assert bool(case.tumour) == (case.tumour_state == LabelState.MANUAL)


def test_the_same_source_gives_the_same_cohort_byte_by_byte(source: Source, tiny: Params) -> None:
    first = read_manifest(ingest(source, tiny.ingest), "cohort").hash
    assert read_manifest(ingest(source, tiny.ingest), "cohort").hash == first


@pytest.mark.parametrize(
    ("file", "edit", "rule", "value"),
    [
        ("image", lambda image: image * 0, "an image has contrast", "every voxel is 0"),
        ("image", lambda image: image[:5, :, :], "an image has at least 8 voxels along each axis", "5×"),
        ("tumour", lambda mask: mask[:-1, :, :], "the tumour mask has the image's size", " but the image is "),
        ("tumour", shifted, "the tumour mask lies on the image's grid", " but the image has "),
        ("tumour", lambda mask: mask * 3, "the tumour mask holds 0 and 1 only", "value 3"),
        ("tumour", lambda mask: mask * 0, "a manual tumour mask is not empty", "no voxel"),
    ],
)
def test_a_case_that_breaks_a_rule_is_set_aside_with_rule_and_value(
    source: Source, tiny: Params, file: str, edit: Callable[[sitk.Image], sitk.Image], rule: str, value: str
) -> None:
    source.change(f"{SCAN}/{file}.nii.gz", edit)
    folder = ingest(source, tiny.ingest)
    (line,) = quarantine(folder)
    assert line["case_id"] == SCAN
    assert line["rule"].startswith(rule)
    assert value in line["value"]
    assert len(Cohort.load(folder)) == 7
    assert not (folder / "volumes" / SCAN).exists()


def test_a_file_on_which_a_library_breaks_sets_its_case_aside(
    source: Source, tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = VolumeFile.read

    def breaking(volume: VolumeFile) -> sitk.Image:
        if volume.path.parent.name == SCAN and volume.path.name.startswith("tumour"):
            raise AttributeError("Anna Example has no PixelData")
        return whole(volume)

    monkeypatch.setattr(VolumeFile, "read", breaking)
    (line,) = quarantine(ingest(source, tiny.ingest))
    assert line == {"case_id": SCAN, "rule": "every file can be read", "value": "VolumeFile ends in AttributeError"}


def test_a_file_that_is_missing_sets_its_case_aside(source: Source, tiny: Params) -> None:
    (source.folder / SCAN / "tumour.nii.gz").unlink()
    (line,) = quarantine(ingest(source, tiny.ingest))
    assert (line["case_id"], line["rule"]) == (SCAN, "every file can be read")
    assert line["value"].endswith("tumour.nii.gz does not exist")


def test_the_second_of_two_equal_scans_is_set_aside_also_if_it_is_stored_otherwise(
    source: Source, tiny: Params
) -> None:
    rows = source.rows()
    (original,) = (row for row in rows if row["case_id"] == SCAN)
    shutil.copytree(source.folder / SCAN, source.folder / "twin")
    for name in ("image", "tumour"):
        source.change(f"twin/{name}.nii.gz", lambda image: sitk.DICOMOrient(image, "PIR"))
    twin = {"case_id": "twin", "image": "twin/image.nii.gz", "tumour": "twin/tumour.nii.gz"}
    source.rewrite([*rows, {**original, **twin}])
    (line,) = quarantine(ingest(source, tiny.ingest))
    assert line == {"case_id": "twin", "rule": "no scan is there twice", "value": f"same voxels as case {SCAN}"}


def test_a_case_with_nan_is_set_aside_and_listed_below_the_accepted_ones(source: Source, tiny: Params) -> None:
    spoil_with_nan(source, SCAN)
    folder = ingest(source, tiny.ingest)
    assert quarantine(folder) == [
        {"case_id": SCAN, "rule": "an image is finite", "value": "2 voxels are NaN or infinite"}
    ]
    table = cohort_table(folder)
    assert table.case_id.tolist()[-1] == SCAN
    assert table.refused.tolist() == [""] * 7 + ["an image is finite: 2 voxels are NaN or infinite"]


def test_too_many_refused_cases_stop_the_stage(source: Source, tiny: Params) -> None:
    for case_id in (SCAN, "phantom-mr-0007"):
        spoil_with_nan(source, case_id)
    said = refusal(source, tiny.ingest)
    assert said.startswith("2 of 8 cases are refused, more than ingest.max_refused_share (0.2) allows")
    assert f"case {SCAN}: an image is finite: 2 voxels are NaN or infinite" in said
    enough = tiny.ingest.model_copy(update={"max_refused_share": 0.25})
    assert len(Cohort.load(ingest(source, enough))) == 6


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_source_without_one_of_the_modalities_is_refused(source: Source, tiny: Params, modality: str) -> None:
    source.rewrite([row for row in source.rows() if row["modality"] != modality])
    assert refusal(source, tiny.ingest).startswith(f"the cohort has no {modality} case")


def test_a_source_without_any_tumour_is_refused(source: Source, tiny: Params) -> None:
    source.rewrite([{**row, "tumour": "", "tumour_state": "unknown"} for row in source.rows()])
    assert refusal(source, tiny.ingest).startswith("the cohort has no training case with a manual tumour")


@pytest.mark.parametrize(
    ("split", "said"),
    [("train", "no CT test case"), ("test", "no CT training case with a manual liver")],
)
def test_a_source_that_cannot_be_split_is_refused(source: Source, tiny: Params, split: str, said: str) -> None:
    source.rewrite([{**row, "split": split} for row in source.rows()])
    assert said in refusal(source, tiny.ingest)


def test_a_patient_that_the_source_puts_in_two_splits_is_refused(source: Source, tiny: Params) -> None:
    source.rewrite([{**row, "patient_id": "p1"} for row in source.rows()])
    assert "patient p1: phantom-ct-0000 is in test but " in refusal(source, tiny.ingest)


def test_an_empty_or_missing_source_is_refused(source: Source, tiny: Params, tmp_path: Path) -> None:
    source.rewrite([])
    assert refusal(source, tiny.ingest) == f"{source.folder / 'cohort.csv'} lists no case"
    with pytest.raises(DataError, match="there is no such file or folder"):
        run(str(tmp_path / "none"), tmp_path / "cohort", tiny.ingest)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"modality": "PET"}, f"case {SCAN}: modality is 'PET', must be one of CT, MR"),
        ({"liver_state": "manual"}, f"case {SCAN}: liver_state is manual but column liver is empty"),
        ({"tumour_state": "unknown"}, f"case {SCAN}: tumour_state is unknown but column tumour is '"),
        ({"liver_state": "pseudo"}, f"case {SCAN}: liver_state is pseudo"),
        ({"case_id": "../up"}, "case id '../up' must be letters"),
    ],
)
def test_a_row_that_makes_no_sense_is_named(source: Source, tiny: Params, change: Row, said: str) -> None:
    source.rewrite([{**row, **change} if row["case_id"] == SCAN else row for row in source.rows()])
    assert said in refusal(source, tiny.ingest)


def test_a_missing_column_is_named(source: Source, tiny: Params) -> None:
    columns = [name for name in source.rows()[0] if name != "tumour_state"]
    source.rewrite(source.rows(), columns)
    assert "column tumour_state is missing" in refusal(source, tiny.ingest)


def test_the_split_of_a_patient_stays_as_the_cohort_grows(source: Source) -> None:
    rows = source.rows()
    columns = [name for name in rows[0] if name != "split"]
    splits = []
    for length in (4, 8):
        source.rewrite(rows[:length], columns)
        listed = read_table(source.folder / "cohort.csv")
        assert all(case.split is None for case in listed)
        splits.append({case.case_id: split_of(case, SPLIT) for case in listed})
    assert splits[0].items() <= splits[1].items()


def scan_of(patient: str) -> SourceCase:
    return SourceCase(
        case_id=f"{patient}-1",
        patient_id=patient,
        modality=Modality.CT,
        sequence="",
        image=Path("image.nii.gz"),
        liver=None,
        tumour=None,
        liver_state=LabelState.MANUAL,
        tumour_state=LabelState.UNKNOWN,
        split=None,
        source="table",
        licence="",
        distances_known=True,
    )


def test_patients_fall_into_splits_by_the_shares_asked_for() -> None:
    splits = [split_of(scan_of(f"p{number}"), SPLIT) for number in range(2000)]
    assert splits.count(Split.TEST) / 2000 == pytest.approx(0.2, abs=0.03)
    assert splits.count(Split.VAL) / 2000 == pytest.approx(0.1, abs=0.03)


def test_all_scans_of_a_patient_share_its_split_whatever_they_are() -> None:
    for number in range(50):
        scan = scan_of(f"p{number}")
        others = (replace(scan, modality=Modality.MR), replace(scan, liver_state=LabelState.UNKNOWN))
        assert {split_of(other, SPLIT) for other in others} == {split_of(scan, SPLIT)}


def test_added_phantoms_teach_and_are_never_held_out(source: Source, tiny: Params) -> None:
    own = {row["case_id"] for row in source.rows()}
    added = AddedPhantoms(CT=10, MR=0)
    cohort = Cohort.load(ingest(source, tiny.ingest.model_copy(update={"added_phantoms": added})))
    others = [case for case in cohort if case.case_id not in own]
    assert len(others) == 10
    assert {case.split for case in others} == {Split.TRAIN}
    assert {case.modality for case in others} == {Modality.CT}
    assert all(case.liver_state == case.tumour_state == LabelState.MANUAL for case in others)


def test_too_few_added_phantoms_are_refused() -> None:
    with pytest.raises(ValueError, match="3 phantoms are too few, must be 0 or at least 8"):
        AddedPhantoms(CT=0, MR=3)


def identity(path: Path) -> int:
    return path.stat().st_ino


def test_a_second_ingest_links_what_did_not_change_and_writes_what_did(source: Source, tiny: Params) -> None:
    folder = ingest(source, tiny.ingest)
    before = {case.case_id: (case, identity(folder / case.image)) for case in Cohort.load(folder)}
    tumour = next(row["tumour"] for row in source.rows() if row["case_id"] == SCAN)
    source.change(tumour, lambda mask: sitk.BinaryDilate(mask, (1, 1, 1)))
    after = {case.case_id: (case, identity(folder / case.image)) for case in Cohort.load(ingest(source, tiny.ingest))}
    assert after.keys() == before.keys()
    for case_id, (case, inode) in after.items():
        assert (case == before[case_id][0]) == (case_id != SCAN)
        assert (inode == before[case_id][1]) == (case_id != SCAN)


def test_linked_and_new_cohorts_have_the_same_content(source: Source, tiny: Params) -> None:
    rows = source.rows()
    source.rewrite(rows[:-2])
    ingest(source, tiny.ingest.model_copy(update={"max_refused_share": 1.0}))
    source.rewrite(rows)
    grown = read_manifest(ingest(source, tiny.ingest), "cohort").hash
    shutil.rmtree(source.folder.parent / "cohort")
    assert read_manifest(ingest(source, tiny.ingest), "cohort").hash == grown


def test_cases_done_by_several_processes_are_those_of_one(
    source: Source, tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = read_manifest(ingest(source, tiny.ingest), "cohort").hash
    shutil.rmtree(source.folder.parent / "cohort")
    monkeypatch.setattr("hepar.stages.ingest.MIN_PARALLEL_CASES", 1)
    assert read_manifest(ingest(source, tiny.ingest), "cohort").hash == one


def test_the_quarantine_list_survives_a_failed_ingest(source: Source, tiny: Params) -> None:
    for row in source.rows():
        source.change(row["image"], lambda image: image * 0)
    assert "cohort.quarantine.csv lists them" in refusal(source, tiny.ingest)
    with (source.folder.parent / "cohort.quarantine.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 8


def flip(axis: int) -> Callable[[sitk.Image], sitk.Image]:
    def edit(mask: sitk.Image) -> sitk.Image:
        flipped = sitk.GetImageFromArray(np.flip(sitk.GetArrayFromImage(mask), axis))
        flipped.CopyInformation(mask)
        return flipped

    return edit


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_liver_is_refused(axis: int, tmp_path: Path, tiny: Params) -> None:
    write_phantoms(tmp_path / "source", cases=8, seed=5, size_zyx=(40, 60, 60))
    source = Source(tmp_path / "source")
    row = next(row for row in source.rows() if row["liver"] and row["tumour"] and row["split"] == "val")
    for name in ("liver", "tumour"):
        source.change(row[name], flip(axis))
    (line,) = quarantine(ingest(source, tiny.ingest))
    assert line["case_id"] == row["case_id"]
    assert "lies" in line["rule"]


def test_mr_declared_as_ct_and_ct_declared_as_mr_are_refused(source: Source, tiny: Params) -> None:
    other = {"CT": "MR", "MR": "CT"}
    for number in (6, 7):
        rows = source.rows()
        rows[number]["modality"] = other[rows[number]["modality"]]
        source.rewrite(rows)
        lines = quarantine(ingest(source, tiny.ingest.model_copy(update={"max_refused_share": 1.0})))
        assert rows[number]["case_id"] in {
            line["case_id"] for line in lines if "values of an image are those of its modality" in line["rule"]
        }


def test_a_header_that_claims_a_tebibyte_allocates_nothing(source: Source, tiny: Params) -> None:
    header = "ObjectType = Image\nNDims = 3\nDimSize = 10000 10000 10000\nElementType = MET_UCHAR\n"
    (source.folder / SCAN / "image.mha").write_text(header + "ElementDataFile = LOCAL\n")
    rows = source.rows()
    for row in rows:
        if row["case_id"] == SCAN:
            row["image"] = f"{SCAN}/image.mha"
    source.rewrite(rows)
    (line,) = quarantine(ingest(source, tiny.ingest))
    assert "claims 10000×10000×10000 voxels, but the file has" in line["value"]


@pytest.mark.parametrize("column", ["case_id", "patient_id"])
def test_an_official_split_goes_before_all_others(column: str, source: Source, tiny: Params, tmp_path: Path) -> None:
    before = {case.case_id: case.split for case in Cohort.load(ingest(source, tiny.ingest))}
    moved = next(
        row for row in source.rows() if before[row["case_id"]] == Split.TRAIN and row["liver_state"] == "unknown"
    )
    assert moved["case_id"] != moved["patient_id"]
    (tmp_path / "split.csv").write_text(f"{column},split\n{moved[column]},val\nsomebody-else,test\n")
    params = tiny.ingest.model_copy(update={"split_from": str(tmp_path / "split.csv")})
    after = {case.case_id: case.split for case in Cohort.load(ingest(source, params))}
    changed = {case_id for case_id in before if before[case_id] != after[case_id]}
    patients = {row["case_id"]: row["patient_id"] for row in source.rows()}
    assert moved["case_id"] in changed
    assert {patients[case_id] for case_id in changed} == {moved["patient_id"]}
    assert {after[case_id] for case_id in changed} == {Split.VAL}


def test_the_splits_of_an_earlier_cohort_are_kept(source: Source, tiny: Params, tmp_path: Path) -> None:
    earlier = ingest(source, tiny.ingest).rename(tmp_path / "earlier")
    other = SplitParams(test=0.9, val=0.05)
    params = tiny.ingest.model_copy(update={"split": other, "split_from": str(earlier)})
    splits = {case.case_id: case.split for case in Cohort.load(ingest(source, params))}
    assert splits == {case.case_id: case.split for case in Cohort.load(earlier)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("case_id,split\nphantom-ct-0000,testing\n", "split is 'testing'"),
        ("case_id,split\nx,test\nx,train\n", "x is in test and in train"),
        ("case_id,part\nx,test\n", "needs columns case_id or patient_id, and split"),
        ("case_id,split\nx,test\n", "names none of the source's cases and patients"),
    ],
)
def test_a_split_table_that_is_wrong_is_named(
    content: str, words: str, source: Source, tiny: Params, tmp_path: Path
) -> None:
    (tmp_path / "split.csv").write_text(content)
    with pytest.raises(DataError) as caught:
        ingest(source, tiny.ingest.model_copy(update={"split_from": str(tmp_path / "split.csv")}))
    assert words in str(caught.value)


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
    (case,), refused = _ingest(read_table(folder / "table.csv"), folder / "cohort", SPLIT, None)
    assert refused == []
    for name, original in originals.items():
        back = to_source_grid(read_image(folder / "cohort" / getattr(case, name)), case.header)
        assert np.array_equal(to_array(back), to_array(original))
        assert (back.GetOrigin(), back.GetSpacing()) == (original.GetOrigin(), original.GetSpacing())
        assert back.GetDirection() == original.GetDirection()
    with pytest.raises(DataError, match="is none of a source with"):
        to_source_grid(back[1:, :, :], case.header)


@pytest.mark.parametrize("written", [1, 5])
def test_a_killed_ingest_leaves_nothing_and_the_next_one_gives_the_same_bytes(
    written: int, phantom_source: Path, tmp_path: Path, tiny: Params
) -> None:
    cohort, whole = tmp_path / "cohort", tmp_path / "whole"
    run(str(phantom_source), whole, tiny.ingest)
    code = "import sys; from hepar.cli.main import main; main()"
    command = [sys.executable, "-c", code, "ingest", "--source", phantom_source, "--cohort", cohort]
    victim = subprocess.Popen(
        [*command, "--params", ROOT / "params" / "tiny.yaml"], stderr=subprocess.DEVNULL, start_new_session=True
    )
    partial = tmp_path / ".cohort.partial" / "volumes"
    while victim.poll() is None and len(list(partial.glob("*/image.nii.gz"))) < written:
        time.sleep(0.001)
    os.killpg(victim.pid, signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert not cohort.exists()
    run(str(phantom_source), cohort, tiny.ingest)
    assert read_manifest(cohort, "cohort") == read_manifest(whole, "cohort")
    for path in whole.rglob("*.*"):
        assert (cohort / path.relative_to(whole)).read_bytes() == path.read_bytes()
