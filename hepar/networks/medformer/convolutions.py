"""MedFormer's convolutional blocks. Shape suffixes as in `network.py`."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from hepar.networks.medformer.config import Triple
from hepar.networks.medformer.operations import (
    conv,
    depthwise_conv,
    instance_norm,
    is_sparing,
    mean_over_space,
    pointwise_conv,
    upsample,
)


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

    That one reads the same normed input as the first convolution, so both are computed as one. With the map of a skip
    connection the input is joined to it first. No name holds the joined map: it is the largest of a network, and freed
    as soon as it is normed.
    """

    def __init__(self, inputs: int, outputs: int, kernel: Triple, activation: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = PreActConv(inputs, outputs, kernel, activation())
        self.conv2 = PreActConv(outputs, outputs, kernel, activation())
        self.shortcut = PreActConv(inputs, outputs, kernel, activation()) if inputs != outputs else nn.Identity()

    def forward(self, x_bcdhw: Tensor, skip_bcdhw: Tensor | None = None) -> Tensor:
        if not isinstance(self.shortcut, PreActConv):
            x_bcdhw = joined(x_bcdhw, skip_bcdhw)
            return self.conv2.conv(self.conv2.activated(self.conv1(x_bcdhw))) + x_bcdhw  # type: ignore[no-any-return]
        if skip_bcdhw is not None and is_sparing(skip_bcdhw):
            y_bcdhw = self.conv2.conv(self.conv2.activated(self._of_parts(self.conv1.conv, x_bcdhw, skip_bcdhw)))
            return self._of_parts(self.shortcut.conv, x_bcdhw, skip_bcdhw, y_bcdhw)
        weight = torch.cat([self.conv1.conv.weight, self.shortcut.conv.weight])
        both_bcdhw = conv(self.conv1.activated(joined(x_bcdhw, skip_bcdhw)), weight)
        # split along the last axis in memory, so that the gradients are concatenated there
        first_bcdhw, shortcut_bcdhw = (part.movedim(-1, 1) for part in both_bcdhw.movedim(1, -1).chunk(2, dim=-1))
        return self.conv2(first_bcdhw) + shortcut_bcdhw  # type: ignore[no-any-return]

    def _of_parts(
        self, convolution: nn.Conv3d, low_bcdhw: Tensor, skip_bcdhw: Tensor, sum_bcdhw: Tensor | None = None
    ) -> Tensor:
        """The convolution of the joined map, normed, a part of its channels after the other; added to `sum_bcdhw`.

        So neither the joined map nor its norm has to be held.
        """
        parts = [*low_bcdhw.split(skip_bcdhw.shape[1], dim=1), skip_bcdhw]
        weights = convolution.weight.split([part.shape[1] for part in parts], dim=1)
        for part_bcdhw, weight in zip(parts, weights, strict=True):
            own_bcdhw = part_bcdhw if part_bcdhw is skip_bcdhw else upsample(part_bcdhw, skip_bcdhw.shape[2:])
            own_bcdhw = self.conv1.activated(own_bcdhw)
            own_bcdhw = conv(own_bcdhw, weight)
            sum_bcdhw = own_bcdhw if sum_bcdhw is None else sum_bcdhw.add_(own_bcdhw)
            del own_bcdhw  # or it would be held while those of the next channels are made
        assert sum_bcdhw is not None
        return sum_bcdhw


def joined(low_bcdhw: Tensor, skip_bcdhw: Tensor | None) -> Tensor:
    """A map upsampled to the grid of a skip connection, followed by its channels; without one the map itself."""
    if skip_bcdhw is None:
        return low_bcdhw
    parts = (upsample(low_bcdhw, skip_bcdhw.shape[2:]), skip_bcdhw)
    return torch.cat([part.movedim(1, -1) for part in parts], dim=-1).movedim(-1, 1)  # along the last axis in memory


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
        gate_bc = torch.sigmoid(self.expand(self.activation(self.reduce(mean_over_space(x_bcdhw)))))
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


class PatchMerging(nn.Module):
    """Downsamples by stacking the voxels of each stride cell as channels, then projects."""

    def __init__(self, inputs: int, outputs: int, stride: Triple, kernel: Triple) -> None:
        super().__init__()
        self.stride = stride
        self.norm = InstanceNorm(eps=1e-5)
        self.project = SeparableConv(inputs * prod(stride), outputs, kernel)

    def forward(self, x_bcdhw: Tensor) -> Tensor:
        return self.project(self.norm(self._stacked(x_bcdhw)))  # type: ignore[no-any-return]

    def _stacked(self, x_bcdhw: Tensor) -> Tensor:
        sd, sh, sw = self.stride
        cells = x_bcdhw.movedim(1, -1).unflatten(3, (-1, sw)).unflatten(2, (-1, sh)).unflatten(1, (-1, sd))
        stacked_bdhwc = cells.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)  # from b d sd h sh w sw c
        return stacked_bdhwc.movedim(-1, 1)  # type: ignore[no-any-return]
