"""The CPU quota of this process's control group (cgroup), which the number of cores does not show.

A container with `--cpus 1` on a machine of 64 cores may run on all of them, for one core's time in all. Formats as in
the Linux kernel's documentation of cgroup v1 (`cpu.cfs_quota_us`) and v2 (`cpu.max`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MEMBERSHIP, HIERARCHIES = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
CONTROLLER = "cpu"


def cpu_quota(membership: Path = MEMBERSHIP, hierarchies: Path = HIERARCHIES) -> float | None:
    """The cores' time that this process may use, as a number of cores: the least of its groups and those around them.

    None without a limit, and where the kernel has no cgroups. `membership` lists the groups of the process,
    `hierarchies` is where they are mounted.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    limits = [limit for line in lines for folder in _folders(line, hierarchies) if (limit := _limit(folder))]
    return min(limits, default=None)


def _folders(line: str, hierarchies: Path) -> Iterator[Path]:
    """The folders of a group and of those around it, from a line `NUMBER:CONTROLLERS:PATH`; v2 names no controller.

    In a container the path may be the host's, which is not mounted there; the container's own group is then the root.
    """
    _, controllers, path = line.split(":", maxsplit=2)
    if controllers and CONTROLLER not in controllers.split(","):
        return
    root = hierarchies / CONTROLLER if controllers else hierarchies
    group = PurePosixPath(path.lstrip("/"))
    for name in (group, *group.parents):
        yield root / name


def _limit(folder: Path) -> float | None:
    """The quota of one group as a number of cores; None without one."""
    try:
        if (v2 := folder / "cpu.max").is_file():
            quota, period = v2.read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such group, or "max": no limit
        return None
