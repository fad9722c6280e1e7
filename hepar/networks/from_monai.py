"""Networks of MONAI behind the same door: settings that a name alone gives, and what a `config` changes of them.

A setting is an argument of MONAI's class. What follows from the patch (levels, strides, position embeddings) is worked
out from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from hepar.cases import STRUCTURES
from hepar.networks import strides as topology
from hepar.params import SizeZYX

IN_CHANNELS = 1
_ENDS = {"in_channels": IN_CHANNELS, "out_channels": len(STRUCTURES)}
MAX_LEVELS = 6
FILTERS, MAX_FILTERS = 32, 320


class Wrapped(nn.Module):
    """A network that tells by `divisor` what sides of a patch it takes, and lists its outputs at several scales."""

    def __init__(self, network: nn.Module, divisor: SizeZYX) -> None:
        super().__init__()
        self.network = network
        self.divisor = divisor

    def forward(self, image_bcdhw: Tensor) -> Tensor | list[Tensor]:
        """Logits b r d h w; while training with deep supervision a list of them, the full resolution first."""
        output: Tensor = self.network(image_bcdhw)
        return list(output.unbind(1)) if output.dim() == 6 else output


def dynunet(config: Mapping[str, Any], patch_zyx: SizeZYX) -> nn.Module:
    """The U-Net of nnU-Net with residual encoder; without `strides`, the first of them 1, the patch tells them."""
    from monai.networks.nets.dynunet import DynUNet  # importing monai takes seconds

    _, *strides = config.get("strides", [1, *topology.strides(patch_zyx, MAX_LEVELS - 1)])
    settings: dict[str, Any] = {
        "spatial_dims": 3,
        **_ENDS,
        "kernel_size": [[3, 3, 3]] * (len(strides) + 1),
        "strides": [[1, 1, 1], *strides],
        "upsample_kernel_size": strides,
        "filters": [min(FILTERS * 2**level, MAX_FILTERS) for level in range(len(strides) + 1)],
        "res_block": True,
        "deep_supervision": len(strides) > 2,
        "deep_supr_num": min(3, max(1, len(strides) - 1)),
        **config,
    }
    divisor = tuple(_product(stride[axis] for stride in settings["strides"]) for axis in range(3))
    return Wrapped(DynUNet(**settings), divisor)  # type: ignore[arg-type]


def segresnet(config: Mapping[str, Any], patch_zyx: SizeZYX) -> nn.Module:
    from monai.networks.nets.segresnet import SegResNet

    settings = {
        "spatial_dims": 3,
        **_ENDS,
        "init_filters": 16,
        **config,
    }
    return Wrapped(SegResNet(**settings), _cubed(2 ** (len(settings.get("blocks_down", (1, 2, 2, 4))) - 1)))


def swinunetr(config: Mapping[str, Any], patch_zyx: SizeZYX) -> nn.Module:
    from monai.networks.nets.swin_unetr import SwinUNETR

    settings = {**_ENDS, "feature_size": 24, **config}
    return Wrapped(SwinUNETR(spatial_dims=3, **settings), _cubed(32))


def unetr(config: Mapping[str, Any], patch_zyx: SizeZYX) -> nn.Module:
    """Its position embeddings are as many as the patch has tokens, so it works on patches of this size only."""
    from monai.networks.nets.unetr import UNETR

    settings = {**_ENDS, "img_size": tuple(patch_zyx), **config}
    network = UNETR(spatial_dims=3, **settings)
    for name, weight in network.named_parameters():
        if "cross_attn" in name:  # of blocks that attend to a second input, which there is none of
            weight.requires_grad_(False)
    return Wrapped(network, _cubed(16))


def mednext(config: Mapping[str, Any], patch_zyx: SizeZYX) -> nn.Module:
    from monai.networks.nets.mednext import MedNeXt

    settings = {"spatial_dims": 3, **_ENDS, **config}
    return Wrapped(MedNeXt(**settings), _cubed(16))


def unet(config: Mapping[str, Any], patch_zyx: SizeZYX) -> nn.Module:
    from monai.networks.nets.unet import UNet

    settings: dict[str, Any] = {
        "spatial_dims": 3,
        **_ENDS,
        "channels": (16, 32, 64, 128, 256),
        "strides": (2, 2, 2, 2),
        "num_res_units": 2,
        **config,
    }
    return Wrapped(UNet(**settings), _cubed(_product(settings["strides"])))


def vnet(config: Mapping[str, Any], patch_zyx: SizeZYX) -> nn.Module:
    from monai.networks.nets.vnet import VNet

    settings = {"spatial_dims": 3, **_ENDS, **config}
    return Wrapped(VNet(**settings), _cubed(16))


BUILDERS: dict[str, Callable[[Mapping[str, Any], SizeZYX], nn.Module]] = {
    "dynunet": dynunet,
    "mednext": mednext,
    "segresnet": segresnet,
    "swinunetr": swinunetr,
    "unet": unet,
    "unetr": unetr,
    "vnet": vnet,
}


def _product(values: Any) -> int:
    result = 1
    for value in values:
        result *= int(value)
    return result


def _cubed(side: int) -> SizeZYX:
    return (side, side, side)
