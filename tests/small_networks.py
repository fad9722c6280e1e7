"""Small settings of every network but MedFormer, whose settings are those of `params/tiny.yaml`."""

from __future__ import annotations

from typing import Any

from hepar.params import SizeZYX

SMALL: dict[str, dict[str, Any]] = {
    "dynunet": {"filters": [8, 16, 24, 32]},
    "mednext": {"init_filters": 4},
    "resenc_unet": {"filters": [8, 16, 24, 32], "blocks": [1, 1, 2, 1]},
    "segresnet": {"init_filters": 8},
    "swinunetr": {"feature_size": 12},
    "unet": {"channels": [4, 8, 8, 8, 8]},
    "unetr": {"hidden_size": 48, "mlp_dim": 48, "num_heads": 4, "feature_size": 4},
    "vnet": {},
}


def small_patch(name: str) -> SizeZYX:
    """A patch that each network takes: Swin UNETR normalises a map 32 times coarser, which needs two voxels."""
    return (32, 32, 64) if name == "swinunetr" else (32, 32, 32)
