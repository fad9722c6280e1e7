"""MONAI's networks: default settings, and those that `config` overrides.

A setting is an argument of MONAI's class. Levels, strides and position embeddings follow from the patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from hepar.cases import STRUCTURES
from hepar.networks.strides import choose_strides
from hepar.params import SizeZYX

IN_CHANNELS = 1
_CHANNELS = {"in_channels": IN_CHANNELS, "out_channels": len(STRUCTURES)}
MAX_LEVELS = 6
FILTERS, MAX_FILTERS = 32, 320
RESENC_BLOCKS = (1, 3, 4, 6, 6, 6)  # of the encoder, by level


class MonaiNetwork(nn.Module):
    """A MONAI network. Each side of its patch must be a multiple of `divisor`."""

    def __init__(self, network: nn.Module, divisor: SizeZYX) -> None:
        super().__init__()
        self.network = network
        self.divisor = divisor

    def forward(self, image_bcdhw: Tensor) -> Tensor | list[Tensor]:
        """Logits brdhw; in training with deep supervision a list of them, full resolution first."""
        output: Tensor | list[Tensor] = self.network(image_bcdhw)
        return list(output.unbind(1)) if isinstance(output, Tensor) and output.dim() == 6 else output


def dynunet(config: Mapping[str, Any], patch_zyx: SizeZYX) -> nn.Module:
    """nnU-Net's U-Net with residual blocks. Strides follow from the patch unless `config` has them, the first of 1."""
    from monai.networks.nets.dynunet import DynUNet  # importing monai takes seconds

    _, *strides = config.get("strides", [1, *choose_strides(patch_zyx, MAX_LEVELS - 1)])
    settings: dict[str, Any] = {
        "spatial_dims": 3,
        **_CHANNELS,
        "kernel_size": [[3, 3, 3]] * (len(strides) + 1),
        "strides": [[1, 1, 1], *strides],
        "upsample_kernel_size": strides,
        "filters": _filters(len(strides) + 1),
        "res_block": True,
        "deep_supervision": len(strides) > 2,
        "deep_supr_num": min(3, max(1, len(strides) - 1)),
        **config,
    }
    divisor = tuple(math.prod(int(stride[axis]) for stride in settings["strides"]) for axis in range(3))
    return MonaiNetwork(DynUNet(**settings), divisor)  # type: ignore[arg-type]


def resenc_unet(config: Mapping[str, Any], patch_zyx: SizeZYX) -> nn.Module:
    """ResEnc U-Net, from MONAI's blocks. Strides follow from the patch unless `config` has them."""
    from hepar.networks.resenc_unet import ResEncUNet

    strides = config.get("strides", choose_strides(patch_zyx, MAX_LEVELS - 1))
    settings: dict[str, Any] = {
        **_CHANNELS,
        "filters": _filters(len(strides) + 1),
        "blocks": RESENC_BLOCKS[: len(strides) + 1],
        **config,
        "strides": strides,
    }
    network = ResEncUNet(**settings)
    return MonaiNetwork(network, network.divisor)  # type: ignore[arg-type]


def segresnet(config: Mapping[str, Any], patch_zyx: SizeZYX) -> nn.Module:
    """SegResNet."""
    from monai.networks.nets.segresnet import SegResNet

    settings = {"spatial_dims": 3, **_CHANNELS, "init_filters": 16, **config}
    return MonaiNetwork(SegResNet(**settings), _cubed(2 ** (len(settings.get("blocks_down", (1, 2, 2, 4))) - 1)))


def swinunetr(config: Mapping[str, Any], patch_zyx: SizeZYX) -> nn.Module:
    """Swin UNETR."""
    from monai.networks.nets.swin_unetr import SwinUNETR

    settings = {**_CHANNELS, "feature_size": 24, **config}
    return MonaiNetwork(SwinUNETR(spatial_dims=3, **settings), _cubed(32))


def unetr(config: Mapping[str, Any], patch_zyx: SizeZYX) -> nn.Module:
    """UNETR, for patches of this size only: it has one position embedding per token."""
    from monai.networks.nets.unetr import UNETR

    settings = {**_CHANNELS, "img_size": tuple(patch_zyx), **config}
    network = UNETR(spatial_dims=3, **settings)
    for name, weight in network.named_parameters():
        if "cross_attn" in name:  # these blocks attend to a second input, which is never given
            weight.requires_grad_(False)
    return MonaiNetwork(network, _cubed(16))


def mednext(config: Mapping[str, Any], patch_zyx: SizeZYX) -> nn.Module:
    """MedNeXt."""
    from monai.networks.nets.mednext import MedNeXt

    settings = {"spatial_dims": 3, **_CHANNELS, **config}
    return MonaiNetwork(MedNeXt(**settings), _cubed(16))


def unet(config: Mapping[str, Any], patch_zyx: SizeZYX) -> nn.Module:
    """MONAI's residual U-Net."""
    from monai.networks.nets.unet import UNet

    settings: dict[str, Any] = {
        "spatial_dims": 3,
        **_CHANNELS,
        "channels": (16, 32, 64, 128, 256),
        "strides": (2, 2, 2, 2),
        "num_res_units": 2,
        **config,
    }
    return MonaiNetwork(UNet(**settings), _cubed(math.prod(settings["strides"])))


def vnet(config: Mapping[str, Any], patch_zyx: SizeZYX) -> nn.Module:
    """V-Net."""
    from monai.networks.nets.vnet import VNet

    settings = {"spatial_dims": 3, **_CHANNELS, **config}
    return MonaiNetwork(VNet(**settings), _cubed(16))


BUILDERS: dict[str, Callable[[Mapping[str, Any], SizeZYX], nn.Module]] = {
    "dynunet": dynunet,
    "mednext": mednext,
    "resenc_unet": resenc_unet,
    "segresnet": segresnet,
    "swinunetr": swinunetr,
    "unet": unet,
    "unetr": unetr,
    "vnet": vnet,
}
OUTPUT_LAYERS = {
    "dynunet": r"network\.(output_block|deep_supervision_heads\.\d|skip_layers\..*super_head)\.conv\.conv",
    "mednext": r"network\.out_\d\.conv_out",
    "resenc_unet": r"network\.heads\.\d",
    "segresnet": r"network\.conv_final\.2\.conv",
    "swinunetr": r"network\.out\.conv\.conv",
    "unet": r"network\.model\.2\.(1\.conv\.unit0\.)?conv",  # with or without residual units
    "unetr": r"network\.out\.conv\.conv",
    "vnet": r"network\.out_tr\.conv2",
}


def _cubed(side: int) -> SizeZYX:
    return (side, side, side)


def _filters(levels: int) -> list[int]:
    return [min(FILTERS * 2**level, MAX_FILTERS) for level in range(levels)]
