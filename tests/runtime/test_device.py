"""The layout of tensors by device, and freed memory."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hepar.runtime.device import memory_format


@pytest.mark.parametrize(
    ("device", "layout"),
    [("cpu", torch.channels_last_3d), ("cuda", torch.contiguous_format), ("cuda:1", torch.contiguous_format)],
)
def test_tensors_are_channels_last_on_a_cpu_alone(device: str, layout: torch.memory_format) -> None:
    assert memory_format(torch.device(device)) == layout


FREED = """
import sys
from pathlib import Path
import torch
from hepar.inference.prediction import load_ensemble
from hepar.params import load_params
from hepar.runtime import device
from tests.toy_model import write_model

def mib():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) / 1024

device.use_threads(1)
device.LARGE_NETWORK = int(sys.argv[1])
write_model(Path(sys.argv[2]), load_params(Path("params/tiny.yaml")))
load_ensemble(Path(sys.argv[2]), torch.device("cpu"))
before = mib()
blocks = [torch.ones(2**22) for _ in range(20)]  # of 16 MiB
held = mib()
last = torch.ones(2**8)
del blocks
print(held - before, mib() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory by rules of its own")
@pytest.mark.parametrize(("large_from", "kept"), [(0, False), (10**9, True)], ids=["large", "small"])
def test_the_memory_that_a_large_network_has_freed_goes_back(large_from: int, kept: bool, tmp_path: Path) -> None:
    """A small network keeps it for its next step."""
    command = [sys.executable, "-c", FREED, str(large_from), str(tmp_path / "model")]
    held_mib, left_mib = map(float, subprocess.check_output(command, text=True, cwd=Path(__file__).parents[2]).split())
    assert held_mib == pytest.approx(320, rel=0.1)
    assert (left_mib > 0.9 * held_mib) == kept
    assert (left_mib < 0.1 * held_mib) == (not kept)
