"""The memory of a training step, followed without computing it."""

from __future__ import annotations

import pytest
import torch

from hepar.networks import build_network
from hepar.params import Params, TrainingParams
from hepar.planning.memory import COPIES, WORKSPACE, _Held, held_by_a_step, training_bytes

PATCH = (16, 16, 16)
VOLUME = 4 * 16**3  # bytes of one channel


def test_what_is_gone_is_not_counted() -> None:
    with _Held() as held:
        first = torch.zeros(1000)
        second = first + 1
        del first
        second.mul_(2)
        view = second[:10]
        third = second * 3
        assert held.most == 8000
        del second, view
        fourth = torch.cat([third, third])
        assert held.most == 12000
        del third, fourth
    assert held.most == 12000


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"gradient_checkpointing": True}])
def test_without_values_as_much_is_held_as_with_them(tiny: Params, changes: dict[str, object]) -> None:
    training = tiny.train_universal.training.model_copy(update=changes)
    network = build_network(tiny.network.name, tiny.network.config, training.patch_zyx).train()
    network.gradient_checkpointing = training.gradient_checkpointing
    weights = sum(4 * parameter.numel() for parameter in network.parameters())
    followed = training_bytes(tiny.network.name, tiny.network.config, training.patch_zyx, 2, training)
    real = held_by_a_step(network, training.patch_zyx, 2, training)
    assert (followed - COPIES * weights) / WORKSPACE == pytest.approx(real, rel=0.02)


def test_a_convolution_is_counted_by_hand(tiny: Params) -> None:
    settings = {"channels": [2, 2], "strides": [1], "num_res_units": 0, "norm": None, "act": None, "bias": False}
    one, three = (training_bytes("unet", settings, PATCH, n, tiny.train_universal.training) for n in (1, 3))
    # a case more: its image, two targets, two weights, the inputs of the convolutions (2, and the joined 4), the logits
    by_hand = WORKSPACE * (1 + 2 + 2 + 2 + 4 + 2) * VOLUME
    assert by_hand <= (three - one) // 2 <= 2 * by_hand


@pytest.mark.parametrize("name", ["medformer", "segresnet", "swinunetr"])
def test_half_precision_takes_less_and_more_cases_take_more(tiny: Params, name: str) -> None:
    config = tiny.network.config if name == "medformer" else {}
    training: TrainingParams = tiny.train_universal.training

    def taken(batch: int, **changes: object) -> int:
        return training_bytes(name, config, (64, 64, 64), batch, training.model_copy(update=changes))

    assert taken(2, precision="bf16") < taken(2) < taken(4) < 2 * taken(2)
    if name == "medformer":
        assert taken(2, gradient_checkpointing=True) < taken(2)
