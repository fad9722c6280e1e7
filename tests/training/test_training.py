"""Training: a network learns a ball, a killed run goes on as if nothing had happened, and a NaN says what to do."""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from torch import Tensor
from toy_pool import Toy, toy_pool

from hepar.cases import LabelState, Modality, Split
from hepar.cli.main import errors_as_sentences
from hepar.errors import HeparError, ParamsError, Preempted
from hepar.evaluation.overlap import OverlapCounts
from hepar.inference.patients import hash_patient, patients_seen
from hepar.inference.prediction import read_spec, sliding_window
from hepar.networks import build_network
from hepar.params import Params, TrainingParams
from hepar.pool.table import Pool
from hepar.registry.tracking import TrainingRun
from hepar.runtime.artifacts import read_manifest
from hepar.runtime.progress import Stage
from hepar.training import distributed, loop
from hepar.training.batches import Waits, batches, make_batch
from hepar.training.checkpoint import checkpoint_folder, load_checkpoint, save_checkpoint
from hepar.training.fit import Recipe, fit_model
from hepar.training.loop import COLUMNS, Trained, Trainer, consistency_weight, learning_rate

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
PATCH = (16, 32, 32)
TOYS = [
    Toy("ct-1", shape=PATCH, liver=((8, 16, 16), 7.0), lesions=(((8, 14, 18), 3.0),)),
    Toy("mr-1", Modality.MR, shape=PATCH, liver=((8, 18, 14), 6.5), lesions=(((8, 18, 12), 3.0),)),
    Toy("ct-2", split=Split.VAL, shape=PATCH, liver=((8, 15, 16), 7.0), lesions=(((8, 15, 13), 3.0),)),
]
# trains in a process of its own and, at a step, dies as by a power cut
KILLED = """
import os, signal, sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from test_training import TOYS, learner, toy_pool
from hepar.params import load_params
from hepar.runtime.progress import Stage

def die(step, metrics):
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
tiny = load_params(Path(sys.argv[3]))
learner(toy_pool(folder, TOYS), tiny, folder / "checkpoints", die, steps=8, checkpoint_every=3).run(Stage("train"))
"""


def settings(tiny: Params, **changes: Any) -> TrainingParams:
    values = {**tiny.train_universal.training.model_dump(), "patch_zyx": PATCH, "validate_every": 4, **changes}
    return TrainingParams.model_validate(values)


def ignore(step: int, metrics: dict[str, float]) -> None:
    """Metrics that nobody follows."""


