"""Checkpoints: the last two are kept, and none is ever half-written."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from hepar.errors import HeparError
from hepar.runtime.unfinished import checkpoint_folder
from hepar.training.checkpoint import load_checkpoint, save_checkpoint


def loaded_step(folder: Path) -> int:
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    assert torch.equal(checkpoint["weights"][:2], torch.ones(2) * checkpoint["step"])
    return int(checkpoint["step"])


def test_the_last_two_checkpoints_are_kept_and_a_damaged_one_is_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "checkpoints"
    assert load_checkpoint(folder) is None
    for step in (1, 2, 3):
        save_checkpoint(folder, {"step": step, "weights": torch.ones(2) * step})
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt", "previous.pt"]
    assert loaded_step(folder) == 3
    with (folder / "checkpoint.pt").open("r+b") as stream:
        stream.truncate(100)
    assert loaded_step(folder) == 2
    (folder / "checkpoint.pt").unlink()  # as after a power cut between the two renames
    assert loaded_step(folder) == 2


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_last_one_intact(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"step": 1, "weights": torch.ones(2)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(HeparError, match="the checkpoint of step 2 cannot be written to"):
            save_checkpoint(tmp_path, {"step": 2, "weights": torch.ones(100_000) * 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert loaded_step(tmp_path) == 1


def test_the_folder_depends_on_the_key_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "models" / "ct"
    assert checkpoint_folder(model, "a" * 64) != checkpoint_folder(model, "b" * 64)
    assert checkpoint_folder(model, "a" * 64).parent.parent == tmp_path / "models"
    monkeypatch.setenv("HEPAR_CHECKPOINTS", str(tmp_path / "kept"))
    assert checkpoint_folder(model, "a" * 64).parent == tmp_path / "kept"
