"""The memory of a process as Linux counts it, for the benchmarks beside this file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def growth_mib(work: Callable[[], object]) -> float:
    """By how much the resident memory of this process grows at most while it works."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    before = _status_mib("VmRSS")
    work()
    return _status_mib("VmHWM") - before


def _status_mib(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return next(float(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(f"{name}:"))
