"""The pseudo-label stage: resumed after an interruption, its table, and its teachers."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import script

import hepar.stages.pseudo_label
from hepar.cases import Case, Modality
from hepar.errors import ArtifactError
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params
from hepar.pseudo_labels import labelling
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.pseudo_labels.prediction import SIGNALS_FILE
from hepar.pseudo_labels.signals import Signals
from hepar.runtime.artifacts import read_manifest, write_artifact
from hepar.runtime.environment import STORE_VARIABLE

pytestmark = pytest.mark.slow

# labels in a process of its own, which dies when the first case is in the store, as a pod whose node is lost
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_pseudo_label_stage import pseudo_label
from conftest import TINY
from hepar.params import load_params
from hepar.pseudo_labels.finished import FinishedLivers

keep = FinishedLivers.keep

def keep_and_die(self, case_id, finished):
    keep(self, case_id, finished)
    os.kill(os.getpid(), signal.SIGKILL)

FinishedLivers.keep = keep_and_die
pseudo_label(Path(sys.argv[1]), Path(sys.argv[2]), load_params(TINY))
"""


def teachers(run: Path) -> dict[Modality, Path]:
    return {Modality.CT: run / "models" / "liver-ct", Modality.MR: run / "models" / "liver-mr"}


def pseudo_label(run: Path, pseudo: Path, params: Params) -> None:
    hepar.stages.pseudo_label.run(run / "cohort", teachers(run), pseudo, params.pseudo_label)


def record_predictions(monkeypatch: pytest.MonkeyPatch, fail_at: int = 0) -> list[str]:
    """The cases predicted from here on; the `fail_at`-th prediction is interrupted."""
    predicted: list[str] = []
    predict: Callable[..., Any] = labelling.predict_pseudo_liver

    def record(case: Case, *others: Any) -> Any:
        predicted.append(case.case_id)
        if len(predicted) == fail_at:
            raise KeyboardInterrupt
        return predict(case, *others)

    monkeypatch.setattr(labelling, "predict_pseudo_liver", record)
    return predicted


def test_an_interrupted_stage_resumes_after_its_last_case_with_the_same_bytes(
    by_kfp: Path, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pseudo = tmp_path / "pseudo"
    first = record_predictions(monkeypatch, fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        pseudo_label(by_kfp, pseudo, tiny)
    assert not pseudo.exists()
    monkeypatch.undo()
    later = record_predictions(monkeypatch)
    pseudo_label(by_kfp, pseudo, tiny)
    assert len(first) == 2
    assert later == first[1:]
    assert PseudoLabels.load(pseudo).manifest.hash == PseudoLabels.load(by_kfp / "pseudo").manifest.hash
    assert not list((tmp_path / ".checkpoints").glob("*"))


def test_a_killed_stage_resumes_on_an_empty_disk_with_the_same_bytes(
    by_kfp: Path, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, new, store = tmp_path / "lost" / "pseudo", tmp_path / "new" / "pseudo", tmp_path / "store"
    words = (str(by_kfp), str(lost), str(Path(__file__).parent))
    killed = script(KILLED, *words, folder=tmp_path, **{STORE_VARIABLE: str(store)})
    assert killed.code == -signal.SIGKILL, killed.stderr
    (kept,) = (store / "checkpoints").glob(f"pseudo-*/*/{SIGNALS_FILE}")
    shutil.rmtree(lost.parent)
    monkeypatch.setenv(STORE_VARIABLE, str(store))
    predicted = record_predictions(monkeypatch)
    pseudo_label(by_kfp, new, tiny)
    undisturbed = files(by_kfp / "pseudo")
    assert files(new) == undisturbed
    labelled = {row["case_id"] for row in PseudoLabels(new).rows()}
    assert set(predicted) == labelled - {kept.parent.name}
    assert predicted, "the killed run has not done everything"
    assert not [path for path in (store / "checkpoints").rglob("*") if path.is_file()], "removed once it has finished"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_resumed_stage_applies_changed_gates_to_finished_predictions(
    by_kfp: Path, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_predictions(monkeypatch, fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        pseudo_label(by_kfp, tmp_path / "pseudo", tiny)
    monkeypatch.undo()
    strict = tiny.pseudo_label.gates.model_copy(update={"volume_ml": (1e5, 2e5)})
    changed = tiny.model_copy(update={"pseudo_label": tiny.pseudo_label.model_copy(update={"gates": strict})})
    predicted = record_predictions(monkeypatch)
    pseudo_label(by_kfp, tmp_path / "pseudo", changed)
    assert len(predicted) == 1
    assert {row["gate"] for row in PseudoLabels(tmp_path / "pseudo").rows()} == {"reject"}


def test_the_table_holds_signals_teacher_and_mask(by_kfp: Path) -> None:
    pseudo = PseudoLabels.load(by_kfp / "pseudo")
    rows = pseudo.rows()
    assert rows
    for row in rows:
        assert set(Signals.names()) < set(row)
        assert pseudo.sha256(pseudo.liver(row["case_id"])) == row["mask_sha256"]
        assert row["teacher"] == read_manifest(teachers(by_kfp)[Modality(row["modality"])], ModelFolder.KIND).hash
        assert not row["teacher_saw_patient"]


def test_every_member_of_an_ensemble_votes(by_kfp: Path, tiny: Params, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(by_kfp / "models", run / "models")
    shutil.copytree(by_kfp / "cohort", run / "cohort")
    pseudo_label(run, tmp_path / "alone", tiny)
    for folder in teachers(run).values():
        inverted = {name: -value for name, value in ModelFolder(folder).load_weights().items()}
        with write_artifact(folder, ModelFolder.KIND, read_manifest(folder, ModelFolder.KIND).parents) as partial:
            shutil.copytree(folder, partial, dirs_exist_ok=True)
            ModelFolder(partial).add_member(inverted, 1)
    pseudo_label(run, tmp_path / "ensemble", tiny)
    alone, ensemble = (PseudoLabels(tmp_path / name).rows() for name in ("alone", "ensemble"))
    assert all(b["agreement"] <= a["agreement"] + 1e-9 for a, b in zip(alone, ensemble, strict=True))
    assert [row["mask_sha256"] for row in alone] != [row["mask_sha256"] for row in ensemble]


def test_a_model_that_lost_its_list_of_patients_cannot_be_a_teacher(by_kfp: Path, tiny: Params, tmp_path: Path) -> None:
    shutil.copytree(by_kfp / "models", tmp_path / "models")
    shutil.copytree(by_kfp / "cohort", tmp_path / "cohort")
    (tmp_path / "models" / "liver-ct" / ModelFolder.PATIENTS).unlink()
    with pytest.raises(ArtifactError, match=r"liver-ct is damaged: patients\.json is missing$"):
        pseudo_label(tmp_path, tmp_path / "pseudo", tiny)
