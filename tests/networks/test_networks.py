"""Networks built by name: each segments a patch, gets gradients, and has its cost counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import SMALL, small_patch

from hepar.errors import DataError, ParamsError
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.inference import import_weights
from hepar.inference.prediction import load_ensemble
from hepar.inference.sliding_window import sliding_window
from hepar.networks import BUILDERS, OUTPUT_LAYERS, build_network, cost
from hepar.networks.medformer import MedFormer
from hepar.networks.strides import choose_kernels, choose_strides
from hepar.params import NetworkParams, Params
from hepar.training.losses import LossWeights, masked_loss

PATCH = (32, 32, 32)


def test_every_network_is_tested() -> None:
    assert set(BUILDERS) == set(OUTPUT_LAYERS) == {*SMALL, "medformer"}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_network_returns_logits_of_the_patch_and_every_weight_gets_a_gradient(name: str) -> None:
    torch.manual_seed(1)
    patch = small_patch(name)
    network = build_network(name, SMALL[name], patch).to(memory_format=torch.channels_last_3d)
    image_bcdhw = torch.randn(2, 1, *patch)
    weight_brdhw = torch.ones(2, 2, *patch)
    target_brdhw = (image_bcdhw[:, :1] > 0.5).float().expand_as(weight_brdhw).contiguous()
    output = network.train()(image_bcdhw)
    scales = output if isinstance(output, list) else [output]
    assert {tuple(logits.shape) for logits in scales} == {(2, 2, *patch)}
    masked_loss(scales, target_brdhw, weight_brdhw, LossWeights(nesting=0.1)).total.backward()
    without_gradient = [
        name for name, weight in network.named_parameters() if weight.requires_grad and weight.grad is None
    ]
    assert not without_gradient
    logits_brdhw = network.eval()(image_bcdhw)
    assert isinstance(logits_brdhw, torch.Tensor)
    assert logits_brdhw.shape == (2, 2, *patch)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("unet", {"out_channels": 3}, r"^network\.config\.out_channels of unet is 3 but must be 2$"),
        ("vnet", {"in_channels": 2}, r"^network\.config\.in_channels of vnet is 2 but must be 1$"),
        ("medformer", {"classes": 4}, r"^network\.config\.classes of medformer is 4 but must be 2 or 3$"),
        ("medformer", {"in_channels": 2}, r"^network\.config\.in_channels of medformer is 2 but must be 1$"),
    ],
)
def test_channels_other_than_one_image_and_two_structures_are_refused(
    tiny: Params, name: str, config: dict[str, object], message: str
) -> None:
    own = {**tiny.network.config, **config} if name == "medformer" else config
    with pytest.raises(ParamsError, match=message):
        build_network(name, own, PATCH)


def test_softmax_classes_are_read_as_nested_structures(tiny: Params) -> None:
    torch.manual_seed(1)
    config = {**tiny.network.config, "classes": 3, "aux": True}
    network, image_bcdhw = build_network("medformer", config, PATCH).eval(), torch.randn(1, 1, *PATCH)
    softmax_network = MedFormer.from_config(config).eval()
    softmax_network.load_state_dict(network.state_dict())
    with torch.no_grad():
        liver, tumour = network(image_bcdhw).sigmoid()[0]
        softmax_cdhw = softmax_network(image_bcdhw).softmax(dim=1)[0]
    assert torch.allclose(liver, softmax_cdhw[1] + softmax_cdhw[2], atol=1e-5)
    assert torch.allclose(tumour, softmax_cdhw[2], atol=1e-5)
    assert [scale.shape[1] for scale in network.train()(image_bcdhw)] == [2, 2]


def test_a_published_checkpoint_is_imported_as_a_model_that_segments(real_data: Path, tmp_path: Path) -> None:
    checkpoint = real_data / "medformer" / "small.npz"
    with np.load(checkpoint) as stored:
        config = json.loads(str(stored["config"]))
        image_bcdhw, output = stored["input"], torch.from_numpy(stored["output0"])
    plan = PreprocessingPlan(spacing_zyx_mm=(1, 1, 1), window_hu=(-17, 201), mr_percentiles=(2, 98))
    import_weights.run(checkpoint, tmp_path / "model", NetworkParams(name="medformer", config=config), plan, PATCH)
    (model,) = load_ensemble(tmp_path / "model", torch.device("cpu"))
    found = sliding_window(model.network, image_bcdhw[0, 0], PATCH, 0.0, model.device)
    softmax_cdhw = output.softmax(dim=1)[0].numpy()
    assert np.allclose(found[0], softmax_cdhw[1] + softmax_cdhw[2], atol=1e-4)
    assert np.allclose(found[1], softmax_cdhw[2], atol=1e-4)


def test_a_checkpoint_of_another_network_is_refused_without_writing_a_model(tiny: Params, tmp_path: Path) -> None:
    checkpoint = tmp_path / "other.pt"
    torch.save({"head.weight": torch.zeros(1)}, checkpoint)
    plan = PreprocessingPlan(spacing_zyx_mm=(1, 1, 1), window_hu=(-17, 201), mr_percentiles=(2, 98))
    with pytest.raises(DataError, match=r"head\.weight"):
        import_weights.run(checkpoint, tmp_path / "model", tiny.network, plan, PATCH)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["dynunet", "resenc_unet"])
def test_deep_supervision_returns_the_full_resolution_first(name: str) -> None:
    torch.manual_seed(1)
    network = build_network(name, SMALL[name], PATCH)
    image_bcdhw = torch.randn(1, 1, *PATCH)
    first, *others = network.train()(image_bcdhw)
    assert len(others) == 2
    assert torch.allclose(first, network.eval()(image_bcdhw), atol=1e-5)  # instance norm has no running means


def test_strides_follow_the_sides_of_the_patch() -> None:
    assert choose_strides((16, 64, 64), 5) == [[2, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]]
    assert choose_strides((128, 128, 128), 5) == [[2, 2, 2]] * 5
    assert choose_strides((128, 128, 128), 4) == [[2, 2, 2]] * 4
    assert choose_strides((20, 40, 7), 5) == [[2, 2, 1], [2, 2, 1], [1, 2, 1]]


def test_strides_make_the_spacing_isotropic_as_far_as_the_patch_allows() -> None:
    assert choose_strides((64, 256, 256), 4, (5.0, 1.0, 1.0)) == [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    assert choose_strides((128, 128, 128), 4, (1.0, 0.8, 0.8)) == [[2, 2, 2]] * 4
    # y and x are down to four voxels while z is still coarse, so z is then halved alone
    assert choose_strides((32, 8, 8), 4, (5.0, 1.0, 1.0)) == [[1, 2, 2], [2, 1, 1], [2, 1, 1], [2, 1, 1]]


def test_kernels_are_flat_until_the_spacing_is_isotropic() -> None:
    strides = choose_strides((64, 256, 256), 4, (5.0, 1.0, 1.0))
    assert choose_kernels(strides, (5.0, 1.0, 1.0)) == [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
    assert choose_kernels(choose_strides((16, 64, 64), 5), (1.0, 1.0, 1.0)) == [[3, 3, 3]] * 5


def test_dynunet_takes_strides_and_kernels_from_its_config() -> None:
    settings = {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]], "kernel_size": [[1, 3, 3], [3, 3, 3], [3, 3, 3]]}
    network = build_network("dynunet", {"filters": [4, 8, 8], **settings}, (4, 8, 8))
    assert network.divisor == (2, 4, 4)
    assert network.eval()(torch.zeros(1, 1, 4, 8, 8)).shape == (1, 2, 4, 8, 8)


def test_the_encoder_of_a_resenc_unet_is_counted_by_hand() -> None:
    """Two levels of one and two blocks: stem, residual blocks with their projections, one decoder level, one head."""
    config = {"filters": [4, 8], "blocks": [1, 2], "strides": [[1, 2, 2]]}
    network = build_network("resenc_unet", config, (4, 8, 8))
    assert network.divisor == (1, 2, 2)

    def weights(channels_in: int, channels_out: int, voxels: int, norm: bool = True) -> int:
        return channels_in * channels_out * voxels + channels_out + (2 * channels_out if norm else 0)

    unbiased = [(4, 4, 27), (4, 4, 27), (4, 8, 27), (8, 8, 27), (4, 8, 1), (8, 8, 27), (8, 8, 27)]  # of MONAI's blocks
    encoder = sum(weights(*shape) - shape[1] for shape in unbiased)
    decoder = weights(8, 4, 4, norm=False) + weights(8, 4, 27) + weights(4, 2, 1, norm=False)
    assert cost("resenc_unet", config, (4, 8, 8)).parameters == weights(1, 4, 27) + encoder + decoder
    assert build_network("resenc_unet", {}, (32, 64, 64)).divisor == (8, 16, 16)


def test_cost_matches_convolutions_counted_by_hand() -> None:
    settings = {"channels": [4, 8], "strides": [1], "num_res_units": 0, "kernel_size": 3, "norm": None, "act": None}
    found = cost("unet", {**settings, "bias": False}, PATCH)
    voxels = 32**3
    down, bottom, up = 4 * 1 * 27, 8 * 4 * 27, 12 * 2 * 27
    assert found.parameters - down - bottom - up in (0, 1, 2)  # PReLU has a parameter each
    assert found.multiply_adds == voxels * (down + bottom + up)


@pytest.mark.parametrize(
    ("name", "config", "patch", "message"),
    [
        ("nnunet", {}, PATCH, "network.name is 'nnunet' but must be one of dynunet, medformer,"),
        ("resenc_unet", {"filters": [4, 8]}, PATCH, "network.config of resenc_unet: filters and blocks must have one"),
        ("segresnet", {"filters": 3}, PATCH, "network.config of segresnet: .*'filters'"),
        ("swinunetr", {}, (32, 48, 48), r"training.patch_zyx is \(32, 48, 48\): swinunetr needs .* \(32, 32, 32\)"),
    ],
)
def test_invalid_networks_are_refused_with_one_sentence(
    name: str, config: dict[str, int], patch: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ParamsError, match=message):
        build_network(name, config, patch)


def test_cost_counts_the_parameters_of_medformer(tiny: Params) -> None:
    network = tiny.network
    built = build_network(network.name, network.config, PATCH)
    assert cost(network.name, network.config, PATCH).parameters == sum(p.numel() for p in built.parameters())
