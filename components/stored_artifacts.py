"""Artifacts of steps by reference: what `HEPAR_STORE` holds of them, and the version that a step starts from.

Without HEPAR_STORE a step passes on whole folders and starts from nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hepar.cases import Cohort
from hepar.errors import DataError
from hepar.evaluation.report_folder import Report
from hepar.evaluation.short_page import shorten_page
from hepar.params import REGISTERED
from hepar.pool.table import Pool
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.registry.model_registry import cohort_version, pool_version
from hepar.runtime.object_store import Store
from hepar.runtime.progress import current_stage
from hepar.runtime.stored_versions import open_version, publish
from hepar.runtime.whole_files import write_text

NONE = "none"
MAX_SHOWN_BYTES = 600_000  # of a page; with the tables of the report, a step's artifacts have less than 1 MB
BULK: Mapping[str, tuple[str, ...]] = {  # by kind, the files and subfolders that go to the store alone
    Cohort.KIND: (Cohort.VOLUMES,),
    PseudoLabels.KIND: (PseudoLabels.MASKS,),
    Pool.KIND: (Pool.CASES,),
    Report.KIND: (Report.MASKS, Report.PROBABILITIES, Report.PAGE),
}
VERSION_OF: Mapping[str, Callable[[str], str]] = {Cohort.KIND: cohort_version, Pool.KIND: pool_version}


@dataclass(frozen=True)
class StoredArtifact:
    """A step's artifact on its way to the store; its version is noted in the metadata of KFP's artifact.

    `start_from` is `none`, a version, or a registered model, which names the version that it was made from. With `name`
    the store keeps the version under this name too.
    """

    kind: str
    metadata: dict[str, object]
    start_from: str = NONE
    name: str = ""

    def start(self, folder: Path) -> None:
        """Put the version that the step starts from into `folder` by reference.

        The first run finds no such model, and starts from nothing. Raises DataError if the store lacks a version that
        was given, StorageError if the store or the registry fails.
        """
        is_begun = folder.is_dir() and any(folder.iterdir())
        if (store := Store.of_environment()) is None or self.start_from == NONE or is_begun:
            return
        if not self.start_from.startswith(REGISTERED):
            open_version(self.start_from, self.kind, BULK[self.kind], folder, store)
            return
        try:
            version = VERSION_OF[self.kind](self.start_from)
            open_version(version, self.kind, BULK[self.kind], folder, store)
        except DataError as error:
            current_stage().log(f"starts from no earlier {self.kind}: {error}")
        else:
            current_stage().log(f"starts from {self.kind} {version} of {self.start_from}")

    def finish(self, folder: Path) -> None:
        """Leave the artifact by reference. Raises StorageError if the store fails; the folder then stays whole."""
        if (store := Store.of_environment()) is not None:
            version = publish(folder, BULK[self.kind], store)
            self.metadata["version"] = version
            if self.name:
                store.put_text(self.name, version)


@dataclass(frozen=True)
class ShownReport:
    """A report on its way to the store, and the file `page` that KFP shows: its page, with fewer pictures if that is
    large."""

    stored: StoredArtifact
    page: Path

    def start(self, folder: Path) -> None:
        """A report starts from nothing."""

    def finish(self, folder: Path) -> None:
        """Write the page that is shown, and hand over the report. Raises StorageError if either fails."""
        write_text(self.page, shorten_page(Report(folder).page.read_text("utf-8"), MAX_SHOWN_BYTES))
        self.stored.finish(folder)
