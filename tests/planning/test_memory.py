"""The memory estimate of a training step, against a real step and by hand."""

from __future__ import annotations

import pytest
import torch

from hepar.networks import build_network
from hepar.params import Params, TrainingParams
from hepar.planning.memory import WEIGHT_COPIES, WORKSPACE, _PeakMemory, step_peak_bytes, training_bytes

PATCH = (16, 16, 16)
VOLUME = 4 * 16**3  # bytes of one channel


def test_freed_tensors_are_not_counted() -> None:
    with _PeakMemory() as memory:
        first = torch.zeros(1000)
        second = first + 1
        del first
        second.mul_(2)
        view = second[:10]
        third = second * 3
        assert memory.peak_bytes == 8000
        del second, view
        fourth = torch.cat([third, third])
        assert memory.peak_bytes == 12000
        del third, fourth
    assert memory.peak_bytes == 12000


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"gradient_checkpointing": True}])
def test_a_traced_step_takes_as_much_memory_as_a_computed_one(tiny: Params, changes: dict[str, object]) -> None:
    training = tiny.train_universal.training.model_copy(update=changes)
    network = build_network(tiny.network.name, tiny.network.config, training.patch_zyx).train()
    network.gradient_checkpointing = training.gradient_checkpointing
    weight_bytes = sum(4 * parameter.numel() for parameter in network.parameters())
    estimate = training_bytes(tiny.network.name, tiny.network.config, training.patch_zyx, 2, training)
    computed = step_peak_bytes(network, training.patch_zyx, 2, training)
    assert (estimate - WEIGHT_COPIES * weight_bytes) / WORKSPACE == pytest.approx(computed, rel=0.02)


def test_the_estimate_of_a_convolution_agrees_with_a_count_by_hand(tiny: Params) -> None:
    config = {"channels": [2, 2], "strides": [1], "num_res_units": 0, "norm": None, "act": None, "bias": False}
    one, three = (training_bytes("unet", config, PATCH, n, tiny.train_universal.training) for n in (1, 3))
    # one more case: image, two targets, two weights, inputs of the convolutions (2, and 4 concatenated), two logits
    by_hand = WORKSPACE * (1 + 2 + 2 + 2 + 4 + 2) * VOLUME
    assert by_hand <= (three - one) // 2 <= 2 * by_hand


@pytest.mark.parametrize("name", ["medformer", "segresnet", "swinunetr"])
def test_half_precision_takes_less_memory_and_a_larger_batch_more(tiny: Params, name: str) -> None:
    config = tiny.network.config if name == "medformer" else {}
    training: TrainingParams = tiny.train_universal.training

    def estimate(batch_size: int, **changes: object) -> int:
        return training_bytes(name, config, (64, 64, 64), batch_size, training.model_copy(update=changes))

    assert estimate(2, precision="bf16") < estimate(2) < estimate(4) < 2 * estimate(2)
    if name == "medformer":
        assert estimate(2, gradient_checkpointing=True) < estimate(2)
