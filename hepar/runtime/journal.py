"""Renames that belong together. A journal lists them first, so that whoever reads or writes next can finish them.

A rename replaces a file at once but not a folder that holds something: the older one must be moved aside first. A
process that dies in between would leave neither, and one that replaces several folders a mixture of old and new. What
the journal names is complete before the journal appears, so finishing its renames is always right: until then the old
version is found, from then on the new one.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hepar.errors import ArtifactError, one_line
from hepar.runtime.locks import is_at, try_lock

WAIT_SECONDS = 0.02
RESULTS = ".results.journal"  # of a run's working directory: all its results are replaced together


@dataclass(frozen=True)
class Journal:
    """The renames at `path`, all inside its folder; the file exists only while they are carried out."""

    path: Path

    @classmethod
    def of_artifact(cls, folder: Path) -> Journal:
        """The journal of an artifact that is replaced on its own."""
        return cls(folder.parent / f".{folder.name}.journal")

    @property
    def root(self) -> Path:
        """The folder in which everything is renamed."""
        return self.path.parent

    def replace(self, moves: Mapping[Path, Path], scratch: Path) -> None:
        """Rename each key to its value, which is replaced, and remove what stood there.

        If this process dies, `finish` does the rest. `scratch` is a folder in `root` that the next writer empties.
        Callers hold a lock of their own, so that nobody else starts this journal. Raises ArtifactError if a rename
        fails, or if a place is below a symbolic link; everything then stands where it stood.
        """
        planned = {self._name(source): self._name(place) for source, place in moves.items()}
        self._check(planned)
        draft = scratch / self.path.name
        with draft.open("w") as stream:
            json.dump(planned, stream)
            stream.flush()
            os.fsync(stream.fileno())
            try_lock(stream.fileno())
            draft.rename(self.path)  # from here on, the new version is what a reader finds
            _sync_folder(self.root)
            try:
                self._carry_out(planned)
            except ArtifactError:
                self._undo(planned)
                raise

    def finish(self) -> None:
        """Finish the renames of a process that died; wait for those of a process that lives. Mostly there are none.

        Raises ArtifactError if the file is not a journal, or if a rename fails.
        """
        while os.path.lexists(self.path) and not self._finish_or_look():
            time.sleep(WAIT_SECONDS)

    def _finish_or_look(self) -> bool:
        """Carry out the renames unless another process does; returns whether nothing is left to rename."""
        try:
            with self.path.open() as stream:
                planned = json.load(stream)
                self._check(planned)
                if try_lock(stream.fileno()) and is_at(stream.fileno(), self.path):
                    self._carry_out(planned)
        except FileNotFoundError:  # the other process is done
            return True
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{self.path} is not a journal of renames: {one_line(error)}; remove it") from None
        return not any(os.path.lexists(self.root / source) for source in planned)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _check(self, planned: object) -> None:
        """Raise ArtifactError if a rename would leave the folder, for a journal may come with someone else's data."""
        if not isinstance(planned, dict):
            raise ArtifactError(f"{self.path} is not a journal of renames; remove it")
        for name in map(str, (*planned.keys(), *planned.values())):
            path = PurePosixPath(name)
            if not path.parts or path.is_absolute() or ".." in path.parts:
                raise ArtifactError(f"{self.path} names {name!r}, which is not inside {self.root}; remove it")
            for parent in path.parents[:-1]:
                if (self.root / parent).is_symlink():
                    raise ArtifactError(f"{self.root / name} cannot be replaced: {parent} is a symbolic link")

    def _carry_out(self, planned: Mapping[str, str]) -> None:
        for name, destination in planned.items():
            source, place = self.root / name, self.root / destination
            try:
                if os.path.lexists(source):  # else it was renamed before a process died
                    place.parent.mkdir(parents=True, exist_ok=True)
                    _move_aside(place)
                    source.rename(place)
                    _sync_folder(place.parent)
            except OSError as error:
                raise ArtifactError(f"{place} cannot be replaced: {error.strerror}") from None
        for destination in planned.values():
            _remove(_aside(self.root / destination))
        self.path.unlink(missing_ok=True)

    def _undo(self, planned: Mapping[str, str]) -> None:
        """Put everything back where it stood, after a rename failed."""
        for name, destination in reversed(list(planned.items())):
            source, place = self.root / name, self.root / destination
            if not os.path.lexists(source) and os.path.lexists(place):
                place.rename(source)
            if os.path.lexists(_aside(place)) and not os.path.lexists(place):
                _aside(place).rename(place)
        self.path.unlink(missing_ok=True)


def finish_replacing(folder: Path) -> None:
    """Finish what a killed process left of replacing an artifact: on its own, or with all results of a run."""
    folder = folder.absolute()
    parent = folder.parent.resolve()
    journals = (Journal.of_artifact(parent / folder.name), Journal(parent / RESULTS), Journal(parent.parent / RESULTS))
    for journal in journals:
        journal.finish()


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _move_aside(place: Path) -> None:
    """Move a folder or link out of the way; a file is replaced by the rename itself."""
    if place.is_symlink() or place.is_dir():
        _remove(_aside(place))
        place.rename(_aside(place))


def _remove(path: Path) -> None:
    """Remove a folder, link or file, as far as it can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Write a folder's names to disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
