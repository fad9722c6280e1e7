"""All DICOM headers below a folder, read in processes that may die over a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pydicom

from hepar.errors import Refusal
from hepar.ingest.parallel import Died, parallel_map
from hepar.ingest.sources.dicom import CLASSIC, ENHANCED, Instance, read_header
from hepar.ingest.sources.files import folders
from hepar.ingest.sources.source import SourceCase, refused_case

CHUNK = 64  # files of a job
MIN_SECONDS = 120.0  # for the headers of a job; good ones take a hundredth of a second each
MIN_BYTES_PER_SECOND = 2**20
RULE = "every DICOM file can be read"


def scan(root: Path) -> Iterator[Instance]:
    """Headers of all DICOM files below a folder; other files are skipped.

    An instance without tags stands for a file that cannot be read.
    """
    paths = [
        path
        for folder in folders(root)
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".")
    ]
    chunks = [tuple(paths[start : start + CHUNK]) for start in range(0, len(paths), CHUNK)]
    with parallel_map(_read_headers, chunks, seconds_to_read) as results:
        for chunk, found in zip(chunks, results, strict=True):
            yield from _one_by_one(chunk) if isinstance(found, Died) else found


def holds_images(root: Path) -> bool:
    """Whether there is a CT or MR instance below a folder; stops at the first."""
    return any(instance.get("SOPClassUID") in {**CLASSIC, **ENHANCED} for instance in scan(root))


def refused_folders(instances: Iterable[Instance]) -> list[SourceCase]:
    """A refused case for each folder with files that cannot be read, by number: its name may be a patient's."""
    by_folder: dict[Path, list[Instance]] = {}
    for instance in instances:
        by_folder.setdefault(instance.path.parent, []).append(instance)
    refused = []
    for number, members in enumerate(by_folder.values(), start=1):
        broken = [member for member in members if member.fault is not None and not member.get("SOPClassUID")]
        if broken:
            assert broken[0].fault is not None
            where = f"{len(broken)} of {len(members)} files in folder {number} of {len(by_folder)} with DICOM files"
            fault = Refusal(RULE, f"{where}, ordered by path: {broken[0].fault.value}")
            refused.append(refused_case(f"dicom-folder-{number}", broken[0].path, fault))
    return refused


def seconds_to_read(paths: Sequence[Path]) -> float:
    """How long the headers of some files may take."""
    size_bytes = 0
    for path in paths:
        with suppress(OSError):
            size_bytes += path.stat().st_size
    return MIN_SECONDS + size_bytes / MIN_BYTES_PER_SECOND


def _read_headers(paths: Sequence[Path]) -> list[Instance]:
    return [instance for path in paths if (instance := read_header(path)) is not None]


def _one_by_one(paths: Sequence[Path]) -> Iterator[Instance]:
    """The headers of files of which one kills the process that reads it."""
    singles = [(path,) for path in paths]
    with parallel_map(_read_headers, singles, seconds_to_read) as results:
        for path, found in zip(paths, results, strict=True):
            if isinstance(found, Died):
                yield Instance(path, pydicom.Dataset(), Refusal(RULE, found.reason))
            else:
                yield from found
