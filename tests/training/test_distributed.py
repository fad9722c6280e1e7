"""Training in several processes: the results of one process, a common stop, and errors in one sentence."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from commands import Forked, fork
from conftest import call
from services import free_ports
from toy_pool import toy_pool
from toy_step import save_step
from toy_training import CPU, TOYS, toy_settings
from train_toys import train_toys, variables

from hepar.errors import ParamsError
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params
from hepar.training import distributed
from hepar.training.checkpoint import load_checkpoint
from hepar.training.fit import Recipe, fit_model

TRAIN = Path(__file__).parents[1] / "train_toys.py"
SECONDS = 300  # that a training may take


@pytest.fixture
def new_folder(tmp_path: Path, empty_database: Path) -> Callable[[str], Path]:
    """Makes a folder for a training, with a database."""

    def new(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(empty_database, folder / "mlflow.db")
        return folder

    return new


def start_training(folder: Path, processes: int, **changes: Any) -> Forked:
    return fork(train_toys, folder, processes, changes, folder=folder, **variables(folder))


def torchrun(folder: Path) -> None:
    """Train in two processes of torchrun."""
    words = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(TRAIN), str(folder), "0", "{}"]
    done = call(sys.executable, "-m", *words, cwd=folder, PYTHONPATH=str(TRAIN.parent), **variables(folder))
    assert done.returncode == 0, done.stderr


def history_of_training(folder: Path, processes: int, **changes: Any) -> pd.DataFrame:
    """The history of a training that succeeds."""
    child = start_training(folder, processes, **changes).end(SECONDS)
    assert child.code == 0, child.stderr
    return ModelFolder(folder / "model").load_history()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> pd.DataFrame:
    """The history of a training in one process."""
    folder = tmp_path_factory.mktemp("single")
    shutil.copy(empty_database, folder / "mlflow.db")
    return history_of_training(folder, 1)


@pytest.mark.slow
@pytest.mark.parametrize("by_torchrun", [False, True], ids=["launched by itself", "launched by torchrun"])
def test_two_processes_have_the_losses_of_one(
    by_torchrun: bool, single: pd.DataFrame, new_folder: Callable[[str], Path]
) -> None:
    folder = new_folder("shared")
    if by_torchrun:
        torchrun(folder)
        shared = ModelFolder(folder / "model").load_history()
    else:
        shared = history_of_training(folder, 2)
    assert shared[["step", "split", "metric"]].equals(single[["step", "split", "metric"]])
    losses = [history[history.metric == "loss"].value.to_numpy() for history in (single, shared)]
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.slow
def test_a_shared_batch_has_the_loss_and_gradients_of_a_single_process(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [{**group, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    steps = [fork(save_step, tmp_path / "shared", folder=tmp_path, **rank) for rank in ranks]
    steps.append(fork(save_step, tmp_path / "single", folder=tmp_path))
    ended = [step.end(SECONDS) for step in steps]
    assert [step.code for step in ended] == [0] * 3, ended
    loss, gradients = torch.load(tmp_path / "single" / "step.pt")
    shared_loss, shared_gradients = torch.load(tmp_path / "shared" / "step.pt")
    assert shared_loss == pytest.approx(loss, abs=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    for one, other in zip(gradients, shared_gradients, strict=True):
        assert float((one - other).abs().max()) < 1e-4 * largest


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_ends_the_training_in_one_sentence(
    new_folder: Callable[[str], Path],
) -> None:
    folder = new_folder("broken")
    child = start_training(folder, 2, learning_rate=1e30, clip_norm=1e30, warmup_steps=0).end(SECONDS)
    assert child.code == 2, child.stderr
    assert child.stderr.rstrip().splitlines()[-1].startswith("hepar: the loss is ")
    assert not (folder / "model").exists()


@pytest.mark.slow
def test_processes_stopped_by_sigterm_save_the_same_step_and_others_resume_from_it(
    new_folder: Callable[[str], Path],
) -> None:
    changes, folder = {"steps": 24, "checkpoint_every": 1, "validate_every": 24}, new_folder("stopped")
    child = start_training(folder, 2, **changes)
    wait_for_checkpoint(folder / "checkpoints", child)
    child.process.terminate()
    stopped = child.end(SECONDS)
    assert stopped.code == os.EX_TEMPFAIL, stopped.stderr
    assert "which is saved: run again to resume" in stopped.stderr.rstrip().splitlines()[-1]
    (saved,) = (folder / "checkpoints").iterdir()
    checkpoint = load_checkpoint(saved)
    assert checkpoint is not None
    assert f"stopped by SIGTERM at step {checkpoint['step']}," in stopped.stderr
    resumed = history_of_training(folder, 2, **changes)
    whole = history_of_training(new_folder("whole"), 1, **changes)
    losses = [history[history.metric == "loss"].value.to_numpy() for history in (resumed, whole)]
    assert len(losses[0]) == 24
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def wait_for_checkpoint(folder: Path, child: Forked) -> None:
    end = time.monotonic() + 120
    while not list(folder.glob("*/checkpoint.pt")):
        assert child.process.is_alive(), child.end()
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_batch_size_that_the_processes_cannot_share_is_refused(tiny: Params, tmp_path: Path) -> None:
    training = toy_settings(tiny, batch_size=4, processes=3)
    with pytest.raises(ParamsError, match=r"^training\.batch_size is 4 but must be divisible by 3, the number of"):
        fit_model(toy_pool(tmp_path, TOYS), tmp_path / "model", Recipe(tiny.network, training, (), "tests"), {})


@pytest.mark.parametrize(("gpus", "batch_size", "expected"), [(0, 4, 1), (1, 4, 1), (4, 4, 4), (8, 2, 2), (3, 4, 2)])
def test_there_is_one_process_per_gpu_as_far_as_they_divide_the_batch(
    gpus: int, batch_size: int, expected: int, tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert distributed.process_count(toy_settings(tiny, batch_size=batch_size)) == expected


def test_the_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "available_cores", lambda: 16)
    assert distributed.threads_per_process(0) == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert distributed.threads_per_process(0) == 4
    assert distributed.threads_per_process(3) == 3


def test_a_single_process_gets_its_own_values_back() -> None:
    tensor = torch.ones(2)
    assert distributed.all_reduce_sum(tensor) is tensor
    assert distributed.all_reduce_any(True, CPU)
    assert not distributed.all_reduce_any(False, CPU)
    assert distributed.all_gather("own") == ["own"]
    assert distributed.broadcast("own") == "own"


def test_batch_norms_that_cannot_be_synchronised_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Sequential(torch.nn.BatchNorm3d(2))
    assert distributed.sync_batch_norm(network, CPU) is network
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ParamsError, match="batch norms"):
        distributed.sync_batch_norm(network, CPU)
