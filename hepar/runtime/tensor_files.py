"""Reading files of torch without running code in them."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from hepar.errors import DataError

FOREIGN_OBJECTS = ("Unsupported global", "Unsupported class", "GLOBAL")  # in torch's message


def read_tensors(path: Path) -> Any:
    """What `torch.save` wrote to a file, on the CPU: tensors, numbers and texts in lists and dicts.

    Raises DataError in words of our own: torch's advise to load the file by running the code in it.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror or type(error).__name__}") from None
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file does to the reader
        if isinstance(error, UnpicklingError) and any(words in str(error) for words in FOREIGN_OBJECTS):
            raise DataError(
                f"{path.name} holds objects other than tensors, numbers and texts, and is not loaded, since they may"
                " run code"
            ) from None
        raise DataError(f"{path.name} is damaged or not a torch file ({type(error).__name__})") from None
