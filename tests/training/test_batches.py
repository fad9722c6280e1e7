"""Batches: prefetching changes none of them, and the wait for them is measured."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toy_pool import toy_pool
from toy_training import CPU, TOYS, toy_settings, toy_trainer

from hepar.params import Params
from hepar.training.batches import LoaderWait, batches


def test_prefetching_changes_no_batch(tiny: Params, tmp_path: Path) -> None:
    trainer = toy_trainer(toy_pool(tmp_path / "pool", TOYS), tiny, tmp_path / "checkpoints", steps=8)
    direct, prefetched = (
        list(batches(trainer.sampler, 2, toy_settings(tiny, steps=8, workers=workers), CPU)) for workers in (0, 2)
    )
    assert len(direct) == len(prefetched) == 6
    for one, other in zip(direct, prefetched, strict=True):
        assert torch.equal(one.image_bcdhw, other.image_bcdhw)
        assert torch.equal(one.target_brdhw, other.target_brdhw)
        assert torch.equal(one.weight_brdhw, other.weight_brdhw)


def test_a_prefetching_thread_starts_no_other_threads() -> None:
    script = """
import os, threading
import torch
import torch.nn.functional as F
from hepar.runtime.device import use_one_thread, use_threads

def work():
    F.conv3d(torch.ones(1, 4, 16, 32, 32), torch.ones(4, 4, 3, 3, 3))
    F.affine_grid(torch.eye(3, 4)[None], [1, 1, 32, 48, 48], align_corners=False)
    threads.append(len(os.listdir("/proc/self/task")))

threads = []
use_threads(2)
work()
for begin in (use_one_thread, lambda: None):
    thread = threading.Thread(target=lambda: (begin(), work()))
    thread.start()
    thread.join()
print(*threads)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    main, limited, unlimited = map(int, done.stdout.split())
    assert limited == main + 1
    assert unlimited > limited  # otherwise this test would prove nothing


def test_the_wait_is_a_share_of_the_time() -> None:
    wait = LoaderWait()
    with wait.measure():
        time.sleep(0.05)
    time.sleep(0.05)
    assert wait.share == pytest.approx(0.5, abs=0.2)
