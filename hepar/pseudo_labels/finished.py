"""The pseudo-livers that an interrupted run has finished, from which the next one goes on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hepar.pseudo_labels.folder import PseudoLabels
from hepar.pseudo_labels.prediction import SIGNALS_FILE, PseudoLiver
from hepar.runtime.remote_cache import in_parallel
from hepar.runtime.stored_checkpoint import StoredCheckpoint

FILES = (PseudoLabels.LIVER, PseudoLabels.UNCERTAIN, SIGNALS_FILE)


@dataclass(frozen=True)
class FinishedLivers:
    """One folder a case in `folder`; with HEPAR_STORE also in the store, since a pod's disk ends with it.

    The name of `folder` holds the hash of everything that the pseudo-livers depend on.
    """

    folder: Path

    def find(self, case_id: str) -> Path | None:
        """The folder of a case, fetched if only the store has it; None if the case is not finished.

        Raises StorageError if the store fails.
        """
        place = self.folder / case_id
        if (stored := self._stored(case_id)) is not None:
            stored.restore(place)
        return place if (place / SIGNALS_FILE).is_file() else None

    def keep(self, case_id: str, finished: PseudoLiver) -> Path:
        """Save a case; returns its folder. If the store fails, that is logged."""
        place = self.folder / case_id
        finished.save(place)
        if (stored := self._stored(case_id)) is not None:
            stored.save(place)
        return place

    def remove(self, case_ids: Sequence[str]) -> None:
        """Remove these cases here and in the store, since the artifact is written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        in_parallel(self._forget, case_ids)

    def _forget(self, case_id: str) -> None:
        if (stored := self._stored(case_id)) is not None:
            stored.remove()

    def _stored(self, case_id: str) -> StoredCheckpoint | None:
        return StoredCheckpoint.of_environment(f"{self.folder.name}/{case_id}", FILES)
