"""Memory of this process by Linux, or of a GPU by torch, for the benchmarks beside this file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch


def growth_mib(work: Callable[[], object]) -> float:
    """Peak memory of this process during `work`, beyond what it held before."""
    cpu = torch.device("cpu")
    restart_peak(cpu)
    before = held_mib(cpu)
    work()
    return peak_mib(cpu) - before


def restart_peak(device: torch.device) -> None:
    """Reset the peak to the memory held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def held_mib(device: torch.device) -> float:
    """Memory held now."""
    return torch.cuda.memory_allocated() / 2**20 if device.type == "cuda" else _status_mib("VmRSS")


def peak_mib(device: torch.device) -> float:
    """Peak since `restart_peak`."""
    return torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else _status_mib("VmHWM")


def _status_mib(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return next(float(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(f"{name}:"))
