"""Checkpoints that a killed run resumes from: written aside and renamed, so that what is there is whole.

The last two are kept. A folder holds the weights of a training's best validation inside each of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from hepar.errors import HeparError
from hepar.runtime.progress import current

FOLDER_VARIABLE = "HEPAR_CHECKPOINTS"  # a folder that outlives the run, such as a mounted volume
FILE, PREVIOUS = "checkpoint.pt", "previous.pt"


def checkpoint_folder(model: Path, key: str) -> Path:
    """Where the checkpoints of one training belong.

    `key` is the hash of all that the training depends on, so a run with other data or settings never resumes from
    them. Without the environment variable they lie beside the model.
    """
    root = os.environ.get(FOLDER_VARIABLE)
    return (Path(root) if root else model.parent / ".checkpoints") / f"{model.name}-{key[:16]}"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Put a checkpoint in the place of the last one, which becomes the previous one.

    Raises HeparError where it cannot be written, as on a full disk; both that are there stay whole then.
    """
    temporary = folder / f".{FILE}.partial"  # one name, so that what a kill leaves is written over
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        why = " ".join(str(error).split())
        raise HeparError(f"the checkpoint of step {state['step']} cannot be written to {folder}: {why}") from None
    if (folder / FILE).is_file():
        (folder / FILE).replace(folder / PREVIOUS)
    temporary.replace(folder / FILE)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The last checkpoint that can be read, on the CPU, or None where there is none yet."""
    for file in (FILE, PREVIOUS):
        try:
            state: dict[str, Any] = torch.load(folder / file, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            continue
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            current().say(f"{folder / file} is damaged ({type(error).__name__}): the one before it is taken")
            continue
        return state
    return None
