"""The layout of tensors by device."""

from __future__ import annotations

import pytest
import torch

from hepar.runtime.device import memory_format


@pytest.mark.parametrize(
    ("device", "layout"),
    [("cpu", torch.channels_last_3d), ("cuda", torch.contiguous_format), ("cuda:1", torch.contiguous_format)],
)
def test_tensors_are_channels_last_on_a_cpu_alone(device: str, layout: torch.memory_format) -> None:
    assert memory_format(torch.device(device)) == layout
