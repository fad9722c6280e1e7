"""Two folders of label maps: how they are matched, read and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from label_maps import SHAPE, label_map, write_labels

from hepar.cases import LabelState, Modality
from hepar.errors import DataError, ParamsError
from hepar.evaluation.mask_folders import UNKNOWN_MODALITY, LabelValues, list_masks, match_masks, read_pair

LABELS = LabelValues((1,), (2,))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Reference and prediction of the cases a and b; the prediction is shifted by one column."""
    for case_id in ("a", "b"):
        write_labels(tmp_path / "reference" / f"{case_id}.nii.gz", label_map())
        write_labels(tmp_path / "prediction" / f"{case_id}.nii.gz", label_map((3, 13), (5, 7)))
    return tmp_path / "reference", tmp_path / "prediction"


def write_table(folder: Path, text: str) -> Path:
    (folder / "cases.csv").write_text(text)
    return folder / "cases.csv"


def test_labels_are_read_as_they_are_described() -> None:
    assert LabelValues.parse("liver=1,tumour=2") == LABELS
    many = LabelValues.parse(" tumour = 3, liver=6,tumour=9,background=4 ")
    assert many == LabelValues((6,), (3, 9), (4,))
    assert LabelValues.parse(many.describe()) == many
    assert LabelValues.parse("tumour=1").structures() == {1}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'' is not NAME=VALUE"),
        ("liver", "'liver' is not NAME=VALUE"),
        ("liver=0", "'liver=0' is not"),
        ("liver=-1", "'liver=-1' is not"),
        ("liver=1.5", "'liver=1.5' is not"),
        ("spleen=1", "'spleen=1' is not NAME=VALUE with a name of liver, tumour, background"),
        ("liver=1,tumour=1", "but 1 occurs twice"),
        ("background=3", "neither liver nor tumour has a value"),
    ],
)
def test_labels_that_mean_nothing_are_refused(text: str, problem: str) -> None:
    with pytest.raises(ParamsError, match=problem):
        LabelValues.parse(text)


def test_files_are_matched_by_name_without_the_ending(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    (tmp_path / "prediction" / "a.nii.gz").unlink()
    write_labels(tmp_path / "prediction" / "a.mha", label_map())
    (tmp_path / "prediction" / "dataset.json").write_text("{}")
    (tmp_path / "prediction" / "._b.nii.gz").write_text("of another system")
    pairs = match_masks(*folders, None, None)
    assert [(pair.reference.name, pair.prediction.name) for pair in pairs] == [
        ("a.nii.gz", "a.mha"),
        ("b.nii.gz", "b.nii.gz"),
    ]
    identity = pairs[0].facts.identity
    assert (identity.patient_id, identity.modality) == ("a", UNKNOWN_MODALITY)
    assert match_masks(*folders, None, Modality.MR)[0].facts.identity.modality == "MR"


def test_the_liver_includes_its_tumours_in_both(folders: tuple[Path, Path]) -> None:
    case = read_pair(match_masks(*folders, None, None)[0], LABELS, LABELS)
    assert case.liver.reference_zyx is not None
    assert case.tumour.reference_zyx is not None
    assert [mask.sum() for mask in (case.liver.reference_zyx, case.liver.prediction_zyx)] == [320, 320]
    assert [mask.sum() for mask in (case.tumour.reference_zyx, case.tumour.prediction_zyx)] == [64, 64]
    assert (case.tumour.reference_zyx & case.tumour.prediction_zyx).sum() == 32
    assert case.spacing_zyx_mm == pytest.approx((4, 2, 2))
    assert case.distances_known


def test_masks_are_turned_to_the_canonical_orientation(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(label_map((0, 3), (0, 1)))
    image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
    for name in ("reference", "prediction"):
        (tmp_path / name).mkdir()
        sitk.WriteImage(image, str(tmp_path / name / "a.nii"))
    case = read_pair(match_masks(tmp_path / "reference", tmp_path / "prediction", None, None)[0], LABELS, LABELS)
    assert sorted(set(np.nonzero(case.tumour.prediction_zyx)[2].tolist())) == [SHAPE[2] - 1]


def test_the_same_masks_in_another_order_of_axes_are_scored(folders: tuple[Path, Path]) -> None:
    path = folders[1] / "a.nii.gz"
    same = read_pair(match_masks(*folders, None, None)[0], LABELS, LABELS)
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "SAR"), str(path))
    turned = read_pair(match_masks(*folders, None, None)[0], LABELS, LABELS)
    assert turned.spacing_zyx_mm == same.spacing_zyx_mm
    assert np.array_equal(turned.tumour.prediction_zyx, same.tumour.prediction_zyx)
    assert np.array_equal(turned.tumour.reference_zyx, same.tumour.reference_zyx)


