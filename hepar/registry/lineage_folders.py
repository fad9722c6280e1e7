"""The artifacts in some folders of this machine, by hash."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hepar.errors import ArtifactError
from hepar.runtime.artifacts import MANIFEST, Manifest, read_any_manifest
from hepar.runtime.environment import STORE_VARIABLE
from hepar.runtime.object_store import Store
from hepar.runtime.stored_files import is_stored

DEPTHS = ("", "*/", "*/*/")  # an artifact itself, a working directory, and a folder of models in it


class ArtifactFolders:
    """The artifacts at, in and two levels below some folders. Nothing is written, and no content is hashed."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._found: dict[Path, Manifest] = {}
        self.damaged: list[str] = []  # why a folder that has a manifest is no artifact
        for folder in _folders_with_manifest(roots):
            try:
                self._found[folder] = read_any_manifest(folder)
            except ArtifactError as error:
                self.damaged.append(str(error))

    def of(self, artifact_hash: str) -> list[Path]:
        """The folders that hold an artifact."""
        return [folder for folder, manifest in self._found.items() if manifest.hash == artifact_hash]

    def of_kind(self, kind: str) -> list[tuple[Path, Manifest]]:
        """All artifacts of a kind, in the order of the roots."""
        return [(folder, manifest) for folder, manifest in self._found.items() if manifest.kind == kind]

    def problem(self, folder: Path) -> str:
        """Whether files of an artifact are missing or of another size than they had; empty if none is.

        Files that the folder leaves to the store count as there if there is a store.
        """
        sizes = self._found[folder].sizes
        missing = [name for name, size in sizes.items() if not _has_size(folder / name, size)]
        wrong = [name for name in missing if not is_stored(folder, name)]
        if len(wrong) < len(missing) and Store.of_environment() is None:
            return f"{len(missing) - len(wrong)} of {len(sizes)} files are in a store: set {STORE_VARIABLE} to it"
        return f"{len(wrong)} of {len(sizes)} files are missing or of another size, such as {wrong[0]}" if wrong else ""


def _folders_with_manifest(roots: Sequence[Path]) -> Iterator[Path]:
    """Without hidden folders, in which unfinished work lies."""
    seen = set[Path]()
    for root in roots:
        for depth in DEPTHS:
            for path in sorted(root.glob(f"{depth}{MANIFEST}")):
                folder = path.parent
                hidden = any(part.startswith(".") for part in folder.relative_to(root).parts)
                if not hidden and folder.resolve() not in seen:
                    seen.add(folder.resolve())
                    yield folder


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
