"""ResEnc U-Net: a U-Net with a deep residual encoder and a light decoder, from MONAI's blocks.

The network of nnU-Net's residual presets (Isensee et al., nnU-Net revisited, MICCAI 2024): blocks of two convolutions
with a residual connection in the encoder, most of them on the coarse levels; one convolution per level in the decoder,
after a transposed convolution and the concatenation of the skip. Instance norm, leaky ReLU, deep supervision.

Tensors: b batch, c channels, r structures, d h w voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from monai.networks.blocks.convolutions import Convolution
from monai.networks.blocks.dynunet_block import UnetResBlock
from torch import Tensor, cat, nn
from torch.nn.functional import interpolate

NORM = ("INSTANCE", {"affine": True})
ACTIVATION = ("leakyrelu", {"inplace": True, "negative_slope": 0.01})
SUPERVISED = 3  # levels of deep supervision, the full resolution included


class ResEncUNet(nn.Module):
    """ResEnc U-Net. `strides` lead from each level to the next; `filters` and `blocks` have one entry more."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        strides: Sequence[Sequence[int]],
        filters: Sequence[int],
        blocks: Sequence[int],
    ) -> None:
        """Raises ValueError if the lengths do not match."""
        super().__init__()
        if not len(filters) == len(blocks) == len(strides) + 1:
            raise ValueError(
                f"filters and blocks must have one entry per level, which are {len(strides) + 1} for"
                f" {len(strides)} strides, but have {len(filters)} and {len(blocks)}"
            )
        self.divisor = tuple(math.prod(int(stride[axis]) for stride in strides) for axis in range(3))
        self.stem = _convolution(in_channels, filters[0])
        self.encoder = nn.ModuleList()
        before = filters[0]
        for stride, channels, number in zip([[1, 1, 1], *strides], filters, blocks, strict=True):
            further = (_residual(channels, channels, 1) for _ in range(1, number))
            self.encoder.append(nn.Sequential(_residual(before, channels, stride), *further))
            before = channels
        self.up, self.decoder, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(strides))):
            channels, (by_z, by_y, by_x) = filters[level], strides[level]
            stride_zyx = (by_z, by_y, by_x)
            self.up.append(nn.ConvTranspose3d(filters[level + 1], channels, stride_zyx, stride_zyx))
            self.decoder.append(_convolution(2 * channels, channels))
            if level < SUPERVISED:
                self.heads.append(nn.Conv3d(channels, out_channels, 1))

    def forward(self, image_bcdhw: Tensor) -> Tensor | list[Tensor]:
        """Logits brdhw; in training a list of them, full resolution first, the coarse ones interpolated to it."""
        features_bcdhw, skips = self.stem(image_bcdhw), []
        for level in self.encoder:
            features_bcdhw = level(features_bcdhw)
            skips.append(features_bcdhw)
        decoded = []
        for up, convolution, skip_bcdhw in zip(self.up, self.decoder, skips[-2::-1], strict=True):
            features_bcdhw = convolution(cat([up(features_bcdhw), skip_bcdhw], dim=1))
            decoded.append(features_bcdhw)
        if not self.training:
            full_brdhw: Tensor = self.heads[-1](decoded[-1])
            return full_brdhw
        supervised = decoded[-len(self.heads) :]
        logits = [head(maps_bcdhw) for head, maps_bcdhw in zip(self.heads, supervised, strict=True)]
        size = image_bcdhw.shape[2:]
        return [
            scale if scale.shape[2:] == size else interpolate(scale, size=size, mode="nearest")
            for scale in reversed(logits)
        ]


def _convolution(before: int, channels: int) -> nn.Module:
    module: nn.Module = Convolution(3, before, channels, kernel_size=3, norm=NORM, act=ACTIVATION, adn_ordering="NA")
    return module


def _residual(before: int, channels: int, stride: Sequence[int] | int) -> nn.Module:
    module: nn.Module = UnetResBlock(3, before, channels, kernel_size=3, stride=stride, norm_name=NORM)
    return module
