"""A direct transcription of MedFormer's formulas (arXiv 2203.00131): einsum attention, torch's norms, no memory format.

It borrows the weights of a `hepar` MedFormer and shares no code with its forward pass. Legend: b batch, c channels,
d h w space, n voxels, m entries of the semantic map, k heads, e channels of a head.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hepar.networks.medformer import MedFormer


class PlainMedFormer(nn.Module):
    """Computes what `MedFormer` does, with the same weights."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        assert isinstance(network, MedFormer)
        self.weights = copy.deepcopy(network)

    def forward(self, image_bcdhw: Tensor) -> Tensor | list[Tensor]:
        net: Any = self.weights  # whose modules are known by their names alone
        x_bcdhw = residual(net.stem_block, conv(net.stem, image_bcdhw))
        skips, maps = [x_bcdhw], list[Any]()
        for down in net.down:
            x_bcdhw = merge_patches(down.merge, x_bcdhw)
            for block in down.convs:
                x_bcdhw = residual(block, x_bcdhw)
            map_bmc: Any = None if down.semantic_map is None else semantic_map(down.semantic_map, x_bcdhw)
            for block in down.attentions:
                x_bcdhw, map_bmc = attend(block, x_bcdhw, map_bmc)
            skips.append(x_bcdhw)
            maps.append(map_bmc)
        second_map_bmc, third_map_bmc, map_bmc = fuse_maps(net.fusion, maps[1:])

        outputs = []
        for number, (up, skip_bcdhw, skip_map_bmc) in enumerate(
            zip(net.up, skips[-2::-1], (third_map_bmc, second_map_bmc, None, None), strict=True)
        ):
            x_bcdhw = F.interpolate(x_bcdhw, size=skip_bcdhw.shape[2:], mode="trilinear", align_corners=True)
            if up.reduce_map is not None and map_bmc is not None:
                map_bmc = up.reduce_map(map_bmc if skip_map_bmc is None else torch.cat([map_bmc, skip_map_bmc], dim=-1))
            x_bcdhw = torch.cat([x_bcdhw, skip_bcdhw], dim=1)
            for block in up.attentions:
                x_bcdhw, map_bmc = attend(block, x_bcdhw, map_bmc)
            for block in up.convs:
                x_bcdhw = residual(block, x_bcdhw)
            if number == 1 and net.aux_head is not None and self.training:
                aux_bcdhw = conv(net.aux_head, x_bcdhw)
                outputs = [F.interpolate(aux_bcdhw, size=image_bcdhw.shape[2:], mode="trilinear", align_corners=True)]
        logits_bcdhw = conv(net.head, x_bcdhw)
        return [logits_bcdhw, *outputs] if outputs else logits_bcdhw


def conv(layer: nn.Conv3d, x_bcdhw: Tensor) -> Tensor:
    """A convolution with the weights of `layer`."""
    return F.conv3d(x_bcdhw, layer.weight, layer.bias, padding=layer.padding, groups=layer.groups)


def separable(layers: Any, x_bcdhw: Tensor) -> Tensor:
    """A depthwise, then a pointwise convolution."""
    return conv(layers[1], conv(layers[0], x_bcdhw))


def preact_conv(block: Any, x_bcdhw: Tensor) -> Tensor:
    """Instance norm, activation, convolution."""
    activation = block.activation
    x_bcdhw = F.instance_norm(x_bcdhw, eps=block.norm.eps)
    return conv(block.conv, F.relu(x_bcdhw) if isinstance(activation, nn.ReLU) else activation(x_bcdhw))


def residual(block: Any, x_bcdhw: Tensor) -> Tensor:
    """Two convolutions and a shortcut."""
    shortcut_bcdhw = x_bcdhw if isinstance(block.shortcut, nn.Identity) else preact_conv(block.shortcut, x_bcdhw)
    return preact_conv(block.conv2, preact_conv(block.conv1, x_bcdhw)) + shortcut_bcdhw


def merge_patches(block: Any, x_bcdhw: Tensor) -> Tensor:
    """Patch merging: the voxels of a stride cell become channels."""
    d, h, w = block.stride
    cells_bcdhw = [x_bcdhw[:, :, i::d, j::h, k::w] for i in range(d) for j in range(h) for k in range(w)]
    return separable(block.project, F.instance_norm(torch.cat(cells_bcdhw, dim=1), eps=block.norm.eps))


