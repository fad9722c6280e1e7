"""MedFormer: a U-shaped network whose attention runs between the feature map and a small semantic map.

After Gao et al., "A Data-scalable Transformer for Medical Image Segmentation", arXiv 2203.00131.

Legend of shape suffixes: b batch, c channels, d h w space, n = d*h*w, m entries of the semantic map, k heads,
e channels of one head. Feature maps are `_bcdhw`, semantic maps are token lists `_bmc`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hepar.networks.medformer.operations import conv, depthwise_conv, instance_norm, pointwise_conv, upsample

Triple = tuple[int, int, int]

LEVELS = 4
STAGES = 2 * LEVELS  # on the way down, then on the way up
FIRST_MAP_STAGE, LAST_MAP_STAGE = 1, 3  # the encoder stages that own a semantic map
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


@dataclass(frozen=True)
class MedFormerConfig:
    """The architecture of a MedFormer, with the keys of the published settings.

    Lists of eight run over the stages, down1 to down4 and then up1 to up4. `kernel` has five entries (stem, then the
    four levels below it), `stride` four (one per level). `aux` adds an auxiliary output at quarter resolution.
    """

    in_channels: int
    classes: int
    base: int
    map_size: Triple
    conv_blocks: tuple[int, ...]
    attention_blocks: tuple[int, ...]
    channels: tuple[int, ...]
    heads: tuple[int, ...]
    fusion_depth: int
    fusion_dim: int
    fusion_heads: int
    expansion: int
    activation: str
    kernel: tuple[Triple, ...]
    stride: tuple[Triple, ...]
    aux: bool = False

    def __post_init__(self) -> None:
        for name in ("conv_blocks", "attention_blocks", "channels", "heads"):
            if len(getattr(self, name)) != STAGES:
                raise ValueError(f"medformer {name}: {len(getattr(self, name))} entries, must be {STAGES}")
        if len(self.kernel) != LEVELS + 1 or len(self.stride) != LEVELS:
            raise ValueError(
                f"medformer kernel and stride: {len(self.kernel)} and {len(self.stride)} entries, must be 5 and 4"
            )
        if self.attention_blocks[0] > 0:
            raise ValueError("medformer attention_blocks[0]: must be 0, the first level has no semantic map")
        if any(k % 2 == 0 for kernel in self.kernel for k in kernel):
            raise ValueError(f"medformer kernel: {self.kernel}, every size must be odd")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"medformer activation: {self.activation!r}, must be one of {sorted(ACTIVATIONS)}")
        for stage, (blocks, width, heads) in enumerate(
            zip(self.attention_blocks, self.channels, self.heads, strict=True)
        ):
            if blocks and width % heads:
                raise ValueError(f"medformer stage {stage}: {width} channels do not divide into {heads} heads")
        if self.fusion_dim % self.fusion_heads:
            raise ValueError(f"medformer fusion_dim {self.fusion_dim} does not divide into {self.fusion_heads} heads")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> MedFormerConfig:
        """Read the settings from a mapping. Raises ValueError for unknown or missing keys."""
        known = {field.name for field in fields(cls)}
        required = known - {"aux"}
        if unknown := sorted(set(config) - known):
            raise ValueError(f"medformer: unknown settings {unknown}, known are {sorted(known)}")
        if missing := sorted(required - set(config)):
            raise ValueError(f"medformer: settings {missing} are missing")
        return cls(**{name: _freeze(value) for name, value in config.items()})


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list | tuple) else value


class InstanceNorm(nn.Module):
    """Instance normalisation without affine parameters."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x_bcdhw: Tensor) -> Tensor:
        return instance_norm(x_bcdhw, self.eps)


class SameConv(nn.Conv3d):
    """A convolution that keeps the grid, without bias."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple) -> None:
        super().__init__(inputs, outputs, kernel, padding="same", bias=False)

    def forward(self, x_bcdhw: Tensor) -> Tensor:
        return conv(x_bcdhw, self.weight)


class DepthwiseConv(nn.Conv3d):
    """A depthwise convolution, without bias."""

    def __init__(self, channels: int, kernel: Triple) -> None:
        super().__init__(channels, channels, kernel, padding="same", groups=channels, bias=False)

    def forward(self, x_bcdhw: Tensor) -> Tensor:
        return depthwise_conv(x_bcdhw, self.weight)


class PointwiseConv(nn.Conv3d):
    """A 1×1×1 convolution."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, 1, bias=bias)

    def forward(self, x_bcdhw: Tensor) -> Tensor:
        return pointwise_conv(x_bcdhw, self.weight, self.bias)


