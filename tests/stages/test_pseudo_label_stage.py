"""The pseudo-label stage: resumed after an interruption, its table, and its teachers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hepar.stages.pseudo_label
from hepar.cases import Case, Modality
from hepar.errors import ArtifactError
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.pseudo_labels.signals import Signals
from hepar.runtime.artifacts import read_manifest, write_artifact

pytestmark = pytest.mark.slow


def teachers(run: Path) -> dict[Modality, Path]:
    return {Modality.CT: run / "models" / "liver-ct", Modality.MR: run / "models" / "liver-mr"}


def pseudo_label(run: Path, pseudo: Path, params: Params) -> None:
    hepar.stages.pseudo_label.run(run / "cohort", teachers(run), pseudo, params.pseudo_label)


def record_predictions(monkeypatch: pytest.MonkeyPatch, fail_at: int = 0) -> list[str]:
    """The cases predicted from here on; the `fail_at`-th prediction is interrupted."""
    predicted: list[str] = []
    predict: Callable[..., Any] = hepar.stages.pseudo_label.predict_pseudo_liver

    def record(case: Case, *others: Any) -> Any:
        predicted.append(case.case_id)
        if len(predicted) == fail_at:
            raise KeyboardInterrupt
        return predict(case, *others)

    monkeypatch.setattr(hepar.stages.pseudo_label, "predict_pseudo_liver", record)
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
