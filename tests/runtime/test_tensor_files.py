"""Files of torch: no code in them runs, and no message advises to run it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hepar.errors import DataError
from hepar.networks.medformer.checkpoint_import import read_checkpoint
from hepar.runtime.tensor_files import read_tensors
from hepar.training.checkpoint import FILE, PREVIOUS, load_checkpoint, save_checkpoint


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def with_code(path: Path) -> None:
    torch.save({"weights": Evil(path.with_name("ran"))}, path)


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(path.with_name("ran"))))


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 100)


def truncated(path: Path) -> None:
    torch.save({"weights": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:200])


def empty(path: Path) -> None:
    path.write_bytes(b"")


BROKEN = [with_code, plain_pickle, garbage, truncated, empty]
ADVICE = ("weights_only", "weights only", "allow_pickle", "trust", "safe_globals")


@pytest.mark.parametrize("write", BROKEN)
def test_a_file_of_anything_else_is_refused_in_our_own_words(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "w.pt")
    for read in (read_tensors, read_checkpoint):
        with pytest.raises(DataError) as caught:
            read(tmp_path / "w.pt")
        assert "w.pt" in str(caught.value)
        assert not any(words in str(caught.value).lower() for words in ADVICE)
    assert not (tmp_path / "ran").exists()


def test_a_file_with_code_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    with_code(tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"w\.pt holds objects other than tensors, .* is not loaded"):
        read_tensors(tmp_path / "w.pt")
    truncated(tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"w\.pt is damaged or not a torch file"):
        read_tensors(tmp_path / "w.pt")


@pytest.mark.parametrize("write", [garbage, empty])
def test_an_archive_of_numpy_is_refused_in_our_own_words(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "w.npz")
    with pytest.raises(DataError, match=r"w\.npz is damaged or contains no arrays"):
        read_checkpoint(tmp_path / "w.npz")
    np.savez(tmp_path / "w.npz", **{"w/a": np.array([Evil(tmp_path / "ran")], object)})  # type: ignore[arg-type]
    with pytest.raises(DataError) as caught:
        read_checkpoint(tmp_path / "w.npz")
    assert not any(words in str(caught.value).lower() for words in ADVICE)


@pytest.mark.parametrize("write", BROKEN)
def test_after_a_broken_checkpoint_the_previous_one_is_read(write: Callable[[Path], None], tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"step": 1})
    save_checkpoint(tmp_path, {"step": 2})
    write(tmp_path / FILE)
    assert load_checkpoint(tmp_path) == {"step": 1}
    (tmp_path / PREVIOUS).unlink()
    assert load_checkpoint(tmp_path) is None