class PreActConv(nn.Module):
    """Instance norm, activation, convolution."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Triple, activation: nn.Module, depthwise: bool = False
    ) -> None:
        super().__init__()
        self.norm = InstanceNorm(eps=1e-4)
        if isinstance(activation, nn.ReLU):
            activation = nn.ReLU(
                inplace=True
            )  # nothing else reads the norm's output, and a copy costs a pass over memory
        self.activation = activation
        self.conv: nn.Conv3d
        if depthwise:
            self.conv = DepthwiseConv(inputs, kernel)
        elif prod(kernel) == 1:
            self.conv = PointwiseConv(inputs, outputs)
        else:
            self.conv = SameConv(inputs, outputs, kernel)

    def activated(self, x_bcdhw: Tensor) -> Tensor:
        """The input of the convolution: normed and activated."""
        return self.activation(self.norm(x_bcdhw))  # type: ignore[no-any-return]

    def forward(self, x_bcdhw: Tensor) -> Tensor:
        return self.conv(self.activated(x_bcdhw))  # type: ignore[no-any-return]


class ResidualConv(nn.Module):
    """Two pre-activation convolutions and a shortcut, which is a convolution too if the width changes.

    That one reads the same normed input as the first convolution, so both are computed as one.
    """

    def __init__(self, inputs: int, outputs: int, kernel: Triple, activation: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = PreActConv(inputs, outputs, kernel, activation())
        self.conv2 = PreActConv(outputs, outputs, kernel, activation())
        self.shortcut = PreActConv(inputs, outputs, kernel, activation()) if inputs != outputs else nn.Identity()

    def forward(self, x_bcdhw: Tensor) -> Tensor:
        if not isinstance(self.shortcut, PreActConv):
            return self.conv2(self.conv1(x_bcdhw)) + x_bcdhw  # type: ignore[no-any-return]
        weight = torch.cat([self.conv1.conv.weight, self.shortcut.conv.weight])
        both_bcdhw = conv(self.conv1.activated(x_bcdhw), weight)
        # split along the last axis in memory, so that the gradients are concatenated there
        first_bcdhw, shortcut_bcdhw = (part.movedim(-1, 1) for part in both_bcdhw.movedim(1, -1).chunk(2, dim=-1))
        return self.conv2(first_bcdhw) + shortcut_bcdhw  # type: ignore[no-any-return]


class SeparableConv(nn.Sequential):
    """A depthwise convolution, then a pointwise one, without bias."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple) -> None:
        super().__init__(
            DepthwiseConv(inputs, kernel),
            PointwiseConv(inputs, outputs),
        )


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the means of all channels."""

    def __init__(self, channels: int, activation: nn.Module, ratio: int = 4) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, channels // ratio)
        self.activation = activation
        self.expand = nn.Linear(channels // ratio, channels)

    def forward(self, x_bcdhw: Tensor) -> Tensor:
        mean_bc = x_bcdhw.movedim(1, -1).flatten(1, 3).mean(dim=1)  # this way its gradient is channels_last_3d too
        gate_bc = torch.sigmoid(self.expand(self.activation(self.reduce(mean_bc))))
        return x_bcdhw * gate_bc[:, :, None, None, None]


class MBConv(nn.Module):
    """Inverted bottleneck with squeeze-and-excitation, the feed-forward part of an attention block."""

    def __init__(self, channels: int, expansion: int, kernel: Triple, activation: type[nn.Module]) -> None:
        super().__init__()
        wide = expansion * channels
        self.expand = PreActConv(channels, wide, (1, 1, 1), activation()) if expansion > 1 else nn.Identity()
        self.depthwise = PreActConv(wide, wide, kernel, activation(), depthwise=True)
        self.gate = SqueezeExcite(wide, activation())
        self.project = PreActConv(wide, channels, (1, 1, 1), nn.Identity())

    def forward(self, x_bcdhw: Tensor) -> Tensor:
        return x_bcdhw + self.project(self.gate(self.depthwise(self.expand(x_bcdhw))))  # type: ignore[no-any-return]


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


class PatchMerging(nn.Module):
    """Downsamples by stacking the voxels of each stride cell as channels, then projects."""

    def __init__(self, inputs: int, outputs: int, stride: Triple, kernel: Triple) -> None:
        super().__init__()
        self.stride = stride
        self.norm = InstanceNorm(eps=1e-5)
        self.project = SeparableConv(inputs * prod(stride), outputs, kernel)

    def forward(self, x_bcdhw: Tensor) -> Tensor:
        sd, sh, sw = self.stride
        cells = x_bcdhw.movedim(1, -1).unflatten(3, (-1, sw)).unflatten(2, (-1, sh)).unflatten(1, (-1, sd))
        stacked_bdhwc = cells.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)  # from b d sd h sh w sw c
        return self.project(self.norm(stacked_bdhwc.movedim(-1, 1)))  # type: ignore[no-any-return]


class Level(nn.Module):
    """The convolution and attention blocks of one stage, in the encoder's or the decoder's order."""

    def __init__(self, config: MedFormerConfig, stage: int, inputs: int, kernel: Triple) -> None:
        super().__init__()
        width, activation = config.channels[stage], ACTIVATIONS[config.activation]
        attention = config.attention_blocks[stage]
        self.attention_first = stage >= LEVELS
        conv_inputs = width if self.attention_first and attention else inputs
        attention_inputs = inputs if self.attention_first else width
        map_read_later = not self.attention_first or any(config.attention_blocks[stage + 1 :])
        self.convs = nn.Sequential(
            *(
                ResidualConv(conv_inputs if i == 0 else width, width, kernel, activation)
                for i in range(config.conv_blocks[stage])
            )
        )
        self.attentions = nn.ModuleList(
            AttentionBlock(
                attention_inputs if i == 0 else width,
                width,
                config.heads[stage],
                config.expansion,
                kernel,
                activation,
                updates_map=map_read_later or i + 1 < attention,
            )
            for i in range(attention)
        )

    def attend(self, feature_bcdhw: Tensor, map_bmc: Tensor | None) -> tuple[Tensor, Tensor | None]:
        for block in self.attentions:
            feature_bcdhw, map_bmc = block(feature_bcdhw, map_bmc)
        return feature_bcdhw, map_bmc


class Down(Level):
    """Patch merging, convolutions, then attention with this stage's semantic map (from the second stage on)."""

    def __init__(self, config: MedFormerConfig, stage: int) -> None:
        width, kernel = config.channels[stage], config.kernel[stage + 1]
        super().__init__(config, stage, width, kernel)
        inputs = config.base if stage == 0 else config.channels[stage - 1]
        self.merge = PatchMerging(inputs, width, config.stride[stage], kernel)
        has_map = FIRST_MAP_STAGE <= stage <= LAST_MAP_STAGE
        self.semantic_map = SemanticMap(width, prod(config.map_size)) if has_map else None

    def forward(self, feature_bcdhw: Tensor) -> tuple[Tensor, Tensor | None]:
        feature_bcdhw = self.convs(self.merge(feature_bcdhw))
        map_bmc = self.semantic_map(feature_bcdhw) if self.semantic_map is not None else None
        return self.attend(feature_bcdhw, map_bmc)


