"""Batches: prefetching changes none of them, and the wait for them is measured."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toy_pool import Toy, toy_pool
from toy_training import CPU, PATCH, TOYS, toy_settings, toy_trainer

from hepar.cases import TUMOUR, LabelState, Modality
from hepar.params import Params
from hepar.training.batches import LoaderWait, batches, make_batch


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


@pytest.mark.parametrize("kind", ["lesions", "look_alikes"])
def test_pathology_is_painted_with_the_probability_of_the_modality(kind: str, tiny: Params, tmp_path: Path) -> None:
    toys = [
        Toy(modality, modality, shape=PATCH, liver=((8, 16, 16), 7.0), lesions=(), tumour_state=LabelState.ABSENT)
        for modality in Modality
    ]
    trainer = toy_trainer(toy_pool(tmp_path / "pool", toys), tiny, tmp_path / "checkpoints", batch_size=2)

    def changed(ct: float, mr: float) -> tuple[int, int]:
        """Of 60 patches of each modality, those whose image is not that of an augmentation without pathology."""
        plain = {name: 0.0 for name in toy_settings(tiny).augmentation.model_dump() if name.endswith("_probability")}
        none = toy_settings(tiny, augmentation={**toy_settings(tiny).augmentation.model_dump(), **plain})
        painted = toy_settings(tiny, augmentation={**none.augmentation.model_dump(), kind: {"CT": ct, "MR": mr}})
        counts = [0, 0]
        for number in range(60):
            before, after = (make_batch(trainer.sampler, number, params, CPU) for params in (none, painted))
            assert torch.equal(before.weight_brdhw, after.weight_brdhw)
            for b in range(2):
                counts[b] += not torch.equal(before.image_bcdhw[b], after.image_bcdhw[b])
                positives = bool(after.target_brdhw[b, TUMOUR].any())
                assert not positives or kind == "lesions"
        return counts[0], counts[1]

    assert changed(0.0, 0.0) == (0, 0)
    ct, mr = changed(0.9, 0.2)
    assert 45 <= ct <= 60
    assert 4 <= mr <= 22
    assert changed(0.0, 1.0)[0] == 0


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
