"""A checkpoint in the store, from which a new container with an empty disk resumes.

A pod may end without a warning and its disk with it, so the checkpoint of a training goes to the store every
`training.checkpoint_minutes`, and each pseudo-liver when it is finished. The place holds the hash that names the folder
of checkpoints, so only a step with the same data and settings finds it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from hepar.errors import DataError, StorageError
from hepar.runtime.object_store import Store
from hepar.runtime.progress import current_stage
from hepar.runtime.whole_files import whole_file

FOLDER = "checkpoints"


class StoredCheckpoint:
    """A checkpoint at `place`, a path below `checkpoints` in the store; without the last of its `files` there is none.

    `minutes` is the time between two that are due. Files that are `optional` may be missing.
    """

    def __init__(
        self, store: Store, place: str, files: Sequence[str], minutes: float = 0.0, optional: Sequence[str] = ()
    ) -> None:
        self._store, self._place, self._files, self._seconds = store, f"{FOLDER}/{place}", tuple(files), minutes * 60
        self._optional = tuple(optional)
        self._last = time.monotonic()

    @classmethod
    def of_environment(
        cls, place: str, files: Sequence[str], minutes: float = 0.0, optional: Sequence[str] = ()
    ) -> StoredCheckpoint | None:
        """The one in the store that HEPAR_STORE names; None without a store."""
        store = Store.of_environment()
        return None if store is None else cls(store, place, files, minutes, optional)

    def is_due(self) -> bool:
        """Whether the last one was saved long enough ago."""
        return time.monotonic() - self._last >= self._seconds

    def save(self, folder: Path) -> None:
        """Send the checkpoint in `folder`. If the store fails, that is logged, and the step goes on."""
        try:
            for name in self._files:
                if (folder / name).is_file():
                    self._store.put(f"{self._place}/{name}", folder / name)
        except (StorageError, DataError) as error:
            current_stage().log(f"the checkpoint was not sent: {error}")
        self._last = time.monotonic()

    def restore(self, folder: Path) -> None:
        """Fetch the checkpoint into `folder`, unless that has one; nothing usable if the store has none or part of one.

        Raises StorageError if the store fails.
        """
        last = self._files[-1]
        if (folder / last).is_file() or not self._store.has(f"{self._place}/{last}"):
            return
        for name in self._files:
            try:
                with whole_file(folder / name) as partial:
                    self._store.get(f"{self._place}/{name}", partial)
            except DataError:
                if name in self._optional:
                    continue
                current_stage().log(f"{self._store.address(self._place)} lacks {name} and is not used")
                return
        current_stage().log(f"resumes from {self._store.address(self._place)}")

    def remove(self) -> None:
        """Remove the checkpoint, since the step has finished. A store that fails keeps it: nobody asks again."""
        try:
            self._store.remove(f"{self._place}/{name}" for name in reversed(self._files))
        except (StorageError, DataError) as error:
            current_stage().log(f"the checkpoint stays in the store: {error}")