def test_two_folders_may_have_labels_of_their_own_and_other_organs(tmp_path: Path) -> None:
    reference_zyx, prediction_zyx = label_map(), label_map().astype(np.float32)
    prediction_zyx[prediction_zyx > 0] += 4  # liver 5, tumour 6
    prediction_zyx[0] = 7
    write_labels(tmp_path / "reference" / "a.nii", reference_zyx)
    write_labels(tmp_path / "prediction" / "a.nii", prediction_zyx)
    (pair,) = match_masks(tmp_path / "reference", tmp_path / "prediction", None, None)
    case = read_pair(pair, LABELS, LabelValues.parse("liver=5,tumour=6,background=7"))
    assert np.array_equal(case.liver.reference_zyx, case.liver.prediction_zyx)
    assert np.array_equal(case.tumour.reference_zyx, case.tumour.prediction_zyx)
    liver_alone = read_pair(pair, LABELS, LabelValues.parse("liver=5,liver=6,background=7"))
    assert liver_alone.tumour.reference_zyx is None  # the prediction does not show tumours
    assert np.array_equal(liver_alone.liver.reference_zyx, liver_alone.liver.prediction_zyx)


def test_a_table_gives_patient_modality_source_and_states(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    table = write_table(
        tmp_path,
        "case_id,patient_id,modality,sequence,source,liver_state,tumour_state,split,spacing_known,image\n"
        "a,p1,MR,T1,own,manual,unknown,train,no,missing.nii\n"
        "b,p1,,,,unknown,,test,,\n"
        "elsewhere,p2,CT,,own,manual,absent,val,,\n",
    )
    first, second = match_masks(*folders, table, Modality.CT)
    assert first.facts.identity.__dict__ == {
        "case_id": "a",
        "patient_id": "p1",
        "modality": "MR",
        "sequence": "T1",
        "source": "own",
    }
    assert not first.facts.distances_known
    assert (second.facts.identity.modality, second.facts.identity.patient_id) == ("CT", "p1")
    unknown_tumour, unknown_liver = (read_pair(pair, LABELS, LABELS) for pair in (first, second))
    assert unknown_tumour.tumour.reference_zyx is None
    assert unknown_tumour.liver.reference_zyx is not None
    assert unknown_tumour.liver.reference_zyx.sum() == 320
    assert unknown_liver.liver.reference_zyx is None
    assert unknown_liver.tumour.reference_zyx is not None


def test_the_table_of_a_report_says_what_is_unknown(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    rows = "case_id,distances_known,liver_known,tumour_known\na,False,True,False\nb,True,False,True\n"
    first, second = (pair.facts for pair in match_masks(*folders, write_table(tmp_path, rows), None))
    assert (first.states, first.distances_known) == ((LabelState.MANUAL, LabelState.UNKNOWN), False)
    assert (second.states, second.distances_known) == ((LabelState.UNKNOWN, LabelState.MANUAL), True)


def test_columns_of_a_source_come_before_those_of_a_report(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    rows = (
        "case_id,liver_known,liver_state,tumour_known,tumour_state,distances_known,spacing_known\n"
        "a,True,unknown,False,manual,True,no\n"
        "b,False,,False,,False,\n"
    )
    first, second = (pair.facts for pair in match_masks(*folders, write_table(tmp_path, rows), None))
    assert (first.states, first.distances_known) == ((LabelState.UNKNOWN, LabelState.MANUAL), False)
    assert (second.states, second.distances_known) == ((LabelState.UNKNOWN, LabelState.UNKNOWN), False)


@pytest.mark.parametrize(
    ("cell", "known"),
    [("YES", True), ("True", True), ("1", True), ("No", False), ("FALSE", False), ("0", False), ("approximate", False)],
)
def test_a_voxel_size_is_known_or_nominal(tmp_path: Path, folders: tuple[Path, Path], cell: str, known: bool) -> None:
    table = write_table(tmp_path, f"case_id,spacing_known\na,{cell}\nb,\n")
    assert [pair.facts.distances_known for pair in match_masks(*folders, table, None)] == [known, True]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ("case_id\na\n", "case b: .*cases.csv has no row for .*b.nii.gz"),
        ("name\na\nb\n", "column case_id is missing; columns are name"),
        ("case_id,modality\na,PET\nb,CT\n", "case a: modality is 'PET' but must be one of CT, MR"),
        (
            "case_id,tumour_state\na,pseudo\nb,\n",
            "case a: tumour_state is pseudo but a reference must be one of manual",
        ),
        (
            "case_id,spacing_known\na,\nb,Y\n",
            "case b: spacing_known is 'Y' but must be one of yes, true, 1, no, .*, appr",
        ),
        (
            "case_id,distances_known\na,1.0\nb,\n",
            "case a: distances_known is '1.0' but must be one of yes, true, 1, no,",
        ),
        (
            "case_id,tumour_known\na,ture\nb,\n",
            "case a: tumour_known is 'ture' but must be one of yes, true, 1, no, fa",
        ),
        ("case_id,liver_state\na,maybe\nb,\n", "case a: liver_state is 'maybe' but must be one of"),
        ("case_id\na\nb\na\n", "case a: the id is used twice"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused(
    tmp_path: Path, folders: tuple[Path, Path], rows: str, problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        match_masks(*folders, write_table(tmp_path, rows), None)


def test_a_tumour_in_a_case_that_is_free_of_tumours_is_refused(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    table = write_table(tmp_path, "case_id,tumour_state\na,absent\nb,\n")
    with pytest.raises(DataError, match=r"case a: tumour_state is absent but .*a\.nii\.gz has 64 tumour voxels"):
        read_pair(match_masks(*folders, table, None)[0], LABELS, LABELS)


def test_files_without_a_counterpart_are_refused(folders: tuple[Path, Path]) -> None:
    reference, prediction = folders
    write_labels(reference / "c.nii.gz", label_map())
    with pytest.raises(DataError, match=r"case c: .*reference/c\.nii\.gz has no counterpart .* in .*prediction$"):
        match_masks(reference, prediction, None, None)
    (reference / "b.nii.gz").unlink()
    (reference / "c.nii.gz").unlink()
    with pytest.raises(DataError, match=r"case b: .*prediction/b\.nii\.gz has no counterpart .* in .*reference$"):
        match_masks(reference, prediction, None, None)


def test_folders_without_masks_or_with_two_of_a_name_are_refused(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no label map"):
        list_masks(tmp_path / "empty")
    with pytest.raises(DataError, match="nowhere is not a folder"):
        list_masks(tmp_path / "nowhere")
    write_labels(tmp_path / "reference" / "a.nrrd", label_map())
    with pytest.raises(DataError, match=r"case a: .*reference has both a\.nii\.gz and a\.nrrd"):
        list_masks(tmp_path / "reference")


@pytest.mark.parametrize(
    ("labels_zyx", "spacing_zyx_mm", "problem"),
    [
        (
            label_map() * 2,
            (4.0, 2.0, 2.0),
            "64 voxels of an unnamed value, such as 4, but labels are background=0,liver=1",
        ),
        (label_map() * np.float32(0.5), (4.0, 2.0, 2.0), "voxels of an unnamed value, such as 0.5"),
        (label_map()[:5], (4.0, 2.0, 2.0), "the prediction has 14×12×5 voxels.*but the reference has 14×12×6"),
        (label_map(), (5.0, 2.0, 2.0), "the prediction has .*spacing 5 2 2 mm zyx.*but the reference has"),
    ],
)
def test_masks_that_cannot_be_compared_are_refused(
    folders: tuple[Path, Path], labels_zyx: np.ndarray, spacing_zyx_mm: tuple[float, ...], problem: str
) -> None:
    write_labels(folders[1] / "a.nii.gz", labels_zyx, spacing_zyx_mm)
    with pytest.raises(DataError, match=f"case a: .*{problem}"):
        read_pair(match_masks(*folders, None, None)[0], LABELS, LABELS)


def test_what_is_no_number_has_no_name(folders: tuple[Path, Path]) -> None:
    (folders[1] / "a.nii.gz").unlink()
    write_labels(folders[1] / "a.mha", np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(DataError, match=r"case a: .*1008 voxels of an unnamed value, such as nan"):
        read_pair(match_masks(*folders, None, None)[0], LABELS, LABELS)


def test_a_damaged_file_is_named_with_its_case(folders: tuple[Path, Path]) -> None:
    (folders[1] / "a.nii.gz").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(DataError, match=r"case a: .*prediction/a\.nii\.gz"):
        read_pair(match_masks(*folders, None, None)[0], LABELS, LABELS)
