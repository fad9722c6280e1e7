"""`hepar score` on two folders of masks, and `hepar compare` of what it writes, as a user runs them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import call
from label_maps import label_map, write_labels
from score_csv import scores_csv

from hepar.runtime.commit import release

CASES = 7


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Masks of seven cases by experts and by two models, of which `better` cuts fewer columns off the liver."""
    for n in range(CASES):
        reference_zyx = label_map((2, 12), (4, 6) if n else None)
        write_labels(tmp_path / "experts" / f"c{n}.nii.gz", reference_zyx)
        for model, cut in (("good", 2 + n % 2), ("better", 1)):
            predicted_zyx = reference_zyx.copy()
            predicted_zyx[:, :, 12 - cut :] = 0
            write_labels(tmp_path / model / f"c{n}.nii.gz", predicted_zyx * 10)
    rows = [f"c{n},p{n},{'MR' if n == 6 else 'CT'},own,manual,{'manual' if n else 'absent'},test" for n in range(CASES)]
    header = "case_id,patient_id,modality,source,liver_state,tumour_state,split"
    (tmp_path / "cohort.csv").write_text("\n".join([header, *rows]) + "\n")
    return tmp_path


def score(work: Path, model: str, *options: str) -> subprocess.CompletedProcess[str]:
    labels = ("--labels", "liver=1,tumour=2", "--prediction-labels", "liver=10,tumour=20")
    return call("hepar", "score", "experts", model, *labels, *options, cwd=work)


def is_one_sentence(ended: subprocess.CompletedProcess[str]) -> bool:
    return ended.returncode == 2 and ended.stderr.count("\n") == 1 and ended.stderr.startswith("hepar: ")


def test_two_models_are_scored_and_compared(work: Path) -> None:
    for model in ("good", "better"):
        ended = score(work, model, "--table", "cohort.csv", "--out", f"runs/{model}/report")
        assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        "CT: liver Dice 0.947 (n 6), tumour Dice 1.000 (n 5)",  # 2 · 9 / (10 + 9)
        "MR: liver Dice 0.947 (n 1), tumour Dice 1.000 (n 1)",
        "runs/better/report/report.html",
    ]
    files = {path.name for path in (work / "runs" / "better" / "report").iterdir()}
    assert files == {"cases.csv", "facts.json", "lesions.csv", "manifest.json", "metrics.json", "report.html"}
    verified = call("hepar", "verify", "runs/better/report", cwd=work)
    assert verified.returncode == 0, verified.stderr

    options = ("--metric", "liver Dice", "--json", "out/found.json", "--figure", "out/forest.svg")
    ended = call("hepar", "compare", "runs/good", "runs/better/report/cases.csv", *options, cwd=work)
    assert (ended.returncode, ended.stderr) == (0, "")
    good = (16 / 18 + 14 / 17) / 2  # of two or three columns cut off in as many cases
    lines = [line for line in ended.stdout.splitlines() if line.startswith("| CT")]
    assert len(lines) == 1
    assert lines[0].startswith(f"| CT | liver Dice ↑ | {good:.3f} | 0.947 | +{18 / 19 - good:.3f} |")
    assert lines[0].endswith("| +1.00 | 6 | 6 |")
    (comparison,) = json.loads((work / "out" / "found.json").read_text())["comparisons"]
    assert [(row["modality"], row["too_few_patients"]) for row in comparison["metrics"]] == [
        ("CT", False),
        ("MR", True),
    ]
    shutil.copy(work / "runs" / "better" / "report" / "cases.csv", work / "copied.csv")
    ended = call("hepar", "compare", "runs/good", "copied.csv", "--metric", "liver Dice", cwd=work)
    assert ended.returncode == 0
    assert ended.stderr == (
        "hepar: warning: not all was scored alike, so it may not be the models that differ:"
        f" release is {release()} in runs/good and not known in copied.csv\n"
    )
    assert "better/report/cases.csv − good, with" in (work / "out" / "forest.svg").read_text()


def test_bad_input_is_one_sentence_and_leaves_nothing(work: Path) -> None:
    before = sorted(work.iterdir())
    wrong_value = call("hepar", "score", "experts", "good", cwd=work)
    assert is_one_sentence(wrong_value), wrong_value.stderr
    assert (
        "case c0: good/c0.nii.gz has 256 voxels of an unnamed value, such as 10" in wrong_value.stderr.splitlines()[-1]
    )
    (work / "good" / "c3.nii.gz").unlink()
    missing = score(work, "good")
    assert is_one_sentence(missing), missing.stderr
    assert "case c3: experts/c3.nii.gz has no counterpart of the same name in good" in missing.stderr
    assert sorted(work.iterdir()) == before


def test_what_cannot_be_compared_is_one_sentence(work: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, work / "mlflow.db")
    (work / "one.csv").write_text(scores_csv([{"case_id": "a", "liver_dice": 0.5}]))
    (work / "two.csv").write_text(scores_csv([{"case_id": "b", "liver_dice": 0.5}]))
    for arguments, problem in (
        (("one.csv",), "one.csv alone has nothing to be compared with"),
        (("one.csv", "two.csv", "--json", "x.json"), "have no case in common"),
        (("one.csv", "experts"), "experts has no report"),
        (("one.csv", "models:/nobody/1"), "models:/nobody/1 is not in the registry"),
        (("one.csv", "two.csv", "--metric", "liver NSD", "--by", "size"), "only lesion recall is known by lesion size"),
        (("one.csv", "two.csv", "--figure", "x.pdf"), "its name must end in .svg or .png"),
    ):
        ended = call("hepar", "compare", *arguments, cwd=work, MLFLOW_TRACKING_URI=f"sqlite:///{work / 'mlflow.db'}")
        assert is_one_sentence(ended), ended.stderr
        assert problem in ended.stderr
    assert not (work / "x.json").exists()