def learner(
    pool: Pool, tiny: Params, checkpoints: Path, on_metrics: Any = ignore, seed: int = 3, **changes: Any
) -> Trainer:
    """A trainer of the tiny network, always with the same fresh weights."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(tiny.network.name, tiny.network.config, tiny.train_universal.training.patch_zyx)
    return Trainer(network, pool, settings(tiny, **changes), checkpoints, CPU, on_metrics)


def train(trainer: Trainer) -> Trained:
    return trainer.run(Stage("train"))


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return toy_pool(tmp_path_factory.mktemp("pool"), TOYS)


@pytest.fixture(scope="module")
def uninterrupted(pool: Pool, tiny: Params, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(learner(pool, tiny, tmp_path_factory.mktemp("once"), steps=8, checkpoint_every=3))


def test_the_learning_rate_warms_up_evenly_and_then_falls_towards_zero(tiny: Params) -> None:
    params = settings(tiny, steps=12, warmup_steps=4, learning_rate=0.8)
    assert [learning_rate(step, params) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert learning_rate(8, params) == pytest.approx(0.8 * 0.5**0.9)
    assert learning_rate(11, params) == pytest.approx(0.8 * 0.125**0.9)
    assert learning_rate(0, settings(tiny, steps=12, warmup_steps=0, learning_rate=0.8)) == 0.8
    cosine = settings(tiny, steps=12, warmup_steps=4, learning_rate=0.8, schedule="cosine")
    assert [learning_rate(step, cosine) for step in (4, 8, 10)] == pytest.approx([0.8, 0.4, 0.4 * (1 - 0.5**0.5)])


def test_accumulated_batches_give_the_mean_of_their_gradients(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    one = learner(pool, tiny, tmp_path / "one", steps=1, batch_size=1, accumulate=3, clip_norm=1e9)
    losses, gradients = [], []
    for number in range(3):
        lone = learner(pool, tiny, tmp_path / "lone", steps=3, batch_size=1, clip_norm=1e9)
        losses.append(lone._step([make_batch(lone.sampler, number, lone.params, CPU)]))
        gradients.append([parameter.grad for parameter in lone.network.parameters()])
    together = one._step(list(batches(one.sampler, 0, one.params, CPU)))
    assert together == pytest.approx(sum(losses) / 3, rel=1e-5)
    for parameter, *parts in zip(one.network.parameters(), *gradients, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, sum(parts) / 3, atol=1e-5)


def test_training_ends_when_validations_get_no_better(
    pool: Pool, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([50, 60, 60, 55, 90])  # of a hundred voxels
    monkeypatch.setattr(Trainer, "_overlaps", lambda *_: ([OverlapCounts(100, 100, next(scores))], []))
    trainer = learner(pool, tiny, tmp_path, steps=10, validate_every=2, patience=2, checkpoint_every=100)
    history = train(trainer).history
    assert history[history.split == "val"].value.tolist() == [0.5, 0.6, 0.6, 0.55]
    assert trainer.at.step == 8


def test_a_small_network_overfits_one_ball(tiny: Params, tmp_path: Path) -> None:
    steady = tiny.train_universal.training.augmentation.model_copy(
        update={"affine_probability": 0.0, "intensity_probability": 0.0, "blur_probability": 0.0}
    )
    trainer = learner(
        toy_pool(tmp_path, TOYS[:1]),
        tiny,
        tmp_path / "checkpoints",
        steps=24,
        batch_size=1,
        learning_rate=0.02,
        augmentation=steady.model_dump(),
        validate_every=1000,
        checkpoint_every=1000,
    )
    history = train(trainer).history
    loss = history[history.metric == "loss"].value.to_numpy()
    assert loss[-1] < 0.2 * loss[0]


def test_the_same_training_gives_the_same_weights_and_history(
    pool: Pool, tiny: Params, tmp_path: Path, uninterrupted: Trained
) -> None:
    again = train(learner(pool, tiny, tmp_path, steps=8, checkpoint_every=3))
    assert equal(again.weights, uninterrupted.weights)
    pd.testing.assert_frame_equal(again.history, uninterrupted.history)


def test_training_changes_the_weights_by_the_seed_of_its_patches(
    pool: Pool, tiny: Params, tmp_path: Path, uninterrupted: Trained
) -> None:
    assert not equal(uninterrupted.weights, train(learner(pool, tiny, tmp_path, steps=4, checkpoint_every=3)).weights)


@pytest.mark.parametrize(("step", "saved"), [(2, None), (5, 3), (7, 6)])  # every third step is saved
def test_a_run_that_was_killed_goes_on_to_the_very_same_weights(
    step: int, saved: int | None, pool: Pool, tiny: Params, tmp_path: Path, uninterrupted: Trained
) -> None:
    environment = {"PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2])), "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(step), str(ROOT / "params" / "tiny.yaml")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    left = load_checkpoint(tmp_path / "checkpoints")
    assert (None if left is None else left["step"]) == saved  # the steps after it are lost, and done again
    resumed = train(learner(pool, tiny, tmp_path / "checkpoints", steps=8, checkpoint_every=3))
    assert equal(resumed.weights, uninterrupted.weights)
    pd.testing.assert_frame_equal(resumed.history, uninterrupted.history)


def test_a_run_that_failed_after_its_validation_keeps_its_best_weights(
    pool: Pool, tiny: Params, tmp_path: Path, uninterrupted: Trained
) -> None:
    class PowerCutError(Exception):
        pass

    def fail(step: int, metrics: dict[str, float]) -> None:
        if step == 7:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        train(learner(pool, tiny, tmp_path, fail, steps=8, checkpoint_every=3))
    resumed = train(learner(pool, tiny, tmp_path, seed=99, steps=8, checkpoint_every=3))  # its fresh weights are unused
    assert equal(resumed.weights, uninterrupted.weights)


def test_a_finished_run_has_nothing_left_to_do(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    steps: list[int] = []
    first = train(learner(pool, tiny, tmp_path, steps=2, checkpoint_every=2))
    again = train(learner(pool, tiny, tmp_path, lambda step, _: steps.append(step), steps=2, checkpoint_every=2))
    assert steps == []
    assert equal(first.weights, again.weights)


def test_threads_that_cut_ahead_change_no_batch(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    trainer = learner(pool, tiny, tmp_path, steps=8)
    alone, ahead = (list(batches(trainer.sampler, 2, settings(tiny, steps=8, workers=n), CPU)) for n in (0, 2))
    assert len(alone) == len(ahead) == 6
    assert all(
        torch.equal(a, b)
        for one, other in zip(alone, ahead, strict=True)
        for a, b in ((one.image, other.image), (one.y, other.y), (one.m, other.m))
    )


def test_a_thread_that_cuts_ahead_starts_no_others() -> None:
    script = """
