"""Instance norm on the CPU: the gradient that MedFormer takes against torch's own group norm, in one run.

Prints, for the feature maps of a small MedFormer, seconds of forward and backward of both and their ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hepar.compute import use_threads
from hepar.networks.medformer.network import InstanceNorm

SHAPES = ((2, 8, 32, 64, 64), (2, 24, 32, 64, 64), (2, 64, 16, 32, 32), (2, 256, 8, 16, 16))
REPEATS = 10


def seconds(norm: Callable[[Tensor], Tensor], x_bcdhw: Tensor) -> float:
    """The fastest of some forward and backward passes."""
    x_bcdhw = x_bcdhw.clone().requires_grad_()
    gradient = torch.randn_like(x_bcdhw)
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        norm(x_bcdhw).backward(gradient)
        taken.append(time.perf_counter() - began)
    return min(taken)


def main() -> None:
    use_threads(0)
    print(f"{'shape b c d h w':24} {'group norm':>12} {'hepar':>12} {'ratio':>7}")
    for shape in SHAPES:
        x_bcdhw = torch.randn(shape).to(memory_format=torch.channels_last_3d)
        channels = shape[1]
        plain = seconds(lambda x, c=channels: F.group_norm(x, c, eps=1e-5), x_bcdhw)
        ours = seconds(InstanceNorm(channels, 1e-5), x_bcdhw)
        print(f"{shape!s:24} {plain * 1e3:10.2f}ms {ours * 1e3:10.2f}ms {plain / ours:7.2f}")


if __name__ == "__main__":
    main()
