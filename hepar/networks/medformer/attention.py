"""MedFormer's attention between feature map and semantic map, and between the semantic maps of three scales.

Shape suffixes as in `network.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hepar.networks.medformer.config import Triple
from hepar.networks.medformer.convolutions import InstanceNorm, MBConv, PreActConv, SeparableConv
from hepar.networks.medformer.operations import conv


class BidirectionalAttention(nn.Module):
    """Voxels attend to the semantic map and the map to the voxels, through one affinity matrix.

    The cost is linear in the number of voxels. Channels are ordered head by head. Without `updates_map`, for a map
    that is not read afterwards, the map is not updated and None is returned for it.
    """

    def __init__(self, inputs: int, outputs: int, heads: int, kernel: Triple, updates_map: bool) -> None:
        super().__init__()
        self.heads = heads
        self.width = outputs
        self.feature_qv = SeparableConv(inputs, 2 * outputs, kernel)
        self.feature_out = SeparableConv(outputs, outputs, kernel)
        self.map_qv = nn.Linear(outputs, 2 * outputs, bias=False)
        self.map_out = nn.Linear(outputs, outputs, bias=False) if updates_map else None

    def _split(self, tokens_bnc: Tensor) -> Tensor:
        """(b, n, k*e) to (b, k, n, e)."""
        return tokens_bnc.unflatten(-1, (self.heads, self.width // self.heads)).transpose(1, 2)  # type: ignore[no-any-return]

    def forward(self, feature_bcdhw: Tensor, map_bmc: Tensor) -> tuple[Tensor, Tensor | None]:
        space = feature_bcdhw.shape[2:]
        feature_qv_bnc = self.feature_qv(feature_bcdhw).flatten(2).transpose(1, 2)
        feature_q_bkne, feature_v_bkne = map(self._split, feature_qv_bnc.chunk(2, dim=-1))
        map_q_bkme, map_v_bkme = map(self._split, self.map_qv(map_bmc).chunk(2, dim=-1))

        scale = (self.width // self.heads) ** -0.5
        affinity_bknm = feature_q_bkne @ (map_q_bkme * scale).transpose(-1, -2)
        feature_bkne = affinity_bknm.softmax(dim=-1) @ map_v_bkme
        feature_bcdhw = self.feature_out(feature_bkne.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, space))
        if self.map_out is None:
            return feature_bcdhw, None
        map_bkme = affinity_bknm.softmax(dim=-2).transpose(-1, -2) @ feature_v_bkne
        return feature_bcdhw, self.map_out(map_bkme.transpose(1, 2).flatten(2))


class AttentionBlock(nn.Module):
    """Bidirectional attention and an MBConv, each with a shortcut."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        heads: int,
        expansion: int,
        kernel: Triple,
        activation: type[nn.Module],
        updates_map: bool,
    ) -> None:
        super().__init__()
        self.norm = InstanceNorm(eps=1e-5)
        self.attention = BidirectionalAttention(inputs, outputs, heads, kernel, updates_map)
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else PreActConv(inputs, outputs, (1, 1, 1), activation())
        self.feedforward = MBConv(outputs, expansion, kernel, activation)

    def forward(self, feature_bcdhw: Tensor, map_bmc: Tensor) -> tuple[Tensor, Tensor | None]:
        update_bcdhw, map_update_bmc = self.attention(self.norm(feature_bcdhw), _norm_map(map_bmc))
        feature_bcdhw = self.feedforward(update_bcdhw + self.shortcut(feature_bcdhw))
        return feature_bcdhw, None if map_update_bmc is None else map_bmc + map_update_bmc


def _norm_map(map_bmc: Tensor, eps: float = 1e-5) -> Tensor:
    """Instance norm of a semantic map: each channel over its m entries, in single precision or better.

    In half precision the gradient of the inverse root of a variance near zero would be NaN.
    """
    map_bmc = map_bmc.to(torch.promote_types(map_bmc.dtype, torch.float32))
    variance, mean = torch.var_mean(map_bmc, dim=1, correction=0, keepdim=True)
    return (map_bmc - mean) * torch.rsqrt(variance + eps)


class SemanticMap(nn.Module):
    """Summarises a feature map in m tokens, each a softmax-weighted mean over all voxels."""

    def __init__(self, channels: int, entries: int) -> None:
        super().__init__()
        self.values = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.weights = nn.Conv3d(channels, entries, 3, padding=1, bias=False)

    def forward(self, feature_bcdhw: Tensor) -> Tensor:
        weight = torch.cat([self.values.weight, self.weights.weight])  # one convolution for both
        both_bcn = conv(feature_bcdhw, weight).flatten(2)
        values_bcn, weights_bmn = both_bcn.split([self.values.out_channels, self.weights.out_channels], dim=1)
        return weights_bmn.softmax(dim=-1) @ values_bcn.transpose(1, 2)  # type: ignore[no-any-return]


class FusionLayer(nn.Module):
    """One pre-norm transformer layer over the tokens of all semantic maps."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, tokens_bmc: Tensor) -> Tensor:
        heads = (self.heads, tokens_bmc.shape[-1] // self.heads)
        q, k, v = (
            part.unflatten(-1, heads).transpose(1, 2) for part in self.qkv(self.norm1(tokens_bmc)).chunk(3, dim=-1)
        )
        attended_bmc = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens_bmc = tokens_bmc + self.out(attended_bmc)
        return tokens_bmc + self.mlp(self.norm2(tokens_bmc))  # type: ignore[no-any-return]


class MapFusion(nn.Module):
    """A transformer over the semantic maps of all three scales."""

    def __init__(self, widths: Sequence[int], dim: int, heads: int, depth: int) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(nn.Linear(width, dim, bias=False) for width in widths)
        self.layers = nn.ModuleList(FusionLayer(dim, heads) for _ in range(depth))
        self.outputs = nn.ModuleList(nn.Linear(dim, width, bias=False) for width in widths)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        tokens_bmc = torch.cat([project(tokens) for project, tokens in zip(self.inputs, maps, strict=True)], dim=1)
        for layer in self.layers:
            tokens_bmc = layer(tokens_bmc)
        parts = tokens_bmc.chunk(len(maps), dim=1)
        return [project(part) for project, part in zip(self.outputs, parts, strict=True)]
