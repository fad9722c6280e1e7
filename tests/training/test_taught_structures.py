"""What a pool teaches: which structures a model of it may predict, and what its head has learned after a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy_pool import Toy, toy_pool
from toy_training import CPU, PATCH, TOYS, discard_metrics, toy_settings, toy_trainer, train

from hepar.cases import LIVER, TUMOUR, Case, Cohort, LabelState, Modality, Split
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params, SamplingParams, TrainingParams
from hepar.pool.table import Pool
from hepar.training.batches import make_batch
from hepar.training.fit import Recipe, fit_model
from hepar.training.loop import Trainer
from hepar.training.schedules import learning_rate
from hepar.training.taught import taught_structures
from hepar.training.teacher_pool import teacher_pool

TUMOUR_FREE_ONLY = SamplingParams(tumour_share=0.0, tumour_free_share=1.0, liver_share=0.0)
ALWAYS, NEVER = {"CT": 1.0, "MR": 1.0}, {"CT": 0.0, "MR": 0.0}
MANUAL, PSEUDO, ABSENT, UNKNOWN = LabelState.MANUAL, LabelState.PSEUDO, LabelState.ABSENT, LabelState.UNKNOWN


def settings(tiny: Params, lesions: dict[str, float], **changes: Any) -> TrainingParams:
    """A training without other augmentation and without validation."""
    augmentation = tiny.train_universal.training.augmentation.model_dump() | {"lesions": lesions}
    off = {name: 0.0 for name in augmentation if name.endswith("_probability")}
    return toy_settings(
        tiny, augmentation=augmentation | off, validation_cases=0, checkpoint_every=10**6, nesting_weight=0.0, **changes
    )


@pytest.fixture
def teachers_pool(case: Case, tiny: Params, tmp_path: Path) -> Pool:
    """The pool of a liver teacher: a manual liver, whose manual tumour is hidden."""
    preprocessing = tiny.preprocessing.model_copy(update={"spacing_zyx_mm": (2.0, 2.0, 2.0)})
    return teacher_pool(Cohort(tmp_path / "cohort", (case,)), Modality.CT, preprocessing, tmp_path / "pool")


@pytest.mark.parametrize(
    ("labels", "lesions", "taught"),
    [
        ([(Modality.CT, MANUAL, UNKNOWN)], ALWAYS, ("liver",)),  # of a teacher
        ([(Modality.CT, UNKNOWN, MANUAL)], NEVER, ("tumour",)),  # tumours only
        ([(Modality.CT, UNKNOWN, MANUAL), (Modality.MR, MANUAL, UNKNOWN)], NEVER, ("liver", "tumour")),  # mixed
        ([(Modality.CT, MANUAL, MANUAL)], NEVER, ("liver", "tumour")),
        ([(Modality.CT, PSEUDO, UNKNOWN)], ALWAYS, ("liver",)),
        ([(Modality.MR, MANUAL, ABSENT)], NEVER, ("liver",)),
        ([(Modality.MR, MANUAL, ABSENT)], ALWAYS, ("liver", "tumour")),  # synthetic ones
        ([(Modality.MR, MANUAL, ABSENT)], {"CT": 1.0, "MR": 0.0}, ("liver",)),
        ([(Modality.MR, UNKNOWN, ABSENT)], ALWAYS, ()),  # without a liver nothing is painted
        ([(Modality.CT, UNKNOWN, UNKNOWN)], ALWAYS, ()),
        ([], ALWAYS, ()),
    ],
)
def test_a_structure_is_taught_by_training_cases_that_show_it(
    labels: list[tuple[Modality, LabelState, LabelState]],
    lesions: dict[str, float],
    taught: tuple[str, ...],
    tiny: Params,
    tmp_path: Path,
) -> None:
    pool = toy_pool(tmp_path, [Toy("complete", split=Split.VAL)])
    entry = pool.entries[0]  # which shows both, but is not trained on
    entries = [
        replace(
            entry,
            split=Split.TRAIN,
            modality=modality,
            liver=replace(entry.liver, state=liver, weight=float(liver != UNKNOWN)),
            tumour=replace(entry.tumour, state=tumour),
        )
        for modality, liver, tumour in labels
    ]
    assert taught_structures(replace(pool, entries=(entry, *entries)), settings(tiny, lesions)) == taught


def test_a_rejected_liver_is_not_taught(tiny: Params, tmp_path: Path) -> None:
    pool = toy_pool(tmp_path, [Toy("a")])
    rejected = replace(pool.entries[0].liver, state=PSEUDO, weight=0.0)
    entries = (replace(pool.entries[0], liver=rejected),)
    assert taught_structures(replace(pool, entries=entries), settings(tiny, ALWAYS)) == ("tumour",)


def test_synthetic_lesions_teach_a_liver_teacher_no_tumour(teachers_pool: Pool, tiny: Params, tmp_path: Path) -> None:
    """The tumour's output has no gradient: weight decay alone changes its row."""
    params = settings(tiny, ALWAYS, steps=6, learning_rate=0.02)
    network = toy_trainer(teachers_pool, tiny, tmp_path / "unused").network
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    trainer = Trainer(network, teachers_pool, params, tmp_path / "checkpoints", CPU, discard_metrics)
    batches = [make_batch(trainer.sampler, number, params, CPU) for number in range(params.steps)]
    assert sum(bool(batch.target_brdhw[:, TUMOUR].any()) for batch in batches) > 3  # lesions are painted, in livers
    assert not any(batch.weight_brdhw[:, TUMOUR].any() for batch in batches)
    assert any((batch.target_brdhw[:, LIVER] * batch.weight_brdhw[:, LIVER]).any() for batch in batches)
    train(trainer)
    decay = float(np.prod([1 - learning_rate(step, params) * params.weight_decay for step in range(params.steps)]))
    assert decay < 0.999
    for name in ("head.weight", "head.bias"):
        after = dict(network.named_parameters())[name]
        assert torch.allclose(after[TUMOUR], decay * before[name][TUMOUR], rtol=1e-5)
        assert not torch.allclose(after[LIVER], decay * before[name][LIVER], rtol=1e-2)


