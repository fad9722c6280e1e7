"""Operations of MedFormer that torch runs slowly on a CPU in channels_last_3d memory, above all backwards.

On a CPU they are composed of faster kernels, with the same results; on a GPU, compiled or exported they are torch's
own. A GPU keeps the contiguous layout: in the other, torch's depthwise convolution is slow. Shape suffixes as in
`network.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

NARROW_CHANNELS = 16  # with fewer, torch's gradient of a norm does not fill a vector register
WIDE_CHANNELS = 80  # from here on torch computes the gradient of a kernel faster in 2-D than in 3-D
SMALL_SCAN = 20480  # channels times rows up to which torch uses a slow kernel for a batch of one
SPARED_VALUES = 2**25  # in a map, from which on a prediction saves memory instead of time
FEW_VOXELS = 1024  # with fewer, torch's group norm is many times slower than its batch norm


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def is_sparing(x_bcdhw: Tensor) -> bool:
    """Whether larger maps than this one are not to be made of it: in a prediction on a CPU, if it is large itself."""
    return _on_cpu(x_bcdhw) and not torch.is_grad_enabled() and x_bcdhw.numel() >= SPARED_VALUES


def _needs_own_gradient(x: Tensor) -> bool:
    """Whether the backward pass is the one below."""
    return _on_cpu(x) and torch.is_grad_enabled() and x.requires_grad


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The type to compute in: the tensor's, or that of autocast."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _channels_last(x_bcdhw: Tensor) -> Tensor:
    """The same values in channels_last_3d memory.

    In a batch of one the batch stride is arbitrary, but torch's kernels infer the memory format from it.
    """
    x_bcdhw = x_bcdhw.contiguous(memory_format=torch.channels_last_3d)
    if x_bcdhw.stride(0) == x_bcdhw[0].numel():
        return x_bcdhw
    return x_bcdhw.as_strided(x_bcdhw.shape, (x_bcdhw[0].numel(), *x_bcdhw.stride()[1:]))


def _apply(function: Callable[..., Any], *inputs: Any) -> Tensor:
    """Apply an autograd function, with autocast off, to tensors cast to the type that autocast would use."""
    inputs = tuple(value.to(_compute_dtype(value)) if isinstance(value, Tensor) else value for value in inputs)
    with torch.autocast("cpu", enabled=False):
        return function(*inputs)  # type: ignore[no-any-return]


def conv(x_bcdhw: Tensor, weight_ocdhw: Tensor) -> Tensor:
    """Convolve with a kernel of odd sides; the grid stays.

    A small batch of one, for which torch uses a slow kernel, is convolved slice by slice in 2-D, with the slices that
    the kernel covers as channels. In bfloat16 torch's gradient of the kernel is wrong for two slices.
    """
    if _on_cpu(x_bcdhw) and len(x_bcdhw) == 1 and x_bcdhw[0, :, :, :, 0].numel() <= SMALL_SCAN:
        depth, *padding = _same_padding(weight_ocdhw)
        covered = F.pad(x_bcdhw[0], (0, 0, 0, 0, depth, depth)).unfold(1, 2 * depth + 1, 1)  # c d h w, covered slices
        slices = covered.permute(1, 0, 4, 2, 3).flatten(1, 2)
        y_dohw = F.conv2d(slices, weight_ocdhw.flatten(1, 2), padding=padding)
        return y_dohw.movedim(0, 1).unsqueeze(0)
    if _needs_own_gradient(x_bcdhw) and (
        x_bcdhw.shape[1] >= WIDE_CHANNELS or _compute_dtype(x_bcdhw) == torch.bfloat16
    ):
        return _apply(_Conv.apply, x_bcdhw, weight_ocdhw, 1)
    return _conv(x_bcdhw, weight_ocdhw, 1)


def pointwise_conv(x_bcdhw: Tensor, weight_oc111: Tensor, bias_o: Tensor | None) -> Tensor:
    """Convolve with a 1×1×1 kernel, slice by slice in 2-D, for which torch has a faster kernel."""
    if not _on_cpu(x_bcdhw):
        return F.conv3d(x_bcdhw, weight_oc111, bias_o)
    slices = x_bcdhw.movedim(1, -1).flatten(0, 1).movedim(-1, 1)
    y_nohw = F.conv2d(slices, weight_oc111.squeeze(-1), bias_o)
    return y_nohw.unflatten(0, (len(x_bcdhw), -1)).movedim(1, 2)  # type: ignore[no-any-return]


def depthwise_conv(x_bcdhw: Tensor, weight_c1dhw: Tensor) -> Tensor:
    """Convolve each channel with its own kernel of odd sides; the grid stays."""
    if _needs_own_gradient(x_bcdhw):
        return _apply(_Conv.apply, x_bcdhw, weight_c1dhw, len(weight_c1dhw))
    return _conv(x_bcdhw if _on_cpu(x_bcdhw) else x_bcdhw.contiguous(), weight_c1dhw, len(weight_c1dhw))


def mean_over_space(x_bcdhw: Tensor) -> Tensor:
    """The mean of each channel, bc; on a CPU such that its gradient is in channels_last_3d memory too."""
    return x_bcdhw.movedim(1, -1).flatten(1, 3).mean(dim=1) if _on_cpu(x_bcdhw) else x_bcdhw.mean(dim=(2, 3, 4))


def _same_padding(weight_ocdhw: Tensor) -> list[int]:
    return [side // 2 for side in weight_ocdhw.shape[2:]]


def _conv(x_bcdhw: Tensor, weight_ocdhw: Tensor, groups: int) -> Tensor:
    return F.conv3d(x_bcdhw, weight_ocdhw, padding=_same_padding(weight_ocdhw), groups=groups)


class _Conv(torch.autograd.Function):
    """The gradient of the input is a convolution with the mirrored kernel; that of the kernel is taken in 2-D."""

    @staticmethod
    def forward(ctx: Any, x_bcdhw: Tensor, weight_ocdhw: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(x_bcdhw, weight_ocdhw)
        ctx.groups = groups
        return _conv(x_bcdhw, weight_ocdhw, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x_bcdhw, weight_ocdhw = ctx.saved_tensors
        gradient_bodhw = _channels_last(gradients[0])
        weight_gradient_ocdhw = torch.zeros_like(
            weight_ocdhw, dtype=torch.promote_types(weight_ocdhw.dtype, torch.float32)
        )
        for x_cdhw, gradient_odhw in zip(x_bcdhw, gradient_bodhw, strict=True):
            _add_kernel_gradient(
                weight_gradient_ocdhw, x_cdhw.transpose(0, 1), gradient_odhw.transpose(0, 1), ctx.groups
            )
        mirrored = weight_ocdhw.flip(2, 3, 4)
        if ctx.groups == 1:
            mirrored = mirrored.transpose(0, 1)
        return _conv(gradient_bodhw, mirrored, ctx.groups), weight_gradient_ocdhw.to(weight_ocdhw.dtype), None


def _add_kernel_gradient(sum_ocdhw: Tensor, x_dchw: Tensor, gradient_dohw: Tensor, groups: int) -> None:
    """Add the gradient of a kernel on one scan, plane by plane of the kernel."""
    depth, planes = len(x_dchw), sum_ocdhw.shape[2]
    _, *padding = _same_padding(sum_ocdhw)
    for plane in range(planes):
        shift = plane - planes // 2
        begin, end = max(0, -shift), min(depth, depth - shift)
        if begin >= end:
            continue
        _, plane_gradient_ochw, _ = torch.ops.aten.convolution_backward(
            gradient_dohw[begin:end],
            x_dchw[begin + shift : end + shift],
            sum_ocdhw[:, :, plane].to(x_dchw.dtype),  # only the shape is used
            None,
            [1, 1],
            padding,
            [1, 1],
            False,
            [0, 0],
            groups,
            [False, True, False],
        )
        sum_ocdhw[:, :, plane] += plane_gradient_ochw


def instance_norm(x_bcdhw: Tensor, eps: float) -> Tensor:
    """Instance normalisation without affine parameters that keeps channels_last_3d memory.

    `torch.nn.InstanceNorm3d` copies such a tensor to the contiguous layout and back. On a CPU a group norm with one
    channel per group gives the same result in either layout.
    """
    if _needs_own_gradient(x_bcdhw):
        return _InstanceNorm.apply(x_bcdhw, eps)  # type: ignore[no-any-return, no-untyped-call]
    if _on_cpu(x_bcdhw):
        return _norm_with_statistics(_channels_last(x_bcdhw), eps)[0]
    if x_bcdhw.device.type == "cuda":
        return F.instance_norm(x_bcdhw, eps=eps)
    return F.group_norm(x_bcdhw, x_bcdhw.shape[1], eps=eps)


def _norm_with_statistics(x_bcdhw: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The normed image, and mean and inverse standard deviation of each channel."""
    batch, channels = x_bcdhw.shape[:2]
    voxels = x_bcdhw[0, 0].numel()
    if voxels >= FEW_VOXELS:
        return torch.ops.aten.native_group_norm(  # type: ignore[no-any-return]
            x_bcdhw, None, None, batch, channels, voxels, channels, eps
        )
    return _batch_norm_each(x_bcdhw, eps)


