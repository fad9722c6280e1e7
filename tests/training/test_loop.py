"""The training loop: it learns, resumes to the same weights, and reports errors that the user can fix."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from commands import script
from toy_pool import Toy, toy_pool
from toy_training import (
    CPU,
    PATCH,
    TOYS,
    discard_metrics,
    equal_weights,
    toy_settings,
    toy_trainer,
    train,
)

from hepar.cases import LabelState
from hepar.cli.main import errors_as_sentences
from hepar.errors import HeparError, ParamsError, Preempted
from hepar.evaluation.overlap import OverlapCounts
from hepar.inference.model_folder import ModelFolder
from hepar.inference.sliding_window import sliding_window
from hepar.params import Params
from hepar.pool.table import Pool
from hepar.training import loop, validation
from hepar.training.batches import batches, make_batch
from hepar.training.checkpoint import load_checkpoint, save_checkpoint
from hepar.training.loop import Trained, Trainer
from hepar.training.validation import Overlaps

# trains in a process of its own, which dies at a given step as in a power cut
KILLED = """
import os, signal, sys
from pathlib import Path
from toy_pool import toy_pool
from toy_training import TINY, TOYS, toy_trainer, train
from hepar.params import load_params

def die(step, metrics):
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
pool = toy_pool(folder, TOYS)
train(toy_trainer(pool, load_params(TINY), folder / "checkpoints", die, steps=8, checkpoint_every=3))
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return toy_pool(tmp_path_factory.mktemp("pool"), TOYS)


