"""What a warm start takes over: everything but the outputs that the model was never taught."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import SMALL, small_patch
from torch import Tensor, nn
from toy_model import write_model
from toy_training import PATCH, toy_settings

from hepar.cases import LIVER, TUMOUR, Modality
from hepar.networks import OUTPUT_LAYERS, build_network
from hepar.params import NetworkParams, Params
from hepar.training.fit import Recipe, _initial_network

SOFTMAX = "medformer-softmax"
NETWORKS = (*sorted(SMALL), "unet-plain", "medformer", SOFTMAX)
Layers = list[tuple[str, Tensor, Tensor]]  # name, input and output, in the order of the forward pass


def small_network(name: str, tiny: Params) -> NetworkParams:
    """A small network; MedFormer with a second output, U-Net with and without residual units."""
    configs: dict[str, dict[str, Any]] = {
        **SMALL,
        "unet-plain": {**SMALL["unet"], "num_res_units": 0},
        "medformer": {**tiny.network.config, "aux": True},
        SOFTMAX: {**tiny.network.config, "aux": True, "classes": 3},
    }
    return NetworkParams(name=name.partition("-")[0], config=configs[name])


def random_network(params: NetworkParams, patch_zyx: tuple[int, int, int], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_network(params.name, params.config, patch_zyx)


def forward(network: nn.Module, name: str, image_bcdhw: Tensor) -> tuple[list[Tensor], Layers]:
    """The logits of every scale as in training, and what goes through the output layers."""
    layers: Layers = []
    for layer_name, layer in network.named_modules():
        if re.fullmatch(OUTPUT_LAYERS[name], layer_name):
            layer.register_forward_hook(
                lambda _, inputs, output, own=layer_name: layers.append((own, inputs[0], output))  # type: ignore[misc]
            )
    torch.manual_seed(0)  # of dropout
    with torch.no_grad():
        output = network.train()(image_bcdhw)
    return (output if isinstance(output, list) else [output]), layers


@pytest.mark.parametrize(("taught", "untaught"), [(LIVER, TUMOUR), (TUMOUR, LIVER)], ids=["liver", "tumour"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_warm_start_keeps_what_was_taught_and_resets_the_rest(
    name: str, taught: int, untaught: int, tiny: Params, tmp_path: Path
) -> None:
    params = small_network(name, tiny)
    patch_zyx = PATCH if params.name == "medformer" else small_patch(name)
    teacher, fresh = (random_network(params, patch_zyx, seed) for seed in (5, 3))
    structures = ("liver", "tumour")
    folder = write_model(
        tmp_path / "teacher",
        tiny,
        teacher.state_dict(),
        network=params,
        patch_zyx=patch_zyx,
        taught=(structures[taught],),
    ).folder
    recipe = Recipe(params, toy_settings(tiny, patch_zyx=patch_zyx, seed=3), (Modality.CT,), "tests", warm_start=folder)
    warm, image_bcdhw = _initial_network(recipe), torch.randn(2, 1, *patch_zyx)

    teacher_scales, _ = forward(teacher, params.name, image_bcdhw)
    warm_scales, layers = forward(warm, params.name, image_bcdhw)
    assert len(layers) == len(warm_scales)  # every output passes through one of the layers
    if name != SOFTMAX:  # whose logits are of several rows
        for warm_brdhw, teacher_brdhw in zip(warm_scales, teacher_scales, strict=True):
            assert torch.allclose(warm_brdhw[:, taught], teacher_brdhw[:, taught], atol=1e-5)
            assert not torch.allclose(warm_brdhw[:, untaught], teacher_brdhw[:, untaught], atol=1e-2)
    for layer_name, features_bcdhw, output_bcdhw in layers:
        with torch.no_grad():
            of_teacher, of_fresh = (n.get_submodule(layer_name)(features_bcdhw) for n in (teacher, fresh))
        first = output_bcdhw.shape[1] - len(structures)
        assert torch.allclose(output_bcdhw[:, first + untaught], of_fresh[:, first + untaught], atol=1e-5)
        assert torch.allclose(output_bcdhw[:, first + taught], of_teacher[:, first + taught], atol=1e-5)
        assert torch.allclose(output_bcdhw[:, :first], of_teacher[:, :first], atol=1e-5)  # the background of a softmax


def test_a_model_that_was_taught_both_is_taken_over_whole(tiny: Params, tmp_path: Path) -> None:
    teacher = random_network(tiny.network, PATCH, 5)
    folder = write_model(tmp_path / "teacher", tiny, teacher.state_dict()).folder
    warm = _initial_network(Recipe(tiny.network, toy_settings(tiny), (Modality.CT,), "tests", warm_start=folder))
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in warm.state_dict().items())
