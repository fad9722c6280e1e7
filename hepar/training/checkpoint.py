"""Checkpoints from which a killed training resumes.

The last two are kept. A checkpoint is written to a temporary file and renamed, so each one on disk is complete.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from hepar.errors import DataError, HeparError, one_line
from hepar.runtime.progress import current_stage
from hepar.runtime.tensor_files import read_tensors
from hepar.runtime.whole_files import cause_on_disk

FILE, PREVIOUS = "checkpoint.pt", "previous.pt"


def save_checkpoint(folder: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint; the last one becomes the previous one.

    Raises HeparError if it cannot be written, as on a full disk; the checkpoints on disk stay as they are.
    """
    temporary = folder / f".{FILE}.partial"  # always this name, so that what a kill leaves behind is overwritten
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except (OSError, RuntimeError) as error:
        cause = cause_on_disk(error, [temporary])
        temporary.unlink(missing_ok=True)
        reason = one_line(cause or error)
        raise HeparError(
            f"the checkpoint of step {checkpoint['step']} cannot be written to {folder}: {reason}"
        ) from None
    if (folder / FILE).is_file():
        (folder / FILE).replace(folder / PREVIOUS)
    temporary.replace(folder / FILE)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Load the last readable checkpoint, on the CPU; None if there is none."""
    for file in (FILE, PREVIOUS):
        if not (folder / file).is_file():
            continue
        try:
            checkpoint: dict[str, Any] = read_tensors(folder / file)
        except DataError as error:
            current_stage().log(f"{folder}: {error}: trying the previous checkpoint")
            continue
        return checkpoint
    return None
