"""MedFormer as its paper's formulas read (arXiv 2203.00131): einsum attention, torch's own norms, no memory format.

It borrows the weights of a `hepar` MedFormer and shares no code with its forward pass. Legend: b batch, c channels,
d h w space, n voxels, m entries of a semantic map, k heads, e channels of a head.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hepar.networks.medformer import MedFormer


class PlainMedFormer(nn.Module):
    """The same function of the same weights."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        assert isinstance(network, MedFormer)
        self.weights = copy.deepcopy(network)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        net = self.weights
        x = residual(net.stem_block, conv(net.stem, image))
        skips, maps = [x], []
        for down in net.down:
            x = merged(down.merge, x)
            for block in down.convs:
                x = residual(block, x)
            semantic = None if down.semantic_map is None else made(down.semantic_map, x)
            for block in down.attentions:
                x, semantic = attended(block, x, semantic)
            skips.append(x)
            maps.append(semantic)
        second, third, semantic = fused(net.fusion, maps[1:])

        outputs = []
        for number, (up, skip, joined) in enumerate(
            zip(net.up, skips[-2::-1], (third, second, None, None), strict=True)
        ):
            x = F.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=True)
            if up.reduce_map is not None and semantic is not None:
                semantic = up.reduce_map(semantic if joined is None else torch.cat([semantic, joined], dim=-1))
            x = torch.cat([x, skip], dim=1)
            for block in up.attentions:
                x, semantic = attended(block, x, semantic)
            for block in up.convs:
                x = residual(block, x)
            if number == 1 and net.aux_head is not None and self.training:
                aux = conv(net.aux_head, x)
                outputs = [F.interpolate(aux, size=image.shape[2:], mode="trilinear", align_corners=True)]
        logits = conv(net.head, x)
        return [logits, *outputs] if outputs else logits


def conv(layer: nn.Conv3d, x: Tensor) -> Tensor:
    return F.conv3d(x, layer.weight, layer.bias, padding=layer.padding, groups=layer.groups)


def separable(layers: Any, x: Tensor) -> Tensor:
    """Channel by channel, then voxel by voxel."""
    return conv(layers[1], conv(layers[0], x))


def convolved(block: Any, x: Tensor) -> Tensor:
    """Instance norm, activation, convolution."""
    activation = block.activation
    x = F.instance_norm(x, eps=block.norm.eps)
    return conv(block.conv, F.relu(x) if isinstance(activation, nn.ReLU) else activation(x))


def residual(block: Any, x: Tensor) -> Tensor:
    short = x if isinstance(block.shortcut, nn.Identity) else convolved(block.shortcut, x)
    return convolved(block.conv2, convolved(block.conv1, x)) + short


def merged(block: Any, x: Tensor) -> Tensor:
    """Voxels of a cell become channels."""
    d, h, w = block.stride
    cells = [x[:, :, i::d, j::h, k::w] for i in range(d) for j in range(h) for k in range(w)]
    return separable(block.project, F.instance_norm(torch.cat(cells, dim=1), eps=block.norm.eps))


def made(block: Any, x: Tensor) -> Tensor:
    """A semantic map b m c: means over the voxels, weighted by a softmax."""
    values, weights = conv(block.values, x).flatten(2), conv(block.weights, x).flatten(2)
    return torch.einsum("bmn,bcn->bmc", weights.softmax(dim=-1), values)


def attended(block: Any, x: Tensor, semantic: Tensor) -> tuple[Tensor, Tensor | None]:
    """Bidirectional attention and the feed-forward part."""
    attention, short = block.attention, x if isinstance(block.shortcut, nn.Identity) else convolved(block.shortcut, x)
    space, heads = x.shape[2:], attention.heads
    feature_q, feature_v = separable(attention.feature_qv, F.instance_norm(x, eps=block.norm.eps)).chunk(2, dim=1)
    normed = F.instance_norm(semantic.transpose(1, 2), eps=1e-5).transpose(1, 2)
    map_q, map_v = attention.map_qv(normed).chunk(2, dim=-1)
    b, c = feature_q.shape[:2]
    fq, fv = (part.reshape(b, heads, c // heads, -1) for part in (feature_q, feature_v))
    mq, mv = (part.reshape(b, -1, heads, c // heads) for part in (map_q, map_v))
    affinity = torch.einsum("bken,bmke->bknm", fq, mq) * (c // heads) ** -0.5
    update = torch.einsum("bknm,bmke->bken", affinity.softmax(dim=-1), mv).reshape(b, c, *space)
    x = separable(attention.feature_out, update) + short
    if attention.map_out is not None:
        change = torch.einsum("bknm,bken->bmke", affinity.softmax(dim=2), fv).reshape(b, -1, c)
        semantic = semantic + attention.map_out(change)
    return fed_forward(block.feedforward, x), None if attention.map_out is None else semantic


def fed_forward(block: Any, x: Tensor) -> Tensor:
    wide = x if isinstance(block.expand, nn.Identity) else convolved(block.expand, x)
    wide = convolved(block.depthwise, wide)
    means = F.adaptive_avg_pool3d(wide, 1).flatten(1)
    gate = torch.sigmoid(block.gate.expand(block.gate.activation(block.gate.reduce(means))))
    return x + convolved(block.project, wide * gate[:, :, None, None, None])


def fused(block: Any, maps: list[Tensor | None]) -> list[Tensor]:
    """Transformer layers over the tokens of all maps."""
    tokens = torch.cat([project(tokens) for project, tokens in zip(block.inputs, maps, strict=True)], dim=1)
    for layer in block.layers:
        heads = layer.heads
        b, n, c = tokens.shape
        q, k, v = layer.qkv(layer.norm1(tokens)).reshape(b, n, 3, heads, c // heads).unbind(2)
        weights = (torch.einsum("bike,bjke->bkij", q, k) * (c // heads) ** -0.5).softmax(dim=-1)
        tokens = tokens + layer.out(torch.einsum("bkij,bjke->bike", weights, v).reshape(b, n, c))
        tokens = tokens + layer.mlp(layer.norm2(tokens))
    return [project(part) for project, part in zip(block.outputs, tokens.chunk(len(maps), dim=1), strict=True)]
