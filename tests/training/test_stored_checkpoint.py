"""Checkpoints in the store: a training whose container and disk are lost goes on in another."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import mlflow
import pytest
from commands import script
from toy_pool import toy_pool
from toy_training import TOYS, toy_settings

from hepar.cases import Modality
from hepar.params import Params
from hepar.runtime.artifacts import read_manifest
from hepar.runtime.environment import STORE_VARIABLE
from hepar.runtime.object_store import Store
from hepar.runtime.stored_checkpoint import StoredCheckpoint
from hepar.training.checkpoint import FILE, load_checkpoint, save_checkpoint
from hepar.training.fit import Recipe, fit_model

STEPS, KILLED_AFTER = 6, 3
# trains in a process of its own, which dies with the step's checkpoint in the store, as a pod whose node is lost
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_stored_checkpoint import KILLED_AFTER, TOYS, fit_model, recipe, toy_pool
from toy_training import TINY
from hepar.params import load_params
from hepar.runtime.stored_checkpoint import StoredCheckpoint

save, saved = StoredCheckpoint.save, []

def save_and_die(self, folder):
    save(self, folder)
    saved.append(folder)
    if len(saved) == KILLED_AFTER:
        os.kill(os.getpid(), signal.SIGKILL)

StoredCheckpoint.save = save_and_die
folder = Path(sys.argv[1])
fit_model(toy_pool(folder, TOYS), folder / "model", recipe(load_params(TINY)), {})
"""


def recipe(tiny: Params) -> Recipe:
    """A training that sends a checkpoint after every step."""
    settings = toy_settings(tiny, steps=STEPS, checkpoint_every=1000, checkpoint_minutes=1e-9)
    return Recipe(tiny.network, settings, (Modality.CT, Modality.MR), "tests")


@pytest.mark.usefixtures("database")
def test_a_new_container_with_an_empty_disk_ends_with_the_same_weights(
    tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, new, store = tmp_path / "lost", tmp_path / "new", tmp_path / "store"
    undisturbed = toy_pool(tmp_path / "undisturbed", TOYS)
    fit_model(undisturbed, tmp_path / "undisturbed" / "model", recipe(tiny), {})
    monkeypatch.setenv(STORE_VARIABLE, str(store))
    places = {STORE_VARIABLE: str(store), "MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"]}
    killed = script(KILLED, str(lost), str(Path(__file__).parent), folder=tmp_path, **places)
    assert killed.code == -signal.SIGKILL, killed.stderr
    (kept,) = (store / "checkpoints").glob("model-*/checkpoint.pt")
    checkpoint = load_checkpoint(kept.parent)
    assert checkpoint is not None
    assert checkpoint["step"] == KILLED_AFTER
    shutil.rmtree(lost)
    begun = (kept.parent / "mlflow_run").read_text()

    fit_model(toy_pool(new, TOYS), new / "model", recipe(tiny), {})

    first, second = (read_manifest(folder / "model", "model") for folder in (tmp_path / "undisturbed", new))
    assert second.hash == first.hash
    assert (new / "model" / "weights.pt").read_bytes() == (tmp_path / "undisturbed/model/weights.pt").read_bytes()
    assert not [path for path in (store / "checkpoints").rglob("*") if path.is_file()], "removed once it has finished"
    losses = mlflow.MlflowClient().get_metric_history(begun, "train/loss")
    assert [metric.step for metric in losses] == list(range(1, STEPS + 1)), "in the run that was begun"


def test_a_store_that_fails_does_not_end_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "store").write_text("not a folder")
    stored = StoredCheckpoint(Store(str(tmp_path / "store")), "model-1", (FILE,), minutes=60.0)
    save_checkpoint(tmp_path / "here", {"step": 1})
    stored.save(tmp_path / "here")
    stored.remove()
    assert "the checkpoint was not sent" in capsys.readouterr().err
    assert not stored.is_due()


def test_a_checkpoint_on_the_disk_goes_before_that_of_the_store(tmp_path: Path) -> None:
    stored = StoredCheckpoint(Store(str(tmp_path / "store")), "model-1", (FILE,), minutes=60.0)
    stored.restore(tmp_path / "new")
    assert not (tmp_path / "new").exists(), "the store has none"
    save_checkpoint(tmp_path / "old", {"step": 1})
    stored.save(tmp_path / "old")
    save_checkpoint(tmp_path / "new", {"step": 2})
    stored.restore(tmp_path / "new")
    assert load_checkpoint(tmp_path / "new") == {"step": 2}
    stored.restore(tmp_path / "empty")
    assert load_checkpoint(tmp_path / "empty") == {"step": 1}


@pytest.mark.parametrize(("optional", "found"), [(("run",), {"step": 1}), ((), None)])
def test_only_optional_files_of_a_checkpoint_may_be_missing_from_the_store(
    optional: tuple[str, ...], found: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = StoredCheckpoint(Store(str(tmp_path / "store")), "model-1", ("run", FILE), optional=optional)
    save_checkpoint(tmp_path / "old", {"step": 1})
    stored.save(tmp_path / "old")
    stored.restore(tmp_path / "new")
    assert load_checkpoint(tmp_path / "new") == found
    assert ("lacks run and is not used" in capsys.readouterr().err) == (found is None)
