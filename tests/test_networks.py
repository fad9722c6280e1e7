"""Networks behind the factory: each segments a patch, learns from it, and says what it costs."""

from __future__ import annotations

import pytest
import torch

from hepar.errors import ParamsError
from hepar.networks import BUILDERS, build_network, cost
from hepar.networks.from_monai import _strides
from hepar.params import Params
from hepar.training.losses import masked_loss

PATCH = (32, 32, 32)
SMALL = {
    "dynunet": {"filters": [8, 16, 24, 32]},
    "mednext": {"init_filters": 4},
    "segresnet": {"init_filters": 8},
    "swinunetr": {"feature_size": 12},
    "unet": {"channels": [4, 8, 8, 8, 8]},
    "unetr": {"hidden_size": 48, "mlp_dim": 48, "num_heads": 4, "feature_size": 4},
    "vnet": {},
}


def test_every_network_is_tested() -> None:
    assert set(BUILDERS) == {*SMALL, "medformer"}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_network_gives_logits_of_the_patch_and_a_gradient_to_every_weight(name: str) -> None:
    torch.manual_seed(1)
    patch = (32, 32, 64) if name == "swinunetr" else PATCH  # it normalises over space, 32 times as coarse
    network = build_network(name, SMALL[name], patch).to(memory_format=torch.channels_last_3d)
    image = torch.randn(2, 1, *patch)
    known = torch.ones(2, 2, *patch)
    target = (image[:, :1] > 0.5).float().expand_as(known).contiguous()
    output = network.train()(image)
    scales = output if isinstance(output, list) else [output]
    assert {tuple(logits.shape) for logits in scales} == {(2, 2, *patch)}
    masked_loss(scales, target, known, 0.1, (1.0, 1.0)).total.backward()
    without = [name for name, weight in network.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not without
    alone = network.eval()(image)
    assert isinstance(alone, torch.Tensor)
    assert alone.shape == (2, 2, *patch)


def test_deep_supervision_lists_the_full_resolution_first() -> None:
    torch.manual_seed(1)
    network = build_network("dynunet", SMALL["dynunet"], PATCH)
    image = torch.randn(1, 1, *PATCH)
    first, *others = network.train()(image)
    assert len(others) == 2
    assert torch.allclose(first, network.eval()(image), atol=1e-5)  # instance norm has no running means


def test_the_levels_follow_the_patch() -> None:
    assert _strides((16, 64, 64)) == [[2, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]]
    assert _strides((128, 128, 128)) == [[2, 2, 2]] * 5
    assert _strides((20, 40, 7)) == [[2, 2, 1], [2, 2, 1], [1, 2, 1]]


def test_costs_are_those_of_a_convolution_counted_by_hand() -> None:
    settings = {"channels": [4, 8], "strides": [1], "num_res_units": 0, "kernel_size": 3, "norm": None, "act": None}
    found = cost("unet", {**settings, "bias": False}, PATCH)
    voxels = 32**3
    down, bottom, up = 4 * 1 * 27, 8 * 4 * 27, 12 * 2 * 27
    assert found.parameters - down - bottom - up in (0, 1, 2)  # PReLU has a parameter each
    assert found.multiply_adds == voxels * (down + bottom + up)


@pytest.mark.parametrize(
    ("name", "config", "patch", "words"),
    [
        ("nnunet", {}, PATCH, "network.name is 'nnunet', must be one of dynunet, medformer,"),
        ("segresnet", {"filters": 3}, PATCH, "network.config of segresnet: .*'filters'"),
        ("swinunetr", {}, (32, 48, 48), r"training.patch_zyx is \(32, 48, 48\): swinunetr needs .* \(32, 32, 32\)"),
    ],
)
def test_what_a_network_refuses_is_said_in_one_sentence(
    name: str, config: dict[str, int], patch: tuple[int, int, int], words: str
) -> None:
    with pytest.raises(ParamsError, match=words):
        build_network(name, config, patch)


def test_medformer_of_the_demo_costs_what_its_weights_are(tiny: Params) -> None:
    network = tiny.network
    built = build_network(network.name, network.config, PATCH)
    assert cost(network.name, network.config, PATCH).parameters == sum(p.numel() for p in built.parameters())
