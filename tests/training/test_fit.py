"""From a pool to a model folder: tracking, warm starts, and the number of processes."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch
from toy_model import write_model
from toy_pool import Toy, toy_pool
from toy_training import PATCH, TOYS, toy_settings

from hepar.cases import LabelState, Modality
from hepar.errors import HeparError, Preempted
from hepar.inference.model_folder import ModelFolder, hash_patient
from hepar.inference.settings import OperatingPoint
from hepar.params import Params
from hepar.pool.table import Pool
from hepar.registry.tracking import TrainingRun, connect
from hepar.runtime.artifacts import read_manifest
from hepar.training import fit
from hepar.training.fit import Recipe, fit_model

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return toy_pool(tmp_path_factory.mktemp("pool"), TOYS)


def test_a_resumed_training_continues_its_mlflow_run(
    pool: Pool, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    recipe = Recipe(tiny.network, toy_settings(tiny, steps=4), (Modality.CT,), "tests")
    log = TrainingRun.log

    def stop(self: TrainingRun, step: int, metrics: dict[str, float]) -> None:
        log(self, step, metrics)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "log", stop)
        patch.setattr(fit, "liver_intensities", lambda pool: pytest.fail("a part of a training reads all arrays"))
        with pytest.raises(Preempted):
            fit_model(pool, tmp_path / "model", recipe, {})
    (stopped,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert stopped.info.status == "KILLED"
    # an execution setting may change
    resumed = Recipe(tiny.network, toy_settings(tiny, steps=4, checkpoint_every=7), (Modality.CT,), "tests")
    fit_model(pool, tmp_path / "model", resumed, {})
    (finished,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert (finished.info.run_id, finished.info.status) == (stopped.info.run_id, "FINISHED")
    losses = mlflow.MlflowClient().get_metric_history(finished.info.run_id, "train/loss")
    assert [metric.step for metric in losses] == [1, 2, 3, 4]
    fit_model(pool, tmp_path / "again", recipe, {})
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == 2


def test_a_training_continues_the_run_that_a_scheduler_has_begun(
    pool: Pool, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect().MlflowClient()
    begun = client.create_run(client.create_experiment("scheduler")).info
    monkeypatch.setenv("MLFLOW_RUN_ID", begun.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", begun.experiment_id)
    recipe = Recipe(tiny.network, toy_settings(tiny, steps=1), (Modality.CT,), "tests")
    for name in ("first", "second"):
        fit_model(pool, tmp_path / name, recipe, {})
    first, second = mlflow.search_runs([begun.experiment_id], order_by=["attribute.start_time"], output_format="list")
    assert (first.info.run_id, first.info.status, second.info.status) == (begun.run_id, "FINISHED", "FINISHED")
    assert {"train/loss"} <= set(first.data.metrics) & set(second.data.metrics)
    assert client.get_experiment_by_name("tests") is None


def test_a_warm_start_from_another_network_is_refused(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    warm_start = write_model(tmp_path / "other", tiny, {"stem.weight": torch.ones(1)}).folder
    recipe = Recipe(tiny.network, toy_settings(tiny, steps=1), (Modality.CT,), "tests", warm_start=warm_start)
    with pytest.raises(HeparError, match=r"^train_universal\.warm_start is a model with another network: "):
        fit_model(pool, tmp_path / "model", recipe, {})


def test_a_model_lists_the_patients_of_its_warm_start(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    recipe = Recipe(tiny.network, toy_settings(tiny, steps=1), (Modality.CT,), "tests")
    other = toy_pool(tmp_path / "pool", [Toy("another", shape=PATCH, liver=((8, 16, 16), 7.0))])
    fit_model(other, tmp_path / "first", recipe, {})
    warm = replace(recipe, warm_start=tmp_path / "first")
    fit_model(pool, tmp_path / "second", warm, {}, notes={"pool version": "v"})
    patients = ModelFolder(tmp_path / "second").load_patients()
    assert patients == {hash_patient(name) for name in ("another", *(toy.case_id for toy in TOYS))}
    assert read_manifest(tmp_path / "second", ModelFolder.KIND).parents == {"pool version": "v"}
    assert ModelFolder(tmp_path / "second").load_spec().origin == {}


@pytest.mark.parametrize("with_tumour", [fit.MIN_TUMOUR_CASES - 1, fit.MIN_TUMOUR_CASES])
def test_a_threshold_is_chosen_on_enough_validation_tumours_only(
    with_tumour: int, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = [replace(TOYS[2], case_id=f"val-{number}") for number in range(with_tumour)]
    validation.append(replace(TOYS[2], case_id="free", tumour_state=LabelState.ABSENT, lesions=()))
    chosen = OperatingPoint(0.7, 1.0)
    monkeypatch.setattr(fit, "choose_operating_point", lambda *_: chosen)
    training = toy_settings(tiny, steps=1, validation_cases=1)  # the choice takes them all
    recipe = Recipe(tiny.network, training, (Modality.CT, Modality.MR), "tests")
    fit_model(toy_pool(tmp_path / "pool", [*TOYS[:2], *validation]), tmp_path / "model", recipe, {})
    spec = ModelFolder(tmp_path / "model").load_spec()
    expected = chosen if with_tumour == fit.MIN_TUMOUR_CASES else OperatingPoint()
    assert OperatingPoint(spec.tumour_threshold, spec.min_lesion_ml) == expected
