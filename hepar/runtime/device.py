"""The device, threads and signals of this process."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import current_thread, main_thread
from typing import TYPE_CHECKING

from hepar.runtime.cpu_quota import cpu_quota

if TYPE_CHECKING:
    import torch  # takes seconds to import, which a process that only counts its cores need not wait for

SHUTDOWN_SECONDS = 120  # in which a training has to save a checkpoint after SIGTERM
LARGE_NETWORK = 10_000_000  # parameters
_KEPT_BYTES, _LARGE_BYTES = 64 * 2**20, 4 * 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)


def use_threads(threads: int) -> None:
    """Let torch use this many CPU threads (0: one per available core), and keep freed memory in the process.

    glibc returns large freed blocks, such as a network's activations, to the kernel at once. Keeping them saves the
    page faults of every step: a small MedFormer trains about a fifth faster. Blocks of more than `_KEPT_BYTES` are
    returned.
    """
    import torch

    torch.set_num_threads(threads or available_cores())
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_blocks() -> None:
    """Return freed blocks of more than `_LARGE_BYTES` to the kernel from now on, for a large network.

    Kept ones do not fit one another: a window of the published network, whose maps take 0.6 GiB, made the process grow
    by 1.1 GiB, most of which it kept. The page faults are few beside its multiplications.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def use_one_thread() -> None:
    """Let torch compute single-threaded in the calling thread.

    OpenMP stops spinning when there are more threads than cores: with prefetching threads that each had a team of
    their own, a training step on two cores took 1.7 times as long.
    """
    import torch

    torch.get_num_threads()  # a new thread takes over the process's number once, on this call
    torch_cpu = str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")
    for library, function in ((None, "omp_set_num_threads"), (torch_cpu, "MKL_Set_Num_Threads_Local")):
        with suppress(OSError, AttributeError):  # another platform, or torch without MKL
            getattr(ctypes.CDLL(library), function)(1)


def available_cores() -> int:
    """Number of cores that this process may use: those it may run on, within the CPU quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def memory_format(device: torch.device) -> torch.memory_format:
    """The layout in which networks run fastest: channels last on a CPU.

    On a GPU torch's depthwise convolution is slow in that layout, above all backwards.
    """
    import torch

    return torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format


def pick_device() -> torch.device:
    """The first CUDA device if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to half precision for bf16 and fp16; disabled for fp32.

    Made where gradients are off, as `add_windows` does with a precision of its own, it keeps no cast weights: a network
    reads each once a window, and they would take memory. Made where they are on, it keeps them until it is left, also
    for what runs without gradients inside; so do the validation and the choice of an operating point in a training.
    """
    import torch

    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    half = precision != "fp32"
    return torch.autocast(device.type, types[precision], enabled=half, cache_enabled=torch.is_grad_enabled())


def is_large(network: torch.nn.Module) -> bool:
    """Whether a network is so large that it is predicted in half precision and with little memory."""
    return sum(weight.numel() for weight in network.parameters()) >= LARGE_NETWORK


def inference_precision(network: torch.nn.Module, device: torch.device) -> str:
    """The precision to predict with: bf16 for large networks where the device computes in it, else fp32.

    With fewer parameters than `LARGE_NETWORK` bf16 is hardly faster. Of CPUs those with AVX-512 BF16 or AMX compute in
    it; others emulate it slowly.
    """
    import torch

    if not is_large(network):
        return "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


@contextmanager
def catch_sigterm(on_signal: Callable[[], None] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Catch SIGTERM, which a cluster's scheduler sends some time before it kills; yields whether it has arrived.

    Calls `on_signal` when it arrives. Python handles signals in the main thread only: elsewhere it never arrives.
    """
    arrived: list[int] = []

    def handle(number: int, frame: object) -> None:
        arrived.append(number)
        on_signal()

    if current_thread() is not main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield lambda: bool(arrived)
    finally:
        signal.signal(signal.SIGTERM, before)
