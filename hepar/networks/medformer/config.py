"""The architecture of a MedFormer: its settings, with the keys of the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

Triple = tuple[int, int, int]

LEVELS = 4
STAGES = 2 * LEVELS  # on the way down, then on the way up
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
                raise ValueError(f"medformer {name} has {len(getattr(self, name))} entries but must have {STAGES}")
        if len(self.kernel) != LEVELS + 1 or len(self.stride) != LEVELS:
            raise ValueError(
                f"medformer kernel and stride have {len(self.kernel)} and {len(self.stride)} entries but must have 5"
                " and 4"
            )
        if self.attention_blocks[0] > 0:
            raise ValueError("medformer attention_blocks[0] must be 0, because the first level has no semantic map")
        if any(k % 2 == 0 for kernel in self.kernel for k in kernel):
            raise ValueError(f"medformer kernel is {self.kernel} but every size must be odd")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"medformer activation is {self.activation!r} but must be one of {sorted(ACTIVATIONS)}")
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
            raise ValueError(f"medformer: unknown settings {unknown}; known settings: {sorted(known)}")
        if missing := sorted(required - set(config)):
            raise ValueError(f"medformer: settings {missing} are missing")
        return cls(**{name: _freeze(value) for name, value in config.items()})


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list | tuple) else value
