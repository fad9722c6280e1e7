"""Where a killed stage finds what it can resume: training checkpoints and finished pseudo-livers."""

from __future__ import annotations

import os
from pathlib import Path

CHECKPOINTS_VARIABLE = "HEPAR_CHECKPOINTS"  # a folder that outlives the run, such as a mounted volume


def checkpoint_folder(artifact: Path, key: str) -> Path:
    """Folder of the unfinished work for an artifact: below HEPAR_CHECKPOINTS if that is set, else beside the artifact.

    `key` is the hash of everything the work depends on, so a run with other data or settings never resumes from it.
    """
    root = os.environ.get(CHECKPOINTS_VARIABLE)
    return (Path(root) if root else artifact.parent / ".checkpoints") / f"{artifact.name}-{key[:16]}"