import os, threading
import torch
import torch.nn.functional as F
from hepar.runtime.device import alone, use_threads

def work():
    F.conv3d(torch.ones(1, 4, 16, 32, 32), torch.ones(4, 4, 3, 3, 3))
    F.affine_grid(torch.eye(3, 4)[None], [1, 1, 32, 48, 48], align_corners=False)
    found.append(len(os.listdir("/proc/self/task")))

found = []
use_threads(2)
work()
for begin in (alone, lambda: None):
    thread = threading.Thread(target=lambda: (begin(), work()))
    thread.start()
    thread.join()
print(*found)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    main, alone, free = map(int, done.stdout.split())
    assert alone == main + 1
    assert free > alone  # else this test would not see it


def test_history_tells_losses_and_scores_by_modality(uninterrupted: Trained) -> None:
    history = uninterrupted.history
    assert list(history.columns) == COLUMNS
    assert history[history.split == "train"].step.tolist() == list(range(1, 9))
    scores = history[history.split == "val"]
    assert scores.step.unique().tolist() == [4, 8]
    assert set(scores.modality) == {"CT"}  # no MR case is held out
    assert set(scores.metric) == {"liver_dice", "tumour_dice"}
    assert scores.value.between(0, 1).all()


def test_the_parts_of_the_loss_are_told_beside_it(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    told: dict[str, list[float]] = {}

    def note(step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            told.setdefault(name, []).append(value)

    trainer = learner(pool, tiny, tmp_path, note, steps=3)
    train(trainer)
    weight = trainer.params.nesting_weight
    for loss, bce, dice, nesting in zip(*(told[f"train/{n}"] for n in ("loss", "bce", "dice", "nesting")), strict=True):
        assert loss == pytest.approx(bce + dice + weight * nesting, rel=1e-5)
    assert len(told["train/gradient_norm"]) == 3
    assert all(value > 0 for value in told["train/gradient_norm"])


def test_a_loss_that_is_no_number_is_told_with_its_step_and_a_way_out(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    trainer = learner(pool, tiny, tmp_path, steps=8, learning_rate=0.004, clip_norm=0.5)
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(
        HeparError, match=r"^the loss is nan at step 1: lower learning_rate \(0\.004\) or clip_norm \(0\.5\)$"
    ):
        train(trainer)


def test_a_gradient_that_is_no_number_is_told_before_it_reaches_the_weights(
    pool: Pool, tiny: Params, tmp_path: Path
) -> None:
    trainer = learner(pool, tiny, tmp_path, steps=8, validation_cases=0)
    first = next(iter(trainer.network.parameters()))
    first.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(HeparError, match=r"^the gradient's norm is (inf|nan) at step 1: lower learning_rate"):
        train(trainer)
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.network.parameters())


def test_a_tumour_that_is_seen_where_there_is_none_lowers_the_score(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    held_out = [
        *TOYS,
        Toy(
            "healthy",
            Modality.MR,
            split=Split.VAL,
            shape=PATCH,
            liver=((8, 15, 16), 7.0),
            tumour_state=LabelState.ABSENT,
        ),
        Toy("no-liver", split=Split.VAL, shape=PATCH, liver_state=LabelState.UNKNOWN, lesions=(((8, 15, 13), 3.0),)),
    ]
    trainer = learner(toy_pool(tmp_path, held_out), tiny, tmp_path / "checkpoints")
    entries = trainer._validation_entries()
    assert [entry.case_id for entry in entries] == ["ct-2", "no-liver", "healthy"]

    class Everything(torch.nn.Module):
        def __init__(self, tumour_in_mr: float) -> None:
            super().__init__()
            self.tumour_in_mr = tumour_in_mr

        def forward(self, image: Tensor) -> Tensor:
            return torch.cat([torch.ones_like(image), torch.full_like(image, self.tumour_in_mr)], dim=1)

    found = {}
    for seen in (9.0, -9.0):
        trainer.ema.module = Everything(seen)
        found[seen] = trainer._overlaps([e for e in entries if e.case_id == "healthy"], lambda: False)[1]
    assert [counts.prediction_voxels > 0 for (counts,) in found.values()] == [True, False]
    lesions = trainer._overlaps([e for e in entries if e.modality == Modality.CT], lambda: False)[1]
    assert len(lesions) == 2
    hit = [
        replace(counts, prediction_voxels=counts.reference_voxels, intersection_voxels=counts.reference_voxels)
        for counts in lesions
    ]
    assert loop._tumour_dice(hit) == {"tumour_dice": 1.0}
    assert loop._tumour_dice([*hit, *found[9.0]])["tumour_dice"] < 0.1
    assert loop._tumour_dice(found[9.0]) == {}


def test_without_validation_cases_the_last_average_is_kept(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    trainer = learner(pool, tiny, tmp_path, steps=3, validation_cases=0)
    weights = train(trainer).weights
    assert equal(weights, trainer.ema.module.state_dict())
    assert not equal(weights, trainer.network.state_dict())


def test_the_last_two_checkpoints_are_kept_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "checkpoints"
    assert load_checkpoint(folder) is None
    for step in (1, 2, 3):
        save_checkpoint(folder, {"step": step, "weights": torch.ones(2) * step})
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt", "previous.pt"]
    assert loaded_step(folder) == 3
    with (folder / "checkpoint.pt").open("r+b") as stream:
        stream.truncate(100)
    assert loaded_step(folder) == 2
    (folder / "checkpoint.pt").unlink()  # as when the machine dies between the two renames
    assert loaded_step(folder) == 2


def loaded_step(folder: Path) -> int:
    state = load_checkpoint(folder)
    assert state is not None
    assert torch.equal(state["weights"][:2], torch.ones(2) * state["step"])
    return int(state["step"])


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one_whole(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"step": 1, "weights": torch.ones(2)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(HeparError, match="the checkpoint of step 2 cannot be written to"):
            save_checkpoint(tmp_path, {"step": 2, "weights": torch.ones(100_000) * 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert loaded_step(tmp_path) == 1


def test_a_run_that_is_told_to_stop_saves_its_step_and_goes_on_to_the_same_weights(
    pool: Pool, tiny: Params, tmp_path: Path, uninterrupted: Trained
) -> None:
    def tell(step: int, metrics: dict[str, float]) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="stopped by SIGTERM at step 5, which is saved"), errors_as_exit_code(75):
        train(learner(pool, tiny, tmp_path, tell, steps=8, checkpoint_every=100))
    assert signal.getsignal(signal.SIGTERM) == before
    resumed = train(learner(pool, tiny, tmp_path, seed=99, steps=8, checkpoint_every=100))
    assert equal(resumed.weights, uninterrupted.weights)


@pytest.mark.parametrize("step", [4, 8])  # of the first validation, and of the last, with which the training ends
def test_a_run_that_is_told_to_stop_while_it_validates_does_it_again(
    step: int, pool: Pool, tiny: Params, tmp_path: Path, uninterrupted: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def window(*arguments: Any) -> Any:
        calls.append(trainer.at.step)
        if trainer.at.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return sliding_window(*arguments)

    monkeypatch.setattr(loop, "sliding_window", window)
    trainer = learner(pool, tiny, tmp_path, steps=8, checkpoint_every=100)
    for _ in range(2):  # the second time in the validation with which it begins
        with pytest.raises(Preempted, match=f"at step {step}, which is saved"):
            train(trainer)
        trainer = learner(pool, tiny, tmp_path, seed=99, steps=8, checkpoint_every=100)
    assert calls.count(step) == 2
    monkeypatch.undo()
    resumed = train(trainer)
    assert equal(resumed.weights, uninterrupted.weights)
    pd.testing.assert_frame_equal(resumed.history, uninterrupted.history)


def test_a_training_that_goes_on_does_so_in_its_own_run_of_mlflow(
    pool: Pool, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    recipe = Recipe(tiny.network, settings(tiny, steps=4), (Modality.CT,))
    log = TrainingRun.log

    def stop(self: TrainingRun, step: int, metrics: dict[str, float]) -> None:
        log(self, step, metrics)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "log", stop)
        with pytest.raises(Preempted):
            fit_model(pool, tmp_path / "model", recipe, {})
    (stopped,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert stopped.info.status == "KILLED"
    other = Recipe(tiny.network, settings(tiny, steps=4, checkpoint_every=7), (Modality.CT,))  # runs as another one may
    fit_model(pool, tmp_path / "model", other, {})
    (whole,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert (whole.info.run_id, whole.info.status) == (stopped.info.run_id, "FINISHED")
    losses = mlflow.MlflowClient().get_metric_history(whole.info.run_id, "train/loss")
    assert [metric.step for metric in losses] == [1, 2, 3, 4]
    fit_model(pool, tmp_path / "again", recipe, {})
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == 2


@contextmanager
def errors_as_exit_code(code: int) -> Iterator[None]:
    """Checks the exit code that the command line gives to the error that passes."""
    try:
        yield
    except HeparError as error:
        with pytest.raises(SystemExit) as caught, errors_as_sentences():
            raise error
        assert caught.value.code == code
        raise


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] can't allocate memory: 9 GB"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_told_with_a_way_out(
    error: Exception, pool: Pool, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = learner(pool, tiny, tmp_path, steps=8)

    def fail(parts: Any) -> float:
        raise error

    monkeypatch.setattr(trainer, "_step", fail)
    with pytest.raises(HeparError, match=r"out of memory at step 1: lower training.batch_size .* cache_gib \(8\)$"):
        train(trainer)
    monkeypatch.setattr(loop, "PatchSampler", lambda *arguments: fail(arguments))
    with pytest.raises(HeparError, match=r"out of memory at step 1: lower training.batch_size"):
        learner(pool, tiny, tmp_path, steps=8)


def test_without_a_compiler_a_network_is_not_compiled(
    pool: Pool, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config, "fx_graph_cache", False)
    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.GELU())
    trainer = Trainer(network, pool, settings(tiny), tmp_path, CPU, ignore)
    trainer.params, trainer.forward = settings(tiny, compile=True), torch.compile(network)
    with pytest.raises(HeparError, match=r"^training.compile is true, but .*no-such-compiler.*: set it to false, or"):
        train(trainer)


def test_on_a_cpu_nothing_is_compiled(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"^training.compile is true, but there is no GPU"):
        learner(pool, tiny, tmp_path, compile=True)


def test_arrays_that_do_not_fit_the_cache_are_read_from_disk_to_the_same_weights(
    pool: Pool, tiny: Params, tmp_path: Path, uninterrupted: Trained
) -> None:
    trainer = learner(pool, tiny, tmp_path, steps=8, checkpoint_every=3, cache_gib=0)
    assert trainer.sampler._loaded is None
    assert equal(train(trainer).weights, uninterrupted.weights)


def test_checkpoints_belong_to_one_training_and_lie_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "models" / "ct"
    assert checkpoint_folder(model, "a" * 64) != checkpoint_folder(model, "b" * 64)
    assert checkpoint_folder(model, "a" * 64).parent.parent == tmp_path / "models"
    monkeypatch.setenv("HEPAR_CHECKPOINTS", str(tmp_path / "kept"))
    assert checkpoint_folder(model, "a" * 64).parent == tmp_path / "kept"


def test_consistency_learns_from_cases_that_nobody_labelled(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    unlabelled = Toy("ct-3", shape=PATCH, liver_state=LabelState.UNKNOWN, tumour_state=LabelState.UNKNOWN, level=5.0)
    larger = toy_pool(tmp_path / "pool", [*TOYS, unlabelled])
    without = learner(larger, tiny, tmp_path / "without", steps=4)
    taught = learner(larger, tiny, tmp_path / "with", steps=4, consistency_weight=1.0, consistency_rampup_steps=2)
    assert [entry.case_id for entry in without.sampler.entries] == ["ct-1", "mr-1"]
    assert [entry.case_id for entry in taught.sampler.entries] == ["ct-1", "mr-1", "ct-3"]
    assert train(taught).history.value.notna().all()


def test_a_teacher_that_sees_the_patch_as_it_was_pulls_where_nothing_is_known(tiny: Params, tmp_path: Path) -> None:
    unlabelled = Toy("ct-3", shape=PATCH, liver_state=LabelState.UNKNOWN, tumour_state=LabelState.UNKNOWN)
    toys = toy_pool(tmp_path / "pool", [*TOYS, unlabelled])
    trainer = learner(toys, tiny, tmp_path, nesting_weight=0.0, consistency_weight=2.0, consistency_rampup_steps=0)
    batch = make_batch(trainer.sampler, 0, trainer.params, CPU)
    assert batch.plain is not None
    assert batch.plain.shape == batch.image.shape
    nothing_known = replace(batch, m=torch.zeros_like(batch.m))
    trainer.network.eval()
    with torch.no_grad():
        for parameter in trainer.ema.parameters():
            parameter.mul_(0.5)
        own, taught = trainer.network(batch.image).sigmoid(), trainer.ema.module(batch.plain).sigmoid()
    assert trainer._loss(nothing_known).item() == pytest.approx(2 * float(((own - taught) ** 2).mean()), rel=1e-4)


def test_the_weight_of_consistency_grows_from_almost_nothing(tiny: Params) -> None:
    params = settings(tiny, consistency_weight=3.0, consistency_rampup_steps=10)
    grown = [consistency_weight(step, params) for step in (0, 5, 10, 50)]
    assert grown == pytest.approx([3 * math.exp(-5), 3 * math.exp(-5 / 4), 3, 3])
    assert consistency_weight(0, settings(tiny, consistency_weight=3.0, consistency_rampup_steps=0)) == 3


def test_a_pool_without_any_known_label_is_refused_with_a_way_out(tiny: Params, tmp_path: Path) -> None:
    absent = replace(TOYS[0], liver_state=LabelState.UNKNOWN, tumour_state=LabelState.ABSENT)
    trainer = learner(toy_pool(tmp_path, [absent]), tiny, tmp_path / "checkpoints", steps=4)
    with pytest.raises(HeparError, match=r"^no training case has a liver or tumour that is known: draw one"):
        train(trainer)


def test_a_modality_without_tumours_is_told(tiny: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toys = [TOYS[0], replace(TOYS[1], tumour_state=LabelState.UNKNOWN)]
    train(learner(toy_pool(tmp_path, toys), tiny, tmp_path / "checkpoints", steps=1))
    assert "no MR training case has a tumour mask" in " ".join(capsys.readouterr().err.split())


def test_half_precision_scales_its_loss_and_resumes_with_its_scale(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    half = {"precision": "fp16", "steps": 4, "checkpoint_every": 2}
    through = train(learner(pool, tiny, tmp_path / "through", **half))
    stopped = learner(pool, tiny, tmp_path / "stopped", **half)
    stopped.at.step, stopped.params = 0, settings(tiny, **{**half, "steps": 2})
    train(stopped)
    state = load_checkpoint(tmp_path / "stopped")
    assert state is not None
    assert state["scaler"]["scale"] > 1
    state["scaler"]["scale"] = 64.0
    save_checkpoint(tmp_path / "stopped", state)
    resumed = learner(pool, tiny, tmp_path / "stopped", **half)
    assert through.history.value.notna().all()
    assert train(resumed).history.value.notna().all()
    assert resumed.scaler.get_scale() == 64.0


def test_the_wait_for_batches_is_told_as_a_share(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    told: dict[str, float] = {}
    train(learner(pool, tiny, tmp_path, lambda step, metrics: told.update(metrics), steps=4))
    assert 0 < told["train/wait_share"] < 1
    waits = Waits()
    with waits.waiting():
        time.sleep(0.05)
    time.sleep(0.05)
    assert waits.share == pytest.approx(0.5, abs=0.2)


def test_weights_of_another_network_cannot_warm_this_one(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    recipe = Recipe(tiny.network, settings(tiny, steps=1), (Modality.CT,))
    torch.save({"stem.weight": torch.ones(1)}, tmp_path / "weights.pt")
    with pytest.raises(HeparError, match=r"^the weights of train_universal\.warm_start are of another network: "):
        fit_model(pool, tmp_path / "model", recipe, {}, start=tmp_path)


def test_a_warm_start_remembers_the_patients_of_its_model(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    recipe = Recipe(tiny.network, settings(tiny, steps=1), (Modality.CT,))
    alone = toy_pool(tmp_path / "pool", [Toy("another", shape=PATCH, liver=((8, 16, 16), 7.0))])
    fit_model(alone, tmp_path / "first", recipe, {})
    fit_model(pool, tmp_path / "second", recipe, {}, start=tmp_path / "first", notes={"pool version": "v"})
    seen = patients_seen(tmp_path / "second")
    assert seen == {hash_patient(name) for name in ("another", *(toy.case_id for toy in TOYS))}
    assert read_manifest(tmp_path / "second", "model").parents == {"pool version": "v"}
    assert read_spec(tmp_path / "second").origin == {}


def test_a_batch_norm_is_refused_where_its_statistics_would_be_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Sequential(torch.nn.BatchNorm3d(2))
    assert distributed.synchronised(network, CPU) is network
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(ParamsError, match="batch norms"):
        distributed.synchronised(network, CPU)


def test_gradient_checkpointing_is_refused_where_the_network_has_none(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    plain = torch.nn.Conv3d(1, 2, 1)
    with pytest.raises(ParamsError, match="only medformer"):
        Trainer(plain, pool, settings(tiny, gradient_checkpointing=True), tmp_path, CPU, ignore)


def test_gradient_checkpointing_trains_the_same_network(
    pool: Pool, tiny: Params, uninterrupted: Trained, tmp_path: Path
) -> None:
    checkpointed = train(learner(pool, tiny, tmp_path, steps=8, checkpoint_every=3, gradient_checkpointing=True))
    assert list(checkpointed.history["value"]) == pytest.approx(list(uninterrupted.history["value"]), abs=1e-5)
