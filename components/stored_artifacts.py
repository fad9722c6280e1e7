"""Artifacts of steps by reference: what `HEPAR_STORE` holds of them, and the version that a step starts from.

Without HEPAR_STORE a step passes on whole folders and starts from nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hepar.cases import Cohort
from hepar.errors import DataError
from hepar.params import REGISTERED
from hepar.pool.table import Pool
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.registry.model_registry import cohort_version, pool_version
from hepar.runtime.object_store import Store
from hepar.runtime.progress import current_stage
from hepar.runtime.stored_versions import open_version, publish

# by kind, the subfolder that goes to the store alone
BULK: Mapping[str, str] = {Cohort.KIND: Cohort.VOLUMES, PseudoLabels.KIND: PseudoLabels.MASKS, Pool.KIND: Pool.CASES}
VERSION_OF: Mapping[str, Callable[[str], str]] = {Cohort.KIND: cohort_version, Pool.KIND: pool_version}


def start_from(revision: str, kind: str, folder: Path) -> str:
    """Put a version of an artifact into `folder` by reference, for a stage to take over what has not changed.

    `revision` is `none`, a version, or a registered model, which names the version that it was made from. Returns what
    was done, for the log. The first run finds no such model, and starts from nothing. Raises DataError if the store
    lacks a version that was given, StorageError if the store or the registry fails.
    """
    if (store := Store.of_environment()) is None or revision == "none" or folder.exists():
        return ""
    if not revision.startswith(REGISTERED):
        open_version(revision, kind, BULK[kind], folder, store)
        return f"starts from {kind} {revision}"
    try:
        version = VERSION_OF[kind](revision)
        open_version(version, kind, BULK[kind], folder, store)
    except DataError as error:
        return f"starts from nothing: {error}"
    return f"starts from {kind} {version} of {revision}"


@dataclass(frozen=True)
class Publisher:
    """Hands a finished artifact to the store, and notes its version in the metadata of KFP's artifact."""

    kind: str
    metadata: dict[str, object]
    started: str = ""  # a line of `start_from`

    def __call__(self, folder: Path) -> None:
        """Leave the artifact by reference. Raises StorageError if the store fails; the folder then stays whole."""
        if self.started:
            current_stage().log(self.started)
        if (store := Store.of_environment()) is not None:
            self.metadata["version"] = publish(folder, BULK[self.kind], store)
