"""Checkpoints that a killed run resumes from: written aside and renamed, so that what is there is whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

FOLDER_VARIABLE = "HEPAR_CHECKPOINTS"  # a folder that outlives the run, such as a mounted volume
FILE = "checkpoint.pt"


def checkpoint_folder(model: Path, key: str) -> Path:
    """Where the checkpoints of one training belong.

    `key` is the hash of all that the training depends on, so a run with other data or settings never resumes from
    them. Without the environment variable they lie beside the model.
    """
    root = os.environ.get(FOLDER_VARIABLE)
    return (Path(root) if root else model.parent / ".checkpoints") / f"{model.name}-{key[:16]}"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{FILE}.{os.getpid()}"
    torch.save(state, temporary)
    temporary.replace(folder / FILE)


def load_checkpoint(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The last checkpoint, or None where there is none yet."""
    if not (folder / FILE).is_file():
        return None
    state: dict[str, Any] = torch.load(folder / FILE, map_location=device, weights_only=True)
    return state