def _batch_norm_each(x_bcdhw: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `_norm_with_statistics`, by a batch norm of each scan."""
    scans = (torch.native_batch_norm(x, None, None, None, None, True, 0.0, eps) for x in x_bcdhw.split(1))
    y_bcdhw, mean_bc, inverse_std_bc = zip(*scans, strict=True)
    return torch.cat(y_bcdhw), torch.stack(mean_bc), torch.stack(inverse_std_bc)


class _InstanceNorm(torch.autograd.Function):
    """A group norm that borrows the backward pass of a batch norm of each scan."""

    @staticmethod
    def forward(ctx: Any, x_bcdhw: Tensor, eps: float) -> Tensor:
        x_bcdhw = _channels_last(x_bcdhw)
        y_bcdhw, mean_bc, inverse_std_bc = _norm_with_statistics(x_bcdhw, eps)
        ctx.save_for_backward(x_bcdhw, mean_bc, inverse_std_bc)
        ctx.eps = eps
        return y_bcdhw

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        x_bcdhw, mean_bc, inverse_std_bc = ctx.saved_tensors
        gradient_bcdhw = _channels_last(gradients[0])
        if x_bcdhw.shape[1] < NARROW_CHANNELS and x_bcdhw.dtype.itemsize >= 4:  # not in half precision
            return _norm_gradient(gradient_bcdhw, x_bcdhw, mean_bc, inverse_std_bc), None
        gradients_1cdhw = [
            torch.ops.aten.native_batch_norm_backward(
                gradient_1cdhw, x_1cdhw, None, None, None, mean_c, inverse_std_c, True, ctx.eps, [True, False, False]
            )[0]
            for gradient_1cdhw, x_1cdhw, mean_c, inverse_std_c in zip(
                gradient_bcdhw.split(1), x_bcdhw.split(1), mean_bc, inverse_std_bc, strict=True
            )
        ]
        return gradients_1cdhw[0] if len(gradients_1cdhw) == 1 else torch.cat(gradients_1cdhw), None


def _norm_gradient(gradient_bcdhw: Tensor, x_bcdhw: Tensor, mean_bc: Tensor, inverse_std_bc: Tensor) -> Tensor:
    """The gradient of an instance norm of few channels, with many voxels in a row to fill vector registers.

    With y the normed x and means over the voxels of a channel: (g - mean(g) - y mean(g y)) / std.
    """
    batch, channels, *space = x_bcdhw.shape
    voxels = x_bcdhw[0, 0].numel()
    voxels_per_row = next(n for n in (64, 32, 16, 8, 4, 2, 1) if voxels % n == 0)

    def rows(t_bcdhw: Tensor) -> Tensor:
        return t_bcdhw.permute(0, 2, 3, 4, 1).reshape(batch, voxels // voxels_per_row, voxels_per_row * channels)

    def average(rows_brc: Tensor) -> Tensor:
        return rows_brc.sum(1).view(batch, voxels_per_row, channels).sum(1) / voxels

    def repeated(value_bc: Tensor) -> Tensor:
        return value_bc.repeat(1, voxels_per_row)[:, None]

    g_brc = rows(gradient_bcdhw)
    y_brc = torch.addcmul(repeated(-mean_bc * inverse_std_bc), rows(x_bcdhw), repeated(inverse_std_bc))
    slope_bc, offset_bc = average(g_brc * y_brc), average(g_brc)
    out_brc = y_brc.mul_(repeated(-slope_bc * inverse_std_bc)).add_(repeated(-offset_bc * inverse_std_bc))
    out_brc.addcmul_(g_brc, repeated(inverse_std_bc))
    return out_brc.view(batch, *space, channels).permute(0, 4, 1, 2, 3)


def upsample(x_bcdhw: Tensor, size: torch.Size) -> Tensor:
    """Trilinear interpolation to `size`, with aligned corners."""
    y_bcdhw = F.interpolate(x_bcdhw, size=size, mode="trilinear", align_corners=True)
    if _needs_own_gradient(x_bcdhw) and x_bcdhw.shape[1] >= NARROW_CHANNELS:
        return _ChannelsLastGradient.apply(y_bcdhw)  # type: ignore[no-any-return, no-untyped-call]
    return y_bcdhw


class _ChannelsLastGradient(torch.autograd.Function):
    """The identity, with a dense gradient: interpolation is slow on that of a slice of concatenated channels."""

    @staticmethod
    def forward(ctx: Any, x_bcdhw: Tensor) -> Tensor:
        return x_bcdhw.view_as(x_bcdhw)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _channels_last(gradients[0])