class Up(Level):
    """Upsampling to the grid of the skip connection, concatenation of the maps, attention, then convolutions."""

    def __init__(self, config: MedFormerConfig, stage: int) -> None:
        width, below = config.channels[stage], config.channels[stage - 1]
        skip_stage = STAGES - 2 - stage  # encoder stage of the same resolution; -1 is the stem
        skip = config.base if skip_stage < 0 else config.channels[skip_stage]
        super().__init__(config, stage, below + skip, config.kernel[skip_stage + 1])
        joins_map = skip_stage >= FIRST_MAP_STAGE
        map_inputs = below + (skip if joins_map else 0)
        map_read = any(config.attention_blocks[stage:])
        self.reduce_map = nn.Linear(map_inputs, width, bias=False) if map_read else None

    def forward(
        self, low_bcdhw: Tensor, skip_bcdhw: Tensor, map_bmc: Tensor | None, skip_map_bmc: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        low_bcdhw = upsample(low_bcdhw, skip_bcdhw.shape[2:])
        if self.reduce_map is not None and map_bmc is not None:
            maps_bmc = map_bmc if skip_map_bmc is None else torch.cat([map_bmc, skip_map_bmc], dim=-1)
            map_bmc = self.reduce_map(maps_bmc)
        joined_bdhwc = torch.cat(
            [low_bcdhw.movedim(1, -1), skip_bcdhw.movedim(1, -1)], dim=-1
        )  # along the last axis in memory
        feature_bcdhw, map_bmc = self.attend(joined_bdhwc.movedim(-1, 1), map_bmc)
        return self.convs(feature_bcdhw), map_bmc


class MedFormer(nn.Module):
    """MedFormer for volumes: `logits_bcdhw = network(image_bcdhw)` on the same grid.

    With `aux` it returns `[logits_bcdhw, aux_logits_bcdhw]` in training, where the auxiliary logits are upsampled from
    a quarter of the resolution. Each side of the input must be a multiple of `divisor`, the product of the strides.
    """

    def __init__(self, config: MedFormerConfig) -> None:
        super().__init__()
        self.config = config
        activation = ACTIVATIONS[config.activation]
        kernel = config.kernel[0]
        self.stem = SameConv(config.in_channels, config.base, kernel)
        self.stem_block = ResidualConv(config.base, config.base, kernel, activation)
        self.down = nn.ModuleList(Down(config, stage) for stage in range(LEVELS))
        self.fusion = MapFusion(config.channels[1:4], config.fusion_dim, config.fusion_heads, config.fusion_depth)
        self.up = nn.ModuleList(Up(config, stage) for stage in range(LEVELS, STAGES))
        self.aux_head = PointwiseConv(config.channels[5], config.classes, bias=True) if config.aux else None
        self.head = PointwiseConv(config.channels[7], config.classes, bias=True)
        self.gradient_checkpointing = False
        for module in self._unused():
            module.requires_grad_(False)  # DistributedDataParallel waits for a gradient of all others

    def _unused(self) -> Iterator[nn.Module]:
        """Published modules whose output no block reads, for example if the decoder has no attention."""
        in_decoder = self.config.attention_blocks[LEVELS:]
        if not any(in_decoder[1:]):
            yield self.fusion.outputs[0]
        if not any(in_decoder):
            yield self.fusion
            for stage in self.down:
                assert isinstance(stage, Down)
                blocks = [block for block in stage.attentions if isinstance(block, AttentionBlock)]
                map_of_stage = blocks[-1].attention.map_out if blocks else stage.semantic_map
                if map_of_stage is not None:
                    yield map_of_stage

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> MedFormer:
        """Build from a mapping with the keys of `MedFormerConfig`. Raises ValueError naming an invalid key."""
        return cls(MedFormerConfig.from_dict(config))

    @property
    def divisor(self) -> Triple:
        """Each side z, y, x of an input must be a multiple of these."""
        strides = self.config.stride
        return (prod(s[0] for s in strides), prod(s[1] for s in strides), prod(s[2] for s in strides))

    def _run(self, stage: nn.Module, *inputs: Tensor | None) -> Any:
        if self.gradient_checkpointing and self.training:
            return checkpoint(stage, *inputs, use_reentrant=False)
        return stage(*inputs)

    def forward(self, image_bcdhw: Tensor) -> Tensor | list[Tensor]:
        stem_bcdhw = self._run(self.stem_block, self.stem(image_bcdhw))
        skips, maps, feature_bcdhw = [stem_bcdhw], [], stem_bcdhw
        for down in self.down:
            feature_bcdhw, map_bmc = self._run(down, feature_bcdhw)
            skips.append(feature_bcdhw)
            maps.append(map_bmc)
        map2, map3, map_bmc = self.fusion(maps[FIRST_MAP_STAGE:])

        aux_bcdhw = None
        for index, (up, skip, skip_map) in enumerate(
            zip(self.up, skips[-2::-1], (map3, map2, None, None), strict=True)
        ):
            feature_bcdhw, map_bmc = self._run(up, feature_bcdhw, skip, map_bmc, skip_map)
            if index == 1 and self.aux_head is not None and self.training:
                aux_bcdhw = self.aux_head(feature_bcdhw)
        logits_bcdhw: Tensor = self.head(feature_bcdhw)
        if aux_bcdhw is None:
            return logits_bcdhw
        return [logits_bcdhw, upsample(aux_bcdhw, image_bcdhw.shape[2:])]
