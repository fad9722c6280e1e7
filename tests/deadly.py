"""Work that kills the process it runs in, importable by processes that know nothing of the tests."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from hepar.ingest.sources.dicom import Instance, read_header
from hepar.ingest.sources.source import VolumeFile
from hepar.ingest.workers import usable_bytes

DEADLY = {
    "segfault": "the process that read it died of SIGSEGV",
    "abort": "the process that read it died of SIGABRT",
    "exit": "the process that read it died of exit code 3",
    "hang": "reading it takes longer than 1 s",
    "fill": "reading it takes more memory than there is",
    "allocate": "reading it takes more memory than there is",
}


def die(how: str) -> None:
    """End or block this process, or fill its memory."""
    if how == "segfault":
        ctypes.string_at(0)
    if how == "abort":
        os.write(2, b"last words about a patient\n")
        os.abort()
    if how == "exit":
        os._exit(3)
    if how == "fill":
        kept = []
        while True:
            kept.append(np.ones(2**26, np.uint8))
    if how == "allocate":
        np.ones(usable_bytes(), np.uint8)
    while how == "hang":
        pass


def double_or_die(job: int | str) -> int:
    if isinstance(job, str):
        die(job)
        raise AssertionError
    return 2 * job


def seconds(job: int | str) -> float:
    return 1.0 if job == "hang" else 120.0


def raise_error(job: int) -> int:
    raise KeyError("of the work itself")


def process_id(job: int) -> int:
    return os.getpid()


def surroundings(job: int) -> tuple[str, str | None]:
    return str(Path.cwd()), os.environ.get("A_VARIABLE")


@dataclass(frozen=True)
class DeadlyFile(VolumeFile):
    """A volume on which its reader dies."""

    how: str = ""

    def read(self) -> sitk.Image:
        die(self.how)
        raise AssertionError


def die_over_one(paths: tuple[Path, ...]) -> list[Instance]:
    """Reads headers, but dies where one has the number 3 in its name."""
    if any(path.name == "IM0003" for path in paths):
        die("segfault")
    return [instance for path in paths if (instance := read_header(path)) is not None]
