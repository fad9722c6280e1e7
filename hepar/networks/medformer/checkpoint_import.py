"""Reads the state dict of a published MedFormer checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hepar.errors import DataError, one_line
from hepar.runtime.tensor_files import read_tensors

STATE_DICT_KEYS = ("model_state_dict", "state_dict", "model", "net", "ema_model_state_dict")
NPZ_PREFIX = "w/"


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a `.npz` (names prefixed with `w/`) or of a torch file, where it may be nested.

    Torch files are read with `weights_only`, so no code in them runs. Raises DataError if the file is missing or
    unreadable, or contains no state dict.
    """
    if not path.is_file():
        raise DataError(f"checkpoint {path} does not exist")
    try:
        if path.suffix == ".npz":
            with np.load(path) as stored:
                names = [name for name in stored.files if name.startswith(NPZ_PREFIX)]
                return {name.removeprefix(NPZ_PREFIX): torch.from_numpy(stored[name]) for name in names}
        return _state_dict(path, read_tensors(path))
    except DataError as error:
        raise DataError(f"checkpoint {path}: {one_line(error)}") from None
    except Exception as error:  # whatever a damaged archive does to NumPy, whose messages advise to allow pickled code
        raise DataError(f"checkpoint {path} is damaged or contains no arrays ({type(error).__name__})") from None


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    for name in STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{path.name} contains no state dict")
    return {str(name).removeprefix("module."): value for name, value in content.items()}
