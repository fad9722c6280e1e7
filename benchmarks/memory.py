"""The memory of a process as Linux counts it, or of a GPU as torch does, for the benchmarks beside this file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch


def growth_mib(work: Callable[[], object]) -> float:
    """By how much the memory of this process grows at most while it works."""
    cpu = torch.device("cpu")
    restart_peak(cpu)
    before = held_mib(cpu)
    work()
    return peak_mib(cpu) - before


def restart_peak(device: torch.device) -> None:
    """From here on the peak is counted."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def held_mib(device: torch.device) -> float:
    return torch.cuda.memory_allocated() / 2**20 if device.type == "cuda" else _status_mib("VmRSS")


def peak_mib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else _status_mib("VmHWM")


def _status_mib(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return next(float(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(f"{name}:"))
