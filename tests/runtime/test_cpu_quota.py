from __future__ import annotations

from pathlib import Path

import pytest

from hepar.runtime import device
from hepar.runtime.cpu_quota import cpu_quota


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def membership(folder: Path, *lines: str) -> Path:
    path = folder / "cgroup"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_v2_the_least_of_the_groups_around_the_process_counts(tmp_path: Path) -> None:
    group(tmp_path / "fs" / "pod", cpu__max="150000 100000")
    group(tmp_path / "fs" / "pod" / "container", cpu__max="400000 100000")
    assert cpu_quota(membership(tmp_path, "0::/pod/container"), tmp_path / "fs") == 1.5


def test_v2_max_is_no_limit(tmp_path: Path) -> None:
    group(tmp_path / "fs", cpu__max="max 100000")
    assert cpu_quota(membership(tmp_path, "0::/"), tmp_path / "fs") is None


def test_v1_quota_of_the_cpu_controller(tmp_path: Path) -> None:
    group(tmp_path / "fs" / "cpu" / "a", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    group(tmp_path / "fs" / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    lines = ("4:memory:/b", "3:cpu,cpuacct:/a", "0::/")
    assert cpu_quota(membership(tmp_path, *lines), tmp_path / "fs") == 0.5


def test_a_path_of_the_host_falls_back_to_the_containers_own_group(tmp_path: Path) -> None:
    group(tmp_path / "fs" / "cpu", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    assert cpu_quota(membership(tmp_path, "3:cpu,cpuacct:/docker/0123abcd"), tmp_path / "fs") == 2


def test_without_cgroups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "missing", tmp_path) is None


@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (1.0, 1), (1.2, 2), (64.0, 4), (None, 4)])
def test_cores_are_within_the_quota(monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int) -> None:
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(device, "cpu_quota", lambda: quota)
    assert device.available_cores() == cores
