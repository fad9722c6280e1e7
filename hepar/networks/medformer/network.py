"""MedFormer: a U-shaped network whose attention runs between the feature map and a small semantic map.

After Gao et al., "A Data-scalable Transformer for Medical Image Segmentation", arXiv 2203.00131.

Legend of shape suffixes: b batch, c channels, d h w space, n = d*h*w, m entries of the semantic map, k heads,
e channels of one head. Feature maps are `_bcdhw`, semantic maps are token lists `_bmc`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hepar.networks.medformer.attention import AttentionBlock, MapFusion, SemanticMap
from hepar.networks.medformer.config import ACTIVATIONS, LEVELS, STAGES, MedFormerConfig, Triple
from hepar.networks.medformer.convolutions import PatchMerging, PointwiseConv, ResidualConv, SameConv, joined
from hepar.networks.medformer.operations import upsample

FIRST_MAP_STAGE, LAST_MAP_STAGE = 1, 3  # the encoder stages that own a semantic map


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
        if self.reduce_map is not None and map_bmc is not None:
            maps_bmc = map_bmc if skip_map_bmc is None else torch.cat([map_bmc, skip_map_bmc], dim=-1)
            map_bmc = self.reduce_map(maps_bmc)
        if self.attentions or not self.convs:
            feature_bcdhw, map_bmc = self.attend(joined(low_bcdhw, skip_bcdhw), map_bmc)
            return self.convs(feature_bcdhw), map_bmc
        first, *others = self.convs
        feature_bcdhw = first(low_bcdhw, skip_bcdhw)
        for block in others:
            feature_bcdhw = block(feature_bcdhw)
        return feature_bcdhw, map_bmc


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
