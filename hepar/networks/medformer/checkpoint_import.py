"""Reads the state dict of a published MedFormer checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hepar.errors import DataError

STATE_DICT_KEYS = ("model_state_dict", "state_dict", "model", "net", "ema_model_state_dict")
NPZ_PREFIX = "w/"


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a `.npz` (names prefixed with `w/`) or of a torch file, where it may be nested.

    Torch files are read with `weights_only`, so no code in them runs. Raises DataError if the file is missing or
    unreadable, or holds no state dict.
    """
    if not path.is_file():
        raise DataError(f"checkpoint {path} does not exist")
    try:
        if path.suffix == ".npz":
            with np.load(path) as stored:
                names = [name for name in stored.files if name.startswith(NPZ_PREFIX)]
                return {name.removeprefix(NPZ_PREFIX): torch.from_numpy(stored[name]) for name in names}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"checkpoint {path} cannot be read: {str(error).splitlines()[0]}") from None
    return _state_dict(path, content)


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    for name in STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"checkpoint {path} holds no state dict")
    return {str(name).removeprefix("module."): value for name, value in content.items()}