@pytest.mark.usefixtures("database")
def test_a_model_of_a_teachers_pool_says_that_it_knows_livers_alone(
    teachers_pool: Pool, tiny: Params, tmp_path: Path
) -> None:
    recipe = Recipe(tiny.network, settings(tiny, ALWAYS, steps=1), (Modality.CT,), "tests")
    fit_model(teachers_pool, tmp_path / "model", recipe, {})
    assert ModelFolder(tmp_path / "model").load_spec().taught == ("liver",)
    fit_model(toy_pool(tmp_path / "both", TOYS), tmp_path / "universal", recipe, {})
    assert ModelFolder(tmp_path / "universal").load_spec().taught == ("liver", "tumour")


class PointNetwork(nn.Sequential):
    """Sees one voxel at a time, which is enough for toys: a liver is brighter than the rest, a lesion another shade."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__(nn.Conv3d(1, 32, 1), nn.LeakyReLU(), nn.Conv3d(32, 32, 1), nn.LeakyReLU(), nn.Conv3d(32, 2, 1))


def predict_lesions(trainer: Trainer) -> tuple[Tensor, Tensor]:
    """Tumour probabilities, on patches that were not trained on, in synthetic lesions and in the liver around them."""
    inside, outside = [], []
    for number in range(1000, 1020):
        batch = make_batch(trainer.sampler, number, trainer.params, CPU)
        with torch.no_grad():
            probability_bdhw = trainer.state.ema.module(batch.image_bcdhw).sigmoid()[:, TUMOUR]
        lesion_bdhw, liver_bdhw = batch.target_brdhw[:, TUMOUR] > 0, batch.target_brdhw[:, LIVER] > 0
        inside.append(probability_bdhw[lesion_bdhw])
        outside.append(probability_bdhw[liver_bdhw & ~lesion_bdhw])
    return torch.cat(inside), torch.cat(outside)


def test_synthetic_lesions_in_tumour_free_livers_teach_lesions_and_healthy_liver(tiny: Params, tmp_path: Path) -> None:
    toys = [
        Toy(f"healthy-{n}", Modality.MR, shape=PATCH, liver=((8, 15 + n, 16), 7.5), lesions=(), tumour_state=ABSENT)
        for n in range(2)
    ]
    params = settings(
        tiny,
        {"CT": 0.0, "MR": 0.7},
        steps=150,
        learning_rate=0.02,
        clip_norm=100.0,
        ema_decay=0.8,
        sampling=TUMOUR_FREE_ONLY.model_dump(),
    )
    pool = toy_pool(tmp_path, toys)
    trainer = Trainer(PointNetwork(), pool, params, tmp_path / "checkpoints", CPU, discard_metrics)
    torch.set_num_threads(1)
    train(trainer)
    lesion_n, healthy_n = predict_lesions(trainer)
    assert (lesion_n > 0.5).float().mean() > 0.3
    assert (healthy_n > 0.5).float().mean() < 0.05
    assert lesion_n.mean() > 5 * healthy_n.mean()
