"""Training in several processes: the results of one process, a common stop, and errors in one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from toy_pool import toy_pool
from toy_training import CPU, TOYS, toy_settings

from hepar.errors import ParamsError
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params
from hepar.training import distributed
from hepar.training.checkpoint import load_checkpoint
from hepar.training.fit import Recipe, fit_model

TRAIN = (Path(__file__).parents[1] / "train_toys.py").read_text()
# one step on a batch in two parts, with every term of the loss; saves loss and gradients; argument: the folder
STEP = """
import sys
from itertools import islice
from pathlib import Path
import torch
from toy_pool import toy_pool
from toy_training import TINY, TOYS, toy_trainer
from hepar.params import load_params
from hepar.training import distributed
from hepar.training.batches import batches

folder = Path(sys.argv[1])
with distributed.process_group() as device:
    pool = toy_pool(folder / f"pool-{distributed.rank()}", TOYS)
    trainer = toy_trainer(
        pool, load_params(TINY), folder / "checkpoints",
        batch_size=4, accumulate=2, clip_norm=1e9,
        nesting_weight=1.0, consistency_weight=1.0, consistency_rampup_steps=0,
    )
    with torch.no_grad():  # a teacher that differs from the network
        for parameter in trainer.state.ema.parameters():
            parameter.mul_(0.5)
    loss = trainer._step(list(islice(batches(trainer.sampler, 0, trainer.params, device), 2)))
    if distributed.rank() == 0:
        torch.save([loss, [parameter.grad for parameter in trainer.network.parameters()]], folder / "step.pt")
"""


def start_training(
    folder: Path, processes: int, changes: str = "{}", by_torchrun: bool = False
) -> subprocess.Popen[str]:
    return start(TRAIN, folder, str(0 if by_torchrun else processes), changes, torchrun=2 if by_torchrun else 0)


def start(script: str, folder: Path, *arguments: str, torchrun: int = 0) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    (folder / "script.py").write_text(script)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(torchrun)] if torchrun else []
    return subprocess.Popen(
        [sys.executable, *launcher, folder / "script.py", folder, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "HEPAR_CHECKPOINTS": str(folder / "checkpoints"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def history_of_training(folder: Path, processes: int, changes: str = "{}", by_torchrun: bool = False) -> pd.DataFrame:
    """The history of a training that succeeds."""
    child = start_training(folder, processes, changes, by_torchrun)
    _, stderr = child.communicate(timeout=300)
    assert child.returncode == 0, stderr
    return ModelFolder(folder / "model").load_history()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The history of a training in one process."""
    return history_of_training(tmp_path_factory.mktemp("single"), 1)


@pytest.mark.parametrize("by_torchrun", [False, True], ids=["launched by itself", "launched by torchrun"])
def test_two_processes_have_the_losses_of_one(by_torchrun: bool, single: pd.DataFrame, tmp_path: Path) -> None:
    shared = history_of_training(tmp_path / "shared", 2, by_torchrun=by_torchrun)
    assert shared[["step", "split", "metric"]].equals(single[["step", "split", "metric"]])
    losses = [history[history.metric == "loss"].value.to_numpy() for history in (single, shared)]
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_shared_batch_has_the_loss_and_gradients_of_a_single_process(tmp_path: Path) -> None:
    steps = []
    for folder, torchrun in ((tmp_path / "single", 0), (tmp_path / "shared", 2)):
        child = start(STEP, folder, torchrun=torchrun)
        _, stderr = child.communicate(timeout=300)
        assert child.returncode == 0, stderr
        steps.append(torch.load(folder / "step.pt"))
    (loss, gradients), (shared_loss, shared_gradients) = steps
    assert shared_loss == pytest.approx(loss, abs=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    for one, other in zip(gradients, shared_gradients, strict=True):
        assert float((one - other).abs().max()) < 1e-4 * largest


def test_a_loss_that_is_not_finite_in_one_process_ends_the_training_in_one_sentence(tmp_path: Path) -> None:
    child = start_training(tmp_path / "broken", 2, '{"learning_rate": 1e30, "clip_norm": 1e30, "warmup_steps": 0}')
    _, stderr = child.communicate(timeout=300)
    assert child.returncode == 2, stderr
    assert stderr.rstrip().splitlines()[-1].startswith("hepar: the loss is ")
    assert not (tmp_path / "broken" / "model").exists()


def test_processes_stopped_by_sigterm_save_the_same_step_and_others_resume_from_it(tmp_path: Path) -> None:
    changes = '{"steps": 40, "checkpoint_every": 1}'
    child = start_training(tmp_path / "stopped", 2, changes)
    wait_for_checkpoint(tmp_path / "stopped" / "checkpoints", child)
    child.send_signal(signal.SIGTERM)
    _, stderr = child.communicate(timeout=300)
    assert child.returncode == os.EX_TEMPFAIL, stderr
    assert "which is saved: run again to resume" in stderr.rstrip().splitlines()[-1]
    (folder,) = (tmp_path / "stopped" / "checkpoints").iterdir()
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    assert f"stopped by SIGTERM at step {checkpoint['step']}," in stderr
    resumed = history_of_training(tmp_path / "stopped", 2, changes)
    whole = history_of_training(tmp_path / "whole", 1, changes)
    losses = [history[history.metric == "loss"].value.to_numpy() for history in (resumed, whole)]
    assert len(losses[0]) == 40
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def wait_for_checkpoint(folder: Path, child: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not list(folder.glob("*/checkpoint.pt")):
        assert child.poll() is None, child.communicate()
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
