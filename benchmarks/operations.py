"""MedFormer's hand-made operations on the CPU against torch's own, forwards and backwards, in one run.

`python benchmarks/operations.py` prints, for feature maps of the small and of the published setting, milliseconds of a
forward and backward pass of both and their ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hepar.networks.medformer import operations
from hepar.runtime.device import use_threads

MAPS = ((2, 8, 32, 48, 48), (2, 24, 32, 48, 48), (2, 64, 16, 24, 24), (2, 256, 4, 6, 6), (1, 512, 16, 16, 16))
REPEATS = 10
Operation = Callable[[Tensor], Tensor]


def pairs(channels: int, size: torch.Size) -> dict[str, tuple[Operation, Operation]]:
    """Ours and torch's of each operation."""
    kernel = torch.randn(channels, 1, 3, 3, 3, requires_grad=True)
    mixing = torch.randn(channels, channels, 1, 1, 1, requires_grad=True)
    double = torch.Size(2 * side for side in size)
    return {
        "instance norm": (
            lambda x: operations.instance_norm(x, 1e-5),
            lambda x: F.group_norm(x, channels, eps=1e-5),
        ),
        "depthwise conv": (
            lambda x: operations.depthwise_conv(x, kernel),
            lambda x: F.conv3d(x, kernel, padding=1, groups=channels),
        ),
        "pointwise conv": (lambda x: operations.pointwise_conv(x, mixing, None), lambda x: F.conv3d(x, mixing)),
        "upsampling, joined": (
            lambda x: joined(operations.upsample(x, double)),
            lambda x: joined(F.interpolate(x, size=double, mode="trilinear", align_corners=True)),
        ),
    }


def joined(x_bcdhw: Tensor) -> Tensor:
    """As a decoder joins what comes from below to a skip connection."""
    return torch.cat([x_bcdhw.movedim(1, -1), torch.zeros_like(x_bcdhw).movedim(1, -1)], dim=-1).movedim(-1, 1)


def milliseconds(operation: Operation, x_bcdhw: Tensor) -> float:
    """The fastest of some forward and backward passes."""
    x_bcdhw = x_bcdhw.clone().requires_grad_()
    upstream = torch.randn_like(operation(x_bcdhw).detach())
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        operation(x_bcdhw).backward(upstream)
        taken.append(time.perf_counter() - began)
    return min(taken) * 1e3


def main() -> None:
    use_threads(0)
    print(f"{'feature map b c d h w':24} {'operation':18} {'torch':>10} {'hepar':>10} {'ratio':>7}")
    for shape in MAPS:
        x_bcdhw = torch.randn(shape).to(memory_format=torch.channels_last_3d)
        for name, (ours, torchs) in pairs(shape[1], x_bcdhw.shape[2:]).items():
            slow, fast = milliseconds(torchs, x_bcdhw), milliseconds(ours, x_bcdhw)
            print(f"{shape!s:24} {name:18} {slow:8.2f}ms {fast:8.2f}ms {slow / fast:7.2f}")


if __name__ == "__main__":
    main()