def semantic_map(block: Any, x_bcdhw: Tensor) -> Tensor:
    """The semantic map: softmax-weighted means over the voxels."""
    values_bcn, weights_bmn = conv(block.values, x_bcdhw).flatten(2), conv(block.weights, x_bcdhw).flatten(2)
    return torch.einsum("bmn,bcn->bmc", weights_bmn.softmax(dim=-1), values_bcn)


def attend(block: Any, x_bcdhw: Tensor, map_bmc: Tensor) -> tuple[Tensor, Tensor | None]:
    """An attention block: bidirectional attention and the feed-forward part."""
    attention = block.attention
    shortcut_bcdhw = x_bcdhw if isinstance(block.shortcut, nn.Identity) else preact_conv(block.shortcut, x_bcdhw)
    space, heads = x_bcdhw.shape[2:], attention.heads
    feature_q_bcdhw, feature_v_bcdhw = separable(
        attention.feature_qv, F.instance_norm(x_bcdhw, eps=block.norm.eps)
    ).chunk(2, dim=1)
    normed_bmc = F.instance_norm(map_bmc.transpose(1, 2), eps=1e-5).transpose(1, 2)
    map_q_bmc, map_v_bmc = attention.map_qv(normed_bmc).chunk(2, dim=-1)
    b, c = feature_q_bcdhw.shape[:2]
    feature_q_bken, feature_v_bken = (
        part.reshape(b, heads, c // heads, -1) for part in (feature_q_bcdhw, feature_v_bcdhw)
    )
    map_q_bmke, map_v_bmke = (part.reshape(b, -1, heads, c // heads) for part in (map_q_bmc, map_v_bmc))
    affinity_bknm = torch.einsum("bken,bmke->bknm", feature_q_bken, map_q_bmke) * (c // heads) ** -0.5
    update_bcdhw = torch.einsum("bknm,bmke->bken", affinity_bknm.softmax(dim=-1), map_v_bmke).reshape(b, c, *space)
    x_bcdhw = separable(attention.feature_out, update_bcdhw) + shortcut_bcdhw
    if attention.map_out is not None:
        map_update_bmc = torch.einsum("bknm,bken->bmke", affinity_bknm.softmax(dim=2), feature_v_bken).reshape(b, -1, c)
        map_bmc = map_bmc + attention.map_out(map_update_bmc)
    return feed_forward(block.feedforward, x_bcdhw), None if attention.map_out is None else map_bmc


def feed_forward(block: Any, x_bcdhw: Tensor) -> Tensor:
    """MBConv."""
    wide_bcdhw = x_bcdhw if isinstance(block.expand, nn.Identity) else preact_conv(block.expand, x_bcdhw)
    wide_bcdhw = preact_conv(block.depthwise, wide_bcdhw)
    mean_bc = F.adaptive_avg_pool3d(wide_bcdhw, 1).flatten(1)
    gate_bc = torch.sigmoid(block.gate.expand(block.gate.activation(block.gate.reduce(mean_bc))))
    return x_bcdhw + preact_conv(block.project, wide_bcdhw * gate_bc[:, :, None, None, None])


def fuse_maps(block: Any, maps: list[Tensor | None]) -> list[Tensor]:
    """Map fusion: transformer layers over the tokens of all maps."""
    tokens_bnc = torch.cat([project(tokens_bnc) for project, tokens_bnc in zip(block.inputs, maps, strict=True)], dim=1)
    for layer in block.layers:
        heads = layer.heads
        b, n, c = tokens_bnc.shape
        q, k, v = layer.qkv(layer.norm1(tokens_bnc)).reshape(b, n, 3, heads, c // heads).unbind(2)
        weights = (torch.einsum("bike,bjke->bkij", q, k) * (c // heads) ** -0.5).softmax(dim=-1)
        tokens_bnc = tokens_bnc + layer.out(torch.einsum("bkij,bjke->bike", weights, v).reshape(b, n, c))
        tokens_bnc = tokens_bnc + layer.mlp(layer.norm2(tokens_bnc))
    return [project(part) for project, part in zip(block.outputs, tokens_bnc.chunk(len(maps), dim=1), strict=True)]
