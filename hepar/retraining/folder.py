"""The folder `retraining/` in a working directory: what `hepar retrain` keeps between looks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepar.errors import HeparError
from hepar.pseudo_labels.reviews import Reviews
from hepar.runtime.artifacts import write_json
from hepar.runtime.locks import try_lock


class LookBusy(HeparError):
    """Another process is looking at, or training in, the same working directory."""


@dataclass(frozen=True)
class RetrainingFolder:
    """The folder, which `hold` creates: a cohort as the source is now, suspicious masks, decisions on them."""

    folder: Path

    COHORT = "cohort"
    SUSPECTS = "suspects"  # a folder of pseudo-labels, for `hepar review`
    REVIEWS = "suspect-reviews"
    LAST_LOOK = "last_look.json"
    MEASUREMENTS = "drift_measurements.json"
    LOCK = ".lock"

    @classmethod
    def of_workdir(cls, workdir: Path) -> RetrainingFolder:
        """The folder of a working directory of `hepar run`."""
        return cls(workdir / "retraining")

    @property
    def cohort(self) -> Path:
        return self.folder / self.COHORT

    @property
    def suspects(self) -> Path:
        return self.folder / self.SUSPECTS

    @property
    def reviews_folder(self) -> Path:
        return self.folder / self.REVIEWS

    def reviews(self) -> Reviews:
        """The decisions on suspicious masks; none without a log. Raises DataError if it is damaged."""
        return Reviews.so_far(self.reviews_folder)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Lock the folder for this process. Raises LookBusy if another holds it, HeparError if it cannot be made."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / self.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise HeparError(f"the folder {self.folder} cannot be written: {error.strerror}") from None
        try:
            if not try_lock(descriptor):
                raise LookBusy(f"another look or training is at work in {self.folder.parent}")
            yield
        finally:
            os.close(descriptor)

    def last_look(self) -> dict[str, Any]:
        """What `save_look` has written; empty without it, or if it is damaged."""
        return self._read(self.LAST_LOOK)

    def save_look(self, values: Mapping[str, Any]) -> None:
        """Keep a look. Raises StorageError if the disk is full."""
        write_json(self.folder / self.LAST_LOOK, dict(values))

    def measurements(self) -> dict[str, Any]:
        """The measurements of scans by the hash of what they were made from; empty without any."""
        return self._read(self.MEASUREMENTS)

    def save_measurements(self, values: Mapping[str, Any]) -> None:
        """Keep measurements. Raises StorageError if the disk is full."""
        write_json(self.folder / self.MEASUREMENTS, dict(values))

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / name).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}
