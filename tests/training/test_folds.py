"""How patients are assigned to folds, and the ensemble of one teacher per fold."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_cohort import write_cohort
from toy_pool import Toy, toy_pool
from toy_training import TOYS, equal_weights, toy_settings

import hepar.stages.train_liver
from hepar.cases import Modality, Split
from hepar.errors import ArtifactError, DataError, ParamsError, Preempted
from hepar.inference.model_folder import ModelFolder, hash_patient
from hepar.params import Params
from hepar.runtime.artifacts import MANIFEST, read_manifest, write_artifact
from hepar.training import folds
from hepar.training.ensemble import gather
from hepar.training.fit import Recipe, fit_model
from hepar.training.folds import Fold, assign_teacher_folds, fit_ensemble, fit_fold, without_fold


def test_folds_divide_the_patients_and_keep_every_validation_patient(tmp_path: Path) -> None:
    pool = toy_pool(tmp_path, [Toy("a")])
    training = tuple(replace(pool.entries[0], patient_id=f"p{n // 2}") for n in range(14))
    validation = replace(pool.entries[0], patient_id="v", split=Split.VAL)
    fold_by_patient = assign_teacher_folds(training, 3)
    assert sorted(list(fold_by_patient.values()).count(n) for n in range(3)) == [2, 2, 3]
    kept = without_fold(replace(pool, entries=(*training, validation)), fold_by_patient, 1)
    others = {patient for patient, fold in fold_by_patient.items() if fold != 1}
    assert {entry.patient_id for entry in kept.entries} == others | {"v"}
    one_patient = replace(pool, entries=(*training[:2], validation))
    with pytest.raises(DataError, match=r"^leaving out fold 1 leaves no training patient"):
        without_fold(one_patient, assign_teacher_folds(training[:2], 2), 0)


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


@pytest.mark.usefixtures("database")
def test_folds_trained_alone_are_gathered_to_the_ensemble_of_one_step(tiny: Params, tmp_path: Path) -> None:
    """Two training patients make two folds, so that the third has nothing to leave out."""
    pool = toy_pool(tmp_path / "pool", [TOYS[0], replace(TOYS[0], case_id="ct-4", level=0.5), TOYS[2]])
    recipe = Recipe(tiny.network, toy_settings(tiny, steps=2), (Modality.CT,), "tests", {Modality.CT: (0.5, 0.1)})
    origin = {"cohort": "abc", "role": "liver teacher CT"}
    fit_ensemble(pool, tmp_path / "model", recipe, origin, 3)
    alone = [tmp_path / f"alone-{number}" for number in (1, 2, 3)]
    for number, folder in enumerate(alone, start=1):
        fit_fold(pool, folder, recipe, origin, Fold(Modality.CT, number, 3))
    assert ModelFolder(alone[2]).not_trained() == "2 CT patients make 2 folds"
    gather(alone[::-1], tmp_path / "gathered", Modality.CT)
    one, gathered = tmp_path / "model", tmp_path / "gathered"
    assert (gathered / MANIFEST).read_bytes() == (one / MANIFEST).read_bytes()
    assert len(ModelFolder(gathered).weight_files()) == 2

    with pytest.raises(ArtifactError, match=r"the folds are 2/2, must be 1/2, 2/2$"):
        gather(alone[1:], tmp_path / "other", Modality.CT)
    with pytest.raises(ArtifactError, match=f"^{one} is no fold of a CT teacher, made by"):
        gather([one, alone[1]], tmp_path / "other", Modality.CT)
    with pytest.raises(ArtifactError, match=f"^{alone[0]} is no fold of a MR teacher"):
        gather(alone, tmp_path / "other", Modality.MR)
    parents = {**read_manifest(alone[1], ModelFolder.KIND).parents, "cohort": "another"}
    with write_artifact(tmp_path / "stranger", ModelFolder.KIND, parents) as partial:
        shutil.copytree(alone[1], partial, dirs_exist_ok=True)
    with pytest.raises(ArtifactError, match=r"are no folds of one teacher: they differ in cohort$"):
        gather([alone[0], tmp_path / "stranger"], tmp_path / "other", Modality.CT)
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("database")
def test_an_ensemble_has_the_snapshots_of_every_fold(tiny: Params, tmp_path: Path) -> None:
    pool = toy_pool(tmp_path / "pool", [TOYS[0], replace(TOYS[0], case_id="ct-4", level=0.5), TOYS[2]])
    training = toy_settings(tiny, steps=2, snapshots=(0.5,))
    recipe = Recipe(tiny.network, training, (Modality.CT,), "tests", {Modality.CT: (0.5, 0.1)})
    folders = [tmp_path / "alone-1", tmp_path / "alone-2"]
    for number, folder in enumerate(folders, start=1):
        fit_fold(pool, folder, recipe, {"role": "liver teacher CT"}, Fold(Modality.CT, number, 2))
    gather(folders, tmp_path / "model", Modality.CT)
    ensemble = ModelFolder(tmp_path / "model")
    gathered = [ensemble.load_weights(name) for name in ensemble.weight_files()]
    trained = [ModelFolder(folder).load_weights(name) for folder in folders for name in ("weights.pt", "members/1.pt")]
    assert len(gathered) == 4
    assert all(map(equal_weights, gathered, trained))


def test_a_modality_without_scans_has_untrained_folds_that_make_an_untrained_teacher(
    tiny: Params, tmp_path: Path
) -> None:
    cohort, params = write_cohort(tmp_path, ["p1"]), tiny.train_liver.model_copy(update={"folds": 2})

    def run(place: str, teacher: Modality | Fold) -> Path:
        folder = tmp_path / place
        hepar.stages.train_liver.run(cohort, folder, teacher, tiny.preprocessing, tiny.network, params, "tests")
        return folder

    alone = [run(f"alone-{number}", Fold(Modality.MR, number, 2)) for number in (1, 2)]
    gather(alone, tmp_path / "gathered", Modality.MR)
    whole = run("whole", Modality.MR)
    assert (tmp_path / "gathered" / MANIFEST).read_bytes() == (whole / MANIFEST).read_bytes()
    assert ModelFolder(whole).not_trained() == "the cohort has no MR scan"
    with pytest.raises(ParamsError, match=r"^fold is 3, must be 1 to 2, which is train_liver\.folds"):
        run("other", Fold(Modality.MR, 3, 2))
    with pytest.raises(ParamsError, match=r"^train_liver\.folds is 2, but the pipeline has the steps of 4"):
        run("other", Fold(Modality.MR, 1, 4))
