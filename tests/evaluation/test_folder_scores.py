"""The report of two folders of label maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from label_maps import VOXEL_ML, label_map, write_labels

import hepar.evaluation.folder_scores
from hepar.errors import DataError, ParamsError
from hepar.evaluation.folder_scores import MaskFolders, score_folders
from hepar.evaluation.mask_folders import UNKNOWN_MODALITY, LabelValues
from hepar.evaluation.report_folder import Report
from hepar.evaluation.summary import Bootstrap
from hepar.inference.model_folder import ModelFolder
from hepar.runtime.artifacts import MANIFEST, write_artifact, write_json
from hepar.runtime.commit import RELEASE, release

BOOTSTRAP = Bootstrap(1, 50)
LABELS = LabelValues((1,), (2,))


@pytest.fixture
def folders(tmp_path: Path) -> MaskFolders:
    """One case whose tumour is found by half, and one free of tumours with a false one."""
    write_labels(tmp_path / "reference" / "a.nii.gz", label_map((2, 12), (4, 6)))
    write_labels(tmp_path / "prediction" / "a.nii.gz", label_map((2, 12), (5, 7)))
    write_labels(tmp_path / "reference" / "b.nii.gz", label_map((2, 12), None))
    write_labels(tmp_path / "prediction" / "b.nii.gz", label_map((2, 7), (6, 7)))
    return MaskFolders(tmp_path / "reference", tmp_path / "prediction", LABELS, LABELS)


def test_the_report_holds_the_scores_of_the_masks(tmp_path: Path, folders: MaskFolders) -> None:
    score_folders(folders, tmp_path / "out", BOOTSTRAP)
    report = Report.load(tmp_path / "out")
    first, second = report.cases().to_dict("records")
    assert (first["liver_dice"], first["tumour_dice"]) == (1, 0.5)
    assert second["liver_dice"] == pytest.approx(2 * 5 / (10 + 5))
    assert second["specific"] is False
    assert second["false_positive_volume_ml"] == pytest.approx(32 * VOXEL_ML)
    assert first["lesion_iou>0_10-20 mm_true_positives"] == 1  # a ball of 64 voxels, 1.024 ml, has 12.5 mm
    assert first["lesion_iou>0.5_10-20 mm_true_positives"] == 0
    assert report.metrics()[UNKNOWN_MODALITY]["liver"]["dice"]["n"] == 2
    lesions = report.lesions()
    assert lesions["kind"].tolist() == ["reference", "predicted", "predicted"]
    assert lesions["volume_ml"].tolist() == pytest.approx([64 * VOXEL_ML, 64 * VOXEL_ML, 32 * VOXEL_ML])
    assert lesions["matched"].tolist() == [True, True, False]
    assert lesions["confidence"].isna().all()
    page = report.page.read_text()
    assert page.count("<figure>") == 2
    assert "labels of the reference" in page
    assert "hepar lineage" not in page  # there is no model to follow
    assert report.facts()[RELEASE] == release()


def test_the_number_of_workers_changes_no_byte(
    tmp_path: Path, folders: MaskFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = []
    for workers in (1, 3):
        monkeypatch.setattr(hepar.evaluation.folder_scores, "available_cores", lambda workers=workers: workers)
        score_folders(folders, tmp_path / str(workers), BOOTSTRAP)
        files = [path for path in sorted((tmp_path / str(workers)).rglob("*")) if path.is_file()]
        reports.append({path.name: path.read_bytes() for path in files if path.name != MANIFEST})
    assert reports[0] == reports[1]
    assert len(reports[0]) == 5


def test_a_structure_that_one_folder_lacks_is_not_scored(tmp_path: Path, folders: MaskFolders) -> None:
    liver_alone = LabelValues((1, 2), ())
    report = score_folders(
        MaskFolders(folders.reference, folders.prediction, LABELS, liver_alone), tmp_path / "out", BOOTSTRAP
    )
    assert report.facts()[Report.NOT_SCORED] == "tumour: not among the labels of both folders"
    assert report.cases()["tumour_dice"].isna().all()
    assert report.cases()["tumour_known"].tolist() == [False, False]
    wrong = MaskFolders(folders.reference, folders.prediction, LabelValues((1,), ()), LabelValues((), (2,)))
    with pytest.raises(ParamsError, match="liver=1 and those of the prediction tumour=2: no structure is in both"):
        score_folders(wrong, tmp_path / "none", BOOTSTRAP)


def test_the_table_of_a_report_scores_the_same_cases_again(tmp_path: Path, folders: MaskFolders) -> None:
    """What the report does not know is unknown in the second, too: b has no tumour mask, but is not tumour-free."""
    table = tmp_path / "cohort.csv"
    table.write_text("case_id,modality,liver_state,tumour_state,spacing_known\na,CT,manual,manual,no\nb,CT,,unknown,\n")
    first = score_folders(replace(folders, table=table), tmp_path / "first", BOOTSTRAP)
    again = score_folders(replace(folders, table=first.folder / Report.CASES), tmp_path / "again", BOOTSTRAP)
    assert again.cases_csv() == first.cases_csv()
    known = again.cases()[["distances_known", "liver_known", "tumour_known"]]
    assert known.to_numpy().tolist() == [[False, True, True], [True, True, False]]
    assert again.cases()["specific"].isna().all()
    assert again.metrics()["CT"]["tumour"]["counts"]["unknown"] == 1


def test_the_test_set_is_that_of_the_reference_alone(tmp_path: Path, folders: MaskFolders) -> None:
    once = score_folders(folders, tmp_path / "once", BOOTSTRAP)
    again = score_folders(folders, tmp_path / "again", BOOTSTRAP)
    assert once.manifest.hash == again.manifest.hash
    write_labels(folders.prediction / "b.nii.gz", label_map((2, 8), None))
    other = score_folders(folders, tmp_path / "other", BOOTSTRAP)
    assert other.facts()[Report.TEST_SET] == once.facts()[Report.TEST_SET]
    assert other.facts()["predictions"] != once.facts()["predictions"]
    write_labels(folders.reference / "b.nii.gz", label_map((2, 11), None))
    changed = score_folders(folders, tmp_path / "changed", BOOTSTRAP)
    assert changed.facts()[Report.TEST_SET] != once.facts()[Report.TEST_SET]


def test_a_bad_mask_leaves_no_report_and_keeps_an_older_one(tmp_path: Path, folders: MaskFolders) -> None:
    write_labels(folders.prediction / "b.nii.gz", label_map() * 3)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match="case b: "):
        score_folders(folders, tmp_path / "out", BOOTSTRAP)
    assert sorted(tmp_path.iterdir()) == before
    write_labels(folders.prediction / "b.nii.gz", label_map())
    older = score_folders(folders, tmp_path / "out", BOOTSTRAP).manifest.hash
    write_labels(folders.prediction / "b.nii.gz", label_map() * 3)
    with pytest.raises(DataError, match="case b: "):
        score_folders(folders, tmp_path / "out", BOOTSTRAP)
    assert Report.load(tmp_path / "out").manifest.hash == older


def test_nothing_but_an_older_report_of_masks_is_replaced(tmp_path: Path, folders: MaskFolders) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    with write_artifact(tmp_path / "cohort", "cohort", {}) as folder:
        (folder / "cases").write_text("")
    for name in ("mine", "cohort"):
        with pytest.raises(DataError, match=f"{name} exists and is not a report"):
            score_folders(folders, tmp_path / name, BOOTSTRAP)
    for out in (folders.prediction, tmp_path):
        with pytest.raises(DataError, match=r"would be replaced by the report, but .* lies in it"):
            score_folders(folders, out, BOOTSTRAP)
    with write_artifact(tmp_path / "run" / "report", Report.KIND, {}) as folder:
        write_json(folder / Report.FACTS, {ModelFolder.KIND: "a" * 64})
    with pytest.raises(DataError, match="run/report holds the evaluation of a model with its predicted masks: choose"):
        score_folders(folders, tmp_path / "run" / "report", BOOTSTRAP)
    assert Report.load(tmp_path / "run" / "report").facts() == {ModelFolder.KIND: "a" * 64}
    assert (tmp_path / "mine" / "notes.txt").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    score_folders(folders, tmp_path / "empty", BOOTSTRAP)
    score_folders(folders, tmp_path / "empty", BOOTSTRAP)
    assert Report.load(tmp_path / "empty").metrics()
