"""The training of the universal model on toy pools: its budget of steps, and which warm starts it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_model import write_model
from toy_pool import Toy, toy_pool
from toy_training import PATCH, toy_settings

import hepar.stages.train_universal
from hepar.cases import LabelState, Modality
from hepar.errors import ArtifactError
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params, TrainUniversalParams
from hepar.pool.table import Pool
from hepar.registry.tracking import connect
from hepar.runtime.artifacts import read_manifest, write_artifact
from hepar.training.liver_intensities import MIN_DEVIATION

pytestmark = pytest.mark.usefixtures("database")
CT = Toy("ct", shape=PATCH, liver=((8, 16, 16), 7.0), lesions=(((8, 14, 18), 3.0),))
MR = Toy("mr", Modality.MR, shape=PATCH, liver=((8, 18, 14), 6.5), lesions=(((8, 18, 12), 3.0),))
TUMOUR_ONLY = Toy("tumour", shape=PATCH, liver_state=LabelState.UNKNOWN, lesions=(((8, 14, 18), 3.0),))


def sealed_pool(folder: Path, *toys: Toy) -> Path:
    with write_artifact(folder, Pool.KIND, {}) as partial:
        toy_pool(partial, toys).save()
    return folder


def train(pool: Path, tiny: Params, warm_start: str = "none", **teachers: Path) -> ModelFolder:
    """The model of a training of four steps for both modalities."""
    training = toy_settings(tiny, steps=4, validate_every=2, warmup_steps=2, validation_cases=0)
    params = TrainUniversalParams(warm_start=warm_start, training=training)
    model = pool.parent / f"{pool.name}-model"
    by_modality = {Modality(name): folder for name, folder in teachers.items()}
    hepar.stages.train_universal.run(pool, by_modality, model, tiny.network, params, "tests")
    return ModelFolder(model)


def parents(model: ModelFolder) -> set[str]:
    return set(read_manifest(model.folder, ModelFolder.KIND).parents)


def register(model: ModelFolder, name: str) -> str:
    """The URI of a model folder, registered under a name."""
    mlflow = connect()
    client = mlflow.MlflowClient()
    run = client.create_run(client.create_experiment("registered")).info
    client.log_artifacts(run.run_id, str(model.folder), "model")
    client.create_registered_model(name)
    version = client.create_model_version(name, f"{run.artifact_uri}/model", run.run_id)
    return f"models:/{name}/{version.version}"


def test_a_pool_of_one_modality_gets_half_the_steps(tiny: Params, tmp_path: Path) -> None:
    both, one = train(sealed_pool(tmp_path / "both", CT, MR), tiny), train(sealed_pool(tmp_path / "mr", MR), tiny)
    assert both.load_history().step.max() == 4
    assert one.load_history().step.max() == 2
    assert (both.load_spec().modalities, one.load_spec().modalities) == ((Modality.CT, Modality.MR), (Modality.MR,))
    # a healthy liver of these toys has the value 1: the model remembers the livers it learned from
    learned = {Modality.CT: (1.0, MIN_DEVIATION), Modality.MR: (1.0, MIN_DEVIATION)}
    assert both.load_spec().liver_intensity == learned


@pytest.mark.parametrize(("given", "halved"), [(2200, 1100), (5, 2), (1, 1), (0, 0)])
def test_steps_intervals_and_warm_up_are_halved_together(given: int, halved: int, tiny: Params) -> None:
    training = toy_settings(tiny, steps=max(given, 1), validate_every=max(given, 1), warmup_steps=given)
    budgeted = hepar.stages.train_universal._budgeted(training, modalities=1)
    expected = {"steps": max(halved, 1), "validate_every": max(halved, 1), "warmup_steps": halved}
    assert budgeted == training.model_copy(update=expected)
    assert hepar.stages.train_universal._budgeted(training, modalities=2) == training


def test_a_pool_without_livers_takes_no_weights_of_a_liver_teacher(
    tiny: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = write_model(tmp_path / "teacher", tiny, taught=("liver",)).folder
    without = train(sealed_pool(tmp_path / "tumours", TUMOUR_ONLY), tiny, "CT", CT=teacher)
    said = "no warm start from CT: it knows livers, and this pool teaches none"
    assert said in " ".join(capsys.readouterr().err.split())
    assert ModelFolder.WARM_START not in parents(without)
    assert without.load_spec().taught == ("tumour",)

    warm = train(sealed_pool(tmp_path / "mixed", CT, TUMOUR_ONLY), tiny, "CT", CT=teacher)
    assert said not in " ".join(capsys.readouterr().err.split())
    assert ModelFolder.WARM_START in parents(warm)
    assert warm.load_spec().taught == ("liver", "tumour")


def test_a_pool_without_livers_does_take_the_weights_of_a_registered_model(
    tiny: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = register(write_model(tmp_path / "universal", tiny), "hepar-toy")
    model = train(sealed_pool(tmp_path / "tumours", TUMOUR_ONLY), tiny, uri)
    assert ModelFolder.WARM_START in parents(model)
    assert "no warm start" not in capsys.readouterr().err


def test_a_warm_start_from_a_teacher_that_does_not_exist_is_refused(tiny: Params, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"^train_universal\.warm_start is MR, but there is no MR teacher$"):
        train(sealed_pool(tmp_path / "pool", CT), tiny, "MR")
