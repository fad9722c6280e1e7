"""How this process uses its machine."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import current_thread, main_thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch  # takes seconds, and not every process that counts its cores computes

SHUTDOWN_SECONDS = 120  # that a training has to save a checkpoint after SIGTERM
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)


def use_threads(threads: int) -> None:
    """Let torch use this many CPU threads, 0 for every core this process may run on, and keep freed memory.

    glibc returns large freed blocks to the kernel at once, and a network's activations are such blocks: keeping them
    saves the page faults of every step (a small MedFormer trains about a fifth faster).
    """
    import torch

    torch.set_num_threads(threads or available_cores())
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def alone() -> None:
    """Let torch compute in the calling thread alone.

    Where OpenMP has more threads than cores it stops waiting busily: a training whose threads cut patches ahead, each
    with a team of its own, took 1.7 times as long for a step on two cores.
    """
    import torch

    torch.get_num_threads()  # by which a new thread takes the process's number, which it does once
    torch_cpu = str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")
    for library, function in ((None, "omp_set_num_threads"), (torch_cpu, "MKL_Set_Num_Threads_Local")):
        with suppress(OSError, AttributeError):  # another platform, or a torch without MKL
            getattr(ctypes.CDLL(library), function)(1)


def available_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Half precision where `precision` is bf16 or fp16; single precision for fp32."""
    import torch

    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, types[precision], enabled=precision != "fp32")


@contextmanager
def sigterm(hand_on: Callable[[], None] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM came, as the scheduler of a cluster sends it some time before it kills; for the main thread.

    `hand_on` is called as it comes.
    """
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        came.append(number)
        hand_on()

    if current_thread() is not main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
