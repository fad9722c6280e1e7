"""How patients are assigned to folds, and the ensemble of one teacher per fold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_pool import Toy, toy_pool
from toy_training import TOYS, equal_weights, toy_settings

from hepar.cases import Modality, Split
from hepar.errors import DataError, Preempted
from hepar.inference.model_folder import ModelFolder, hash_patient
from hepar.params import Params
from hepar.runtime.artifacts import read_manifest
from hepar.training import folds
from hepar.training.fit import Recipe, fit_model
from hepar.training.folds import assign_folds, fit_ensemble, without_fold


def test_folds_divide_the_patients_and_keep_every_validation_patient(tmp_path: Path) -> None:
    pool = toy_pool(tmp_path, [Toy("a")])
    training = tuple(replace(pool.entries[0], patient_id=f"p{n // 2}") for n in range(14))
    validation = replace(pool.entries[0], patient_id="v", split=Split.VAL)
    fold_by_patient = assign_folds(training, 3)
    assert sorted(list(fold_by_patient.values()).count(n) for n in range(3)) == [2, 2, 3]
    kept = without_fold(replace(pool, entries=(*training, validation)), fold_by_patient, 1)
    others = {patient for patient, fold in fold_by_patient.items() if fold != 1}
    assert {entry.patient_id for entry in kept.entries} == others | {"v"}
    one_patient = replace(pool, entries=(*training[:2], validation))
    with pytest.raises(DataError, match=r"^leaving out fold 1 leaves no training patient"):
        without_fold(one_patient, assign_folds(training[:2], 2), 0)


@pytest.mark.usefixtures("database")
def test_an_interrupted_ensemble_keeps_its_finished_teachers(
    tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = toy_pool(tmp_path / "pool", [TOYS[0], replace(TOYS[0], case_id="ct-4", level=0.5), TOYS[2]])
    recipe = Recipe(tiny.network, toy_settings(tiny, steps=2), (Modality.CT,), "tests", {Modality.CT: (0.5, 0.1)})
    fitted: list[str] = []

    def fit_and_record(*arguments: Any) -> None:
        fitted.append(arguments[1].name)
        fit_model(*arguments)

    def fit_only_the_first(*arguments: Any) -> None:
        if fitted:
            raise Preempted("stopped")
        fit_and_record(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(folds, "fit_model", fit_only_the_first)
        with pytest.raises(Preempted):
            fit_ensemble(pool, tmp_path / "model", recipe, {"role": "liver teacher CT"}, 2)
    assert not (tmp_path / "model").exists()
    (kept,) = (tmp_path / ".checkpoints").glob("model-*/fold-1")
    first, first_hash = ModelFolder(kept).load_weights(), read_manifest(kept, ModelFolder.KIND).hash
    monkeypatch.setattr(folds, "fit_model", fit_and_record)
    fit_ensemble(pool, tmp_path / "model", recipe, {"role": "liver teacher CT"}, 2)
    assert fitted == ["fold-1", "fold-2"]
    model = ModelFolder(tmp_path / "model")
    assert model.weight_files() == ("weights.pt", "members/1.pt")
    assert equal_weights(model.load_weights(), first)
    assert not equal_weights(model.load_weights(), model.load_weights("members/1.pt"))
    assert model.load_spec().origin == {"role": "liver teacher CT"}
    parents = read_manifest(model.folder, ModelFolder.KIND).parents
    assert list(parents) == ["member 1", "member 2", "role"]  # by which lineage finds their trainings
    assert parents["member 1"] == first_hash
    assert model.load_spec().liver_intensity == {Modality.CT: (0.5, 0.1)}  # over all folds
    assert model.load_patients() == {hash_patient(entry.patient_id) for entry in pool.entries}
    assert not kept.exists()
