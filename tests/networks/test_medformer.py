"""MedFormer against the published architecture."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hepar.networks.medformer import MedFormer, load_published_weights, operations
from hepar.networks.medformer.attention import AttentionBlock
from hepar.networks.medformer.convolutions import InstanceNorm
from hepar.networks.medformer.weight_mapping import _reorder_heads, map_name

SMALL = {
    "in_channels": 1,
    "classes": 2,
    "base": 4,
    "map_size": [2, 2, 2],
    "conv_blocks": [1, 0, 0, 0, 0, 0, 1, 1],
    "attention_blocks": [0, 1, 1, 1, 1, 1, 0, 0],
    "channels": [8, 8, 16, 16, 16, 8, 8, 4],
    "heads": [1, 1, 2, 4, 2, 1, 1, 1],
    "fusion_depth": 1,
    "fusion_dim": 16,
    "fusion_heads": 2,
    "expansion": 2,
    "activation": "relu",
    "kernel": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "stride": [[1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
}
LITS = {
    "in_channels": 1,
    "classes": 3,
    "base": 32,
    "map_size": [4, 4, 4],
    "conv_blocks": [2, 0, 0, 0, 0, 0, 2, 2],
    "attention_blocks": [0, 2, 4, 6, 4, 2, 0, 0],
    "channels": [64, 128, 256, 320, 256, 128, 64, 32],
    "heads": [1] * 8,
    "fusion_depth": 2,
    "fusion_dim": 320,
    "fusion_heads": 10,
    "expansion": 4,
    "activation": "relu",
    "kernel": [[3, 3, 3]] * 5,
    "stride": [[2, 2, 2]] * 4,
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_the_small_setting_reproduces_the_published_output(real_data: Path, memory_format: torch.memory_format) -> None:
    with np.load(real_data / "medformer" / "small.npz") as stored:
        network = MedFormer.from_config(json.loads(str(stored["config"])))
        load_published_weights(
            network, {n[2:]: torch.from_numpy(stored[n]) for n in stored.files if n.startswith("w/")}
        )
        image, expected = torch.from_numpy(stored["input"]), torch.from_numpy(stored["output0"])
    network = network.eval().to(memory_format=memory_format)  # type: ignore[call-overload]
    with torch.no_grad():
        output = network(image.contiguous(memory_format=memory_format))
    assert (output - expected).abs().max() < 1e-4


@pytest.mark.parametrize("stage", [2, 3])  # with two heads, and with four
def test_interleaved_heads_of_published_weights_are_reordered(stage: int) -> None:
    torch.manual_seed(2)
    network = MedFormer.from_config(SMALL).double()
    block = network.down[stage].attentions[0]
    assert isinstance(block, AttentionBlock)
    attention = block.attention
    published = {name: torch.randn_like(value) for name, value in attention.state_dict().items()}
    place = f"down.{stage}.attentions.0.attention"
    attention.load_state_dict({n: _reorder_heads(f"{place}.{n}", v, network) for n, v in published.items()})
    heads, width = SMALL["heads"][stage], SMALL["channels"][stage]  # type: ignore[index]
    feature, semantic = torch.randn(1, width, 2, 3, 4).double(), torch.randn(1, 8, width).double()

    def convolved(name: str, x: Tensor) -> Tensor:
        along, across = published[f"{name}.0.weight"], published[f"{name}.1.weight"]
        return F.conv3d(F.conv3d(x, along, padding="same", groups=x.shape[1]), across)

    def split(tokens: Tensor) -> Tensor:  # channels are e h, with the heads fastest
        return tokens.unflatten(-1, (width // heads, heads))

    q, v = (split(part) for part in convolved("feature_qv", feature).flatten(2).transpose(1, 2).chunk(2, dim=-1))
    mq, mv = (split(part) for part in (semantic @ published["map_qv.weight"].T).chunk(2, dim=-1))
    affinity = torch.einsum("bneh,bmeh->bhnm", q, mq) * (width // heads) ** -0.5
    of_voxels = torch.einsum("bhnm,bmeh->bneh", affinity.softmax(dim=3), mv).flatten(2)
    of_map = torch.einsum("bhnm,bneh->bmeh", affinity.softmax(dim=2), v).flatten(2)
    found, found_map = attention(feature, semantic)
    expected = convolved("feature_out", of_voxels.transpose(1, 2).unflatten(2, feature.shape[2:]))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_map, of_map @ published["map_out.weight"].T)


def test_the_lits_setting_has_the_published_parameters(real_data: Path) -> None:
    with torch.device("meta"):
        own = {name: value.numel() for name, value in MedFormer.from_config(LITS).state_dict().items()}
    assert sum(own.values()) == 38_585_731
    rows = (real_data / "medformer" / "lits_parameters.tsv").read_text().split("\n")[1:]
    published = dict(line.split("\t") for line in rows if line)
    numel = {map_name(name): int(np.prod([int(n) for n in shape.split("x")])) for name, shape in published.items()}
    assert numel == own


@pytest.mark.parametrize("size", [(16, 32, 32), (24, 32, 48)])
def test_the_output_has_the_grid_of_the_input(size: tuple[int, int, int]) -> None:
    network = MedFormer.from_config(SMALL).eval()
    with torch.no_grad():
        assert network(torch.randn(2, 1, *size)).shape == (2, 2, *size)


@pytest.mark.parametrize("base", [3, 4])  # of the skip connection, whose width is a part of the map joined to it
def test_a_prediction_of_large_maps_makes_no_larger_ones(base: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest(TorchDispatchMode):
        """Keeps the size of the largest tensor that is made."""

        values = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            self.values = max([self.values, *(t.numel() for t in tree_leaves(made) if isinstance(t, Tensor))])
            return made

    torch.manual_seed(0)
    network = MedFormer.from_config({**SMALL, "base": base}).double().eval()
    image = torch.randn(1, 1, 16, 32, 32).double()
    outputs, values = [], []
    for spared in (operations.SPARED_VALUES, 0):
        monkeypatch.setattr(operations, "SPARED_VALUES", spared)
        with torch.no_grad(), Largest() as largest:
            outputs.append(network(image))
        values.append(largest.values)
    torch.testing.assert_close(*outputs)
    assert values[0] >= (8 + base) * image.numel()  # joined
    assert values[1] < 8 * image.numel()  # not even the upsampled one


def test_the_auxiliary_output_exists_in_training_only() -> None:
    network = MedFormer.from_config({**SMALL, "aux": True})
    image = torch.randn(1, 1, 16, 32, 32)
    outputs = network.train()(image)
    assert [tuple(o.shape) for o in outputs] == [(1, 2, 16, 32, 32)] * 2
    assert network.eval()(image).shape == (1, 2, 16, 32, 32)


def test_every_parameter_has_an_effect() -> None:
    torch.manual_seed(0)  # other weights can close a gate for every scan
    network = MedFormer.from_config(SMALL)
    network(torch.randn(4, 1, 16, 32, 32)).square().mean().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    network, image = MedFormer.from_config(SMALL), torch.randn(1, 1, 16, 32, 32)
    grads = []
    for flag in (False, True):
        network.gradient_checkpointing = flag
        network.zero_grad()
        network(image).square().mean().backward()
        grads.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"in_channels": 2, "aux": True},
        {"conv_blocks": [1, 1, 0, 0, 1, 0, 1, 1], "attention_blocks": [0, 1, 2, 1, 1, 2, 1, 0]},
        {"stride": [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]]},
    ],
    ids=["small", "two channels", "mixed blocks", "flat strides"],
)
def test_it_matches_the_formulas_of_the_paper(change: dict[str, object]) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from plain_medformer import PlainMedFormer  # shares no code with the forward pass

    torch.manual_seed(0)
    network = MedFormer.from_config({**SMALL, **change})
    image = torch.randn(2, network.config.in_channels, 16, 32, 32)
    plain = PlainMedFormer(network)
    own = network.to(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        expected = plain.eval()(image)
        assert torch.allclose(own.eval()(image), expected, atol=1e-4 * float(expected.abs().max()))

    own, plain, image = own.double().train(), plain.double().train(), image.double()
    ours, theirs = own(image), plain(image)
    pairs = list(zip(ours, theirs, strict=True) if isinstance(ours, list) else [(ours, theirs)])
    for a, b in pairs:
        assert torch.allclose(a, b, atol=1e-9)
    for outputs in zip(*pairs, strict=True):
        sum(output.square().mean() for output in outputs).backward()
    others = dict(plain.weights.named_parameters())
    for name, parameter in own.named_parameters():
        other = others[name].grad
        assert (parameter.grad is None) == (other is None)
        if other is not None and parameter.grad is not None:
            assert torch.allclose(parameter.grad, other, atol=1e-9), name


@pytest.mark.parametrize("training", [True, False])
def test_it_compiles_to_one_graph(training: bool) -> None:
    torch.manual_seed(0)
    network = MedFormer.from_config({**SMALL, "aux": True}).train(training)
    image = torch.randn(1, 1, 16, 32, 32).contiguous(memory_format=torch.channels_last_3d)
    compiled = torch.compile(network, backend="eager", fullgraph=True)  # a graph break is an error
    for a, b in zip(network(image), compiled(image), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_bf16_stays_close_to_single_precision() -> None:
    torch.manual_seed(0)
    network, image = MedFormer.from_config(SMALL).eval(), torch.randn(1, 1, 16, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        near = network(image)
    with torch.no_grad():
        exact = network(image)
    assert near.dtype == torch.bfloat16
    assert float((near.float() - exact).abs().mean()) < 0.05 * float(exact.abs().mean())


@pytest.mark.filterwarnings("ignore")
def test_it_runs_in_onnx(tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    network, image = MedFormer.from_config(SMALL).eval(), torch.randn(1, 1, 16, 32, 32)
    torch.onnx.export(network, (image,), dynamo=True, verbose=False).save(str(tmp_path / "medformer.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "medformer.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        assert np.allclose(found, network(image).numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel": 3}, "unknown settings"),
        ({"attention_blocks": [1] * 8}, "no semantic map"),
        ({"heads": [3] * 8}, "do not divide"),
        ({"activation": "tanh"}, "'tanh'"),
        ({"kernel": [[2, 3, 3]] * 5}, "odd"),
    ],
)
def test_invalid_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MedFormer.from_config({**SMALL, **change})


def test_a_parameter_of_another_shape_is_refused_and_nothing_is_loaded(real_data: Path) -> None:
    with np.load(real_data / "medformer" / "small.npz") as stored:
        network = MedFormer.from_config(json.loads(str(stored["config"])))
        weights = {n[2:]: torch.from_numpy(stored[n]) for n in stored.files if n.startswith("w/")}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights["inc.conv1.weight"] = torch.zeros(8, 2, 3, 3, 3)
    with pytest.raises(ValueError, match=r"inc\.conv1\.weight"):
        load_published_weights(network, weights)
    with pytest.raises(ValueError, match="nonsense"):
        load_published_weights(network, {"nonsense": torch.zeros(1)})
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_instance_norm_has_the_gradient_of_a_group_norm(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64).to(memory_format=memory_format)
    upstream = torch.randn_like(image)
    gradients = []
    for norm in (InstanceNorm(1e-4), lambda x: torch.nn.functional.group_norm(x, 3, eps=1e-4)):
        leaf = image.clone().requires_grad_()
        norm(leaf).backward(upstream)
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "attention",
    [[0, 1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0], [0] * 8],
    ids=str,
)
def test_every_trainable_parameter_gets_a_gradient_as_ddp_requires(attention: list[int]) -> None:
    convs = [int(blocks == 0) for blocks in attention]
    network = MedFormer.from_config({**SMALL, "attention_blocks": attention, "conv_blocks": convs}).train()
    network(torch.randn(1, 1, 16, 32, 32)).square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    idle = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert bool(idle) == (sum(attention[5:]) == 0)
