"""MedFormer's own CPU operations against torch's, forward and backward.

`python benchmarks/operations.py` prints milliseconds of a forward and backward pass of both, and their ratio, for
feature maps of the small and the published setting.
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
    """Each operation, ours and torch's."""
    kernel_c1dhw = torch.randn(channels, 1, 3, 3, 3, requires_grad=True)
    mixing_oc111 = torch.randn(channels, channels, 1, 1, 1, requires_grad=True)
    double_size = torch.Size(2 * side for side in size)
    return {
        "instance norm": (
            lambda x: operations.instance_norm(x, 1e-5),
            lambda x: F.group_norm(x, channels, eps=1e-5),
        ),
        "depthwise conv": (
            lambda x: operations.depthwise_conv(x, kernel_c1dhw),
            lambda x: F.conv3d(x, kernel_c1dhw, padding=1, groups=channels),
        ),
        "pointwise conv": (
            lambda x: operations.pointwise_conv(x, mixing_oc111, None),
            lambda x: F.conv3d(x, mixing_oc111),
        ),
        "upsampling and concat": (
            lambda x: concatenated(operations.upsample(x, double_size)),
            lambda x: concatenated(F.interpolate(x, size=double_size, mode="trilinear", align_corners=True)),
        ),
    }


def concatenated(x_bcdhw: Tensor) -> Tensor:
    """Concatenate with zeros along the channels, as the decoder does with a skip connection."""
    return torch.cat([x_bcdhw.movedim(1, -1), torch.zeros_like(x_bcdhw).movedim(1, -1)], dim=-1).movedim(-1, 1)


def milliseconds(operation: Operation, x_bcdhw: Tensor) -> float:
    """The fastest of `REPEATS` forward and backward passes."""
    x_bcdhw = x_bcdhw.clone().requires_grad_()
    upstream = torch.randn_like(operation(x_bcdhw).detach())
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        operation(x_bcdhw).backward(upstream)
        seconds.append(time.perf_counter() - began)
    return min(seconds) * 1e3


def main() -> None:
    use_threads(0)
    print(f"{'feature map b c d h w':24} {'operation':22} {'torch':>10} {'hepar':>10} {'ratio':>7}")
    for shape in MAPS:
        x_bcdhw = torch.randn(shape).to(memory_format=torch.channels_last_3d)
        for name, (own_operation, torch_operation) in pairs(shape[1], x_bcdhw.shape[2:]).items():
            torch_ms, own_ms = milliseconds(torch_operation, x_bcdhw), milliseconds(own_operation, x_bcdhw)
            print(f"{shape!s:24} {name:22} {torch_ms:8.2f}ms {own_ms:8.2f}ms {torch_ms / own_ms:7.2f}")


if __name__ == "__main__":
    main()