@pytest.fixture(scope="module")
def uninterrupted(pool: Pool, tiny: Params, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(toy_trainer(pool, tiny, tmp_path_factory.mktemp("once"), steps=8, checkpoint_every=3))


def test_a_small_network_overfits_one_ball(tiny: Params, tmp_path: Path) -> None:
    unchanged = tiny.train_universal.training.augmentation.model_copy(
        update={"affine_probability": 0.0, "intensity_probability": 0.0, "blur_probability": 0.0}
    )
    trainer = toy_trainer(
        toy_pool(tmp_path, TOYS[:1]),
        tiny,
        tmp_path / "checkpoints",
        steps=24,
        batch_size=1,
        learning_rate=0.02,
        augmentation=unchanged.model_dump(),
        validate_every=1000,
        checkpoint_every=1000,
    )
    history = train(trainer).history
    loss = history[history.metric == "loss"].value.to_numpy()
    assert loss[-1] < 0.2 * loss[0]


def test_accumulated_batches_give_the_mean_gradient(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    accumulating = toy_trainer(pool, tiny, tmp_path / "all", steps=1, batch_size=1, accumulate=3, clip_norm=1e9)
    losses, gradients = [], []
    for number in range(3):
        single = toy_trainer(pool, tiny, tmp_path / "single", steps=3, batch_size=1, clip_norm=1e9)
        losses.append(single._step([make_batch(single.sampler, number, single.params, CPU)]))
        gradients.append([parameter.grad for parameter in single.network.parameters()])
    mean_loss = accumulating._step(list(batches(accumulating.sampler, 0, accumulating.params, CPU)))
    assert mean_loss == pytest.approx(sum(losses) / 3, rel=1e-5)
    for parameter, *parts in zip(accumulating.network.parameters(), *gradients, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, sum(parts) / 3, atol=1e-5)


def test_training_stops_when_the_score_no_longer_improves(
    pool: Pool, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hits = iter([50, 60, 60, 55, 90])  # of a hundred voxels
    monkeypatch.setattr(loop, "count_overlaps", lambda *_: Overlaps([OverlapCounts(100, 100, next(hits))], [], 1.0))
    trainer = toy_trainer(pool, tiny, tmp_path, steps=10, validate_every=2, patience=2, checkpoint_every=100)
    history = train(trainer).history
    assert history[history.split == "val"].value.tolist() == [0.5, 0.6, 0.6, 0.55]
    assert trainer.state.step == 8


def test_the_weights_with_the_best_score_are_returned(
    pool: Pool, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    averages = []

    def overlaps(network: torch.nn.Module, *_: Any) -> Overlaps:
        averages.append({name: value.clone() for name, value in network.state_dict().items()})
        return Overlaps([OverlapCounts(100, 100, (50, 60, 60, 55)[len(averages) - 1])], [], 1.0)

    monkeypatch.setattr(loop, "count_overlaps", overlaps)
    trained = train(toy_trainer(pool, tiny, tmp_path, steps=8, validate_every=2, checkpoint_every=100))
    assert len(averages) == 4
    assert equal_weights(trained.weights, averages[2])  # the later one of two that are equally good


def test_the_same_training_gives_the_same_weights_and_history(
    pool: Pool, tiny: Params, tmp_path: Path, uninterrupted: Trained
) -> None:
    again = train(toy_trainer(pool, tiny, tmp_path, steps=8, checkpoint_every=3))
    assert equal_weights(again.weights, uninterrupted.weights)
    pd.testing.assert_frame_equal(again.history, uninterrupted.history)


def test_fewer_steps_give_other_weights(pool: Pool, tiny: Params, tmp_path: Path, uninterrupted: Trained) -> None:
    shorter = train(toy_trainer(pool, tiny, tmp_path, steps=4, checkpoint_every=3))
    assert not equal_weights(uninterrupted.weights, shorter.weights)


@pytest.mark.parametrize(("step", "saved"), [(2, None), (5, 3), (7, 6)])  # every third step is saved
def test_a_killed_run_resumes_to_identical_weights(
    step: int, saved: int | None, pool: Pool, tiny: Params, tmp_path: Path, uninterrupted: Trained
) -> None:
    child = script(KILLED, str(tmp_path), str(step), folder=tmp_path)
    assert child.code == -signal.SIGKILL, child.stderr
    checkpoint = load_checkpoint(tmp_path / "checkpoints")
    assert (None if checkpoint is None else checkpoint["step"]) == saved  # later steps are lost and repeated
    resumed = train(toy_trainer(pool, tiny, tmp_path / "checkpoints", steps=8, checkpoint_every=3))
    assert equal_weights(resumed.weights, uninterrupted.weights)
    pd.testing.assert_frame_equal(resumed.history, uninterrupted.history)


def test_a_run_that_failed_after_a_validation_keeps_its_best_weights(
    pool: Pool, tiny: Params, tmp_path: Path, uninterrupted: Trained
) -> None:
    class PowerCutError(Exception):
        pass

    def fail(step: int, metrics: dict[str, float]) -> None:
        if step == 7:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        train(toy_trainer(pool, tiny, tmp_path, fail, steps=8, checkpoint_every=3))
    # another seed: its initial weights must not be used
    resumed = train(toy_trainer(pool, tiny, tmp_path, seed=99, steps=8, checkpoint_every=3))
    assert equal_weights(resumed.weights, uninterrupted.weights)


def test_a_finished_run_repeats_no_step(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    steps: list[int] = []
    first = train(toy_trainer(pool, tiny, tmp_path, steps=2, checkpoint_every=2))
    again = train(toy_trainer(pool, tiny, tmp_path, lambda step, _: steps.append(step), steps=2, checkpoint_every=2))
    assert steps == []
    assert equal_weights(first.weights, again.weights)


def test_the_history_has_losses_and_scores_by_modality(uninterrupted: Trained) -> None:
    history = uninterrupted.history
    assert list(history.columns) == list(ModelFolder.HISTORY_COLUMNS)
    assert history[history.split == "train"].step.tolist() == list(range(1, 9))
    scores = history[history.split == "val"]
    assert scores.step.unique().tolist() == [4, 8]
    assert set(scores.modality) == {"CT"}  # no MR case is held out
    assert set(scores.metric) == {"liver_dice", "tumour_dice"}
    assert scores.value.between(0, 1).all()


def test_loss_terms_gradient_norms_and_the_wait_are_logged(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    logged: dict[str, list[float]] = {}

    def record(step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            logged.setdefault(name, []).append(value)

    trainer = toy_trainer(pool, tiny, tmp_path, record, steps=3)
    train(trainer)
    terms = zip(*(logged[f"train/{name}"] for name in ("loss", "bce", "dice", "nesting")), strict=True)
    for loss, bce, dice, nesting in terms:
        assert loss == pytest.approx(bce + dice + trainer.params.nesting_weight * nesting, rel=1e-5)
    assert len(logged["train/gradient_norm"]) == 3
    assert all(value > 0 for value in logged["train/gradient_norm"])
    assert all(0 < share < 1 for share in logged["train/wait_share"])


def test_a_loss_that_is_not_finite_names_the_step_and_the_settings(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    trainer = toy_trainer(pool, tiny, tmp_path, steps=8, learning_rate=0.004, clip_norm=0.5)
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(
        HeparError, match=r"^the loss is nan at step 1: lower learning_rate \(0\.004\) or clip_norm \(0\.5\)$"
    ):
        train(trainer)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    trainer = toy_trainer(pool, tiny, tmp_path, steps=8, validation_cases=0)
    first = next(iter(trainer.network.parameters()))
    first.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(HeparError, match=r"^the gradient norm is (inf|nan) at step 1: lower learning_rate"):
        train(trainer)
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.network.parameters())


def test_without_validation_cases_the_last_average_is_kept(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    trainer = toy_trainer(pool, tiny, tmp_path, steps=3, validation_cases=0)
    weights = train(trainer).weights
    assert equal_weights(weights, trainer.state.ema.module.state_dict())
    assert not equal_weights(weights, trainer.network.state_dict())


def test_sigterm_saves_the_step_and_the_run_resumes_to_identical_weights(
    pool: Pool, tiny: Params, tmp_path: Path, uninterrupted: Trained
) -> None:
    def terminate(step: int, metrics: dict[str, float]) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="stopped by SIGTERM at step 5, which is saved"), expect_exit_code(75):
        train(toy_trainer(pool, tiny, tmp_path, terminate, steps=8, checkpoint_every=100))
    assert signal.getsignal(signal.SIGTERM) == before
    resumed = train(toy_trainer(pool, tiny, tmp_path, seed=99, steps=8, checkpoint_every=100))
    assert equal_weights(resumed.weights, uninterrupted.weights)


@contextmanager
def expect_exit_code(code: int) -> Iterator[None]:
    """Check the exit code that the command line gives to the error that passes."""
    try:
        yield
    except HeparError as error:
        with pytest.raises(SystemExit) as caught, errors_as_sentences():
            raise error
        assert caught.value.code == code
        raise


@pytest.mark.parametrize("step", [4, 8])  # of the first validation, and of the last, which ends the training
def test_a_validation_that_sigterm_stops_is_repeated_after_resuming(
    step: int, pool: Pool, tiny: Params, tmp_path: Path, uninterrupted: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def terminate_and_predict(*arguments: Any) -> Any:
        calls.append(trainer.state.step)
        if trainer.state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return sliding_window(*arguments)

    monkeypatch.setattr(validation, "sliding_window", terminate_and_predict)
    trainer = toy_trainer(pool, tiny, tmp_path, steps=8, checkpoint_every=100)
    for _ in range(2):  # the second run is stopped in the validation with which it starts
        with pytest.raises(Preempted, match=f"at step {step}, which is saved"):
            train(trainer)
        trainer = toy_trainer(pool, tiny, tmp_path, seed=99, steps=8, checkpoint_every=100)
    assert calls.count(step) == 2
    monkeypatch.undo()
    resumed = train(trainer)
    assert equal_weights(resumed.weights, uninterrupted.weights)
    pd.testing.assert_frame_equal(resumed.history, uninterrupted.history)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] can't allocate memory: 9 GB"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_settings_to_change(
    error: Exception, pool: Pool, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = toy_trainer(pool, tiny, tmp_path, steps=8)

    def fail(parts: Any) -> float:
        raise error

    monkeypatch.setattr(trainer, "_step", fail)
    with pytest.raises(HeparError, match=r"out of memory at step 1: lower training.batch_size .* cache_gib \(8\)$"):
        train(trainer)
    monkeypatch.setattr(loop, "PatchSampler", lambda *arguments: fail(arguments))
    with pytest.raises(HeparError, match=r"out of memory at step 1: lower training.batch_size"):
        toy_trainer(pool, tiny, tmp_path, steps=8)


def test_a_missing_compiler_is_reported(
    pool: Pool, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config, "fx_graph_cache", False)
    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.GELU())
    trainer = Trainer(network, pool, toy_settings(tiny), tmp_path, CPU, discard_metrics)
    trainer.params, trainer.forward = toy_settings(tiny, compile=True), torch.compile(network)
    with pytest.raises(HeparError, match=r"^training.compile is true, but .*no-such-compiler.*: set it to false, or"):
        train(trainer)


def test_compiling_on_a_cpu_is_refused(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"^training.compile is true, but there is no GPU"):
        toy_trainer(pool, tiny, tmp_path, compile=True)


def test_arrays_that_do_not_fit_the_cache_are_read_from_disk_with_the_same_result(
    pool: Pool, tiny: Params, tmp_path: Path, uninterrupted: Trained
) -> None:
    trainer = toy_trainer(pool, tiny, tmp_path, steps=8, checkpoint_every=3, cache_gib=0)
    assert trainer.sampler._in_memory is None
    assert equal_weights(train(trainer).weights, uninterrupted.weights)


def test_consistency_learns_from_unlabelled_cases(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    unlabelled = Toy("ct-3", shape=PATCH, liver_state=LabelState.UNKNOWN, tumour_state=LabelState.UNKNOWN, level=5.0)
    larger = toy_pool(tmp_path / "pool", [*TOYS, unlabelled])
    without = toy_trainer(larger, tiny, tmp_path / "without", steps=4)
    consistent = toy_trainer(
        larger, tiny, tmp_path / "with", steps=4, consistency_weight=1.0, consistency_rampup_steps=2
    )
    assert [entry.case_id for entry in without.sampler.entries] == ["ct-1", "mr-1"]
    assert [entry.case_id for entry in consistent.sampler.entries] == ["ct-1", "mr-1", "ct-3"]
    assert train(consistent).history.value.notna().all()


def test_consistency_compares_with_the_average_on_the_unaugmented_intensities(tiny: Params, tmp_path: Path) -> None:
    unlabelled = Toy("ct-3", shape=PATCH, liver_state=LabelState.UNKNOWN, tumour_state=LabelState.UNKNOWN)
    pool = toy_pool(tmp_path / "pool", [*TOYS, unlabelled])
    trainer = toy_trainer(pool, tiny, tmp_path, nesting_weight=0.0, consistency_weight=2.0, consistency_rampup_steps=0)
    batch = make_batch(trainer.sampler, 0, trainer.params, CPU)
    assert batch.plain_bcdhw is not None
    assert batch.plain_bcdhw.shape == batch.image_bcdhw.shape
    unknown = replace(batch, weight_brdhw=torch.zeros_like(batch.weight_brdhw))
    trainer.network.eval()
    with torch.no_grad():
        for parameter in trainer.state.ema.parameters():
            parameter.mul_(0.5)
        student_brdhw = trainer.network(batch.image_bcdhw).sigmoid()
        teacher_brdhw = trainer.state.ema.module(batch.plain_bcdhw).sigmoid()
    expected = 2 * float(((student_brdhw - teacher_brdhw) ** 2).mean())
    assert trainer._loss(unknown).item() == pytest.approx(expected, rel=1e-4)


def test_a_pool_without_a_known_label_is_refused(tiny: Params, tmp_path: Path) -> None:
    unknown = replace(TOYS[0], liver_state=LabelState.UNKNOWN, tumour_state=LabelState.ABSENT)
    trainer = toy_trainer(toy_pool(tmp_path, [unknown]), tiny, tmp_path / "checkpoints", steps=4)
    with pytest.raises(HeparError, match=r"^no training case has a known liver or tumour: add a manual mask"):
        train(trainer)


def test_a_modality_without_tumours_is_logged(tiny: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toys = [TOYS[0], replace(TOYS[1], tumour_state=LabelState.UNKNOWN)]
    train(toy_trainer(toy_pool(tmp_path, toys), tiny, tmp_path / "checkpoints", steps=1))
    assert "no MR training case has a tumour mask" in " ".join(capsys.readouterr().err.split())


def test_half_precision_scales_its_loss_and_resumes_with_its_scale(pool: Pool, tiny: Params, tmp_path: Path) -> None:
    half = {"precision": "fp16", "steps": 4, "checkpoint_every": 2}
    whole = train(toy_trainer(pool, tiny, tmp_path / "whole", **half))
    stopped = toy_trainer(pool, tiny, tmp_path / "stopped", **half)
    stopped.params = toy_settings(tiny, **{**half, "steps": 2})
    train(stopped)
    checkpoint = load_checkpoint(tmp_path / "stopped")
    assert checkpoint is not None
    assert checkpoint["scaler"]["scale"] > 1
    checkpoint["scaler"]["scale"] = 64.0
    save_checkpoint(tmp_path / "stopped", checkpoint)
    resumed = toy_trainer(pool, tiny, tmp_path / "stopped", **half)
    assert whole.history.value.notna().all()
    assert train(resumed).history.value.notna().all()
    assert resumed.state.scaler.get_scale() == 64.0


def test_gradient_checkpointing_is_refused_if_the_network_does_not_support_it(
    pool: Pool, tiny: Params, tmp_path: Path
) -> None:
    convolution = torch.nn.Conv3d(1, 2, 1)
    with pytest.raises(ParamsError, match="only medformer"):
        Trainer(convolution, pool, toy_settings(tiny, gradient_checkpointing=True), tmp_path, CPU, discard_metrics)


def test_gradient_checkpointing_trains_the_same_network(
    pool: Pool, tiny: Params, uninterrupted: Trained, tmp_path: Path
) -> None:
    checkpointed = train(toy_trainer(pool, tiny, tmp_path, steps=8, checkpoint_every=3, gradient_checkpointing=True))
    assert list(checkpointed.history["value"]) == pytest.approx(list(uninterrupted.history["value"]), abs=1e-5)
