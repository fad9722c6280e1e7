"""A cheap listing of a source, by which DVC detects changed and added scans without reading their voxels.

CSV, one line per file, sorted: path, bytes, version. The version is the modification time in nanoseconds of a local
file, the ETag of an object in S3, the SHA-256 of a table, or `missing`. Paths are relative to the source, so a listing
names folders and files as the source does.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from io import StringIO
from pathlib import Path

from hepar.cases import STRUCTURES
from hepar.errors import DataError
from hepar.ingest.sources import PHANTOMS, dicomweb, s3
from hepar.ingest.sources.files import folders, is_zip
from hepar.ingest.sources.pseudonyms import keyed_hash, patient_key
from hepar.ingest.sources.source import VolumeFile
from hepar.ingest.sources.table import locate, read_frame
from hepar.phantoms.cohort import TABLE
from hepar.runtime.artifacts import sha256_file
from hepar.runtime.csv_cells import inert_cell
from hepar.runtime.redaction import redact_address
from hepar.runtime.remote_cache import in_parallel
from hepar.runtime.s3_client import SCHEME
from hepar.runtime.scratch import scratch_folder

MISSING = "missing"
VOLUME_COLUMNS = ("image", *STRUCTURES)
Line = tuple[str, str, str]  # path, bytes, version


def list_source(source: str) -> str:
    """The listing of a source as CSV; it changes if a file is added, removed or modified.

    A folder or prefix lists every file below it, hidden ones left out; a table itself and the volumes that it names; a
    zip the file itself; a DICOMweb server pseudonyms of its series and their numbers of instances; `phantoms` one line.
    Raises DataError if the source is missing or empty or a table cannot be read, StorageError if a store or server
    fails.
    """
    if source == PHANTOMS:
        return f"{PHANTOMS}\n"
    if source.startswith(dicomweb.SCHEMES):
        return _csv(_series(source))
    with scratch_folder("remote") as name:
        buckets = s3.Buckets(name)
        return _csv(_objects(source, buckets) if source.startswith(SCHEME) else _files(source, buckets))


def _csv(lines: Iterator[Line]) -> str:
    stream = StringIO()
    rows = ([inert_cell(cell) for cell in line] for line in sorted(set(lines)))
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def _files(source: str, buckets: s3.Buckets) -> Iterator[Line]:
    """Lines of a local folder, zip or table."""
    path = Path(source)
    if not path.exists():
        raise DataError(f"source {redact_address(source)}: no such file or folder")
    if path.is_dir():
        table = path / TABLE
        for folder in folders(path):
            for file in folder.iterdir():
                if not file.is_dir() and not file.name.startswith("."):
                    yield _file(file.relative_to(path).as_posix(), file)
        if table.is_file():  # it may name volumes outside the folder
            yield from _named(table, buckets)
    elif is_zip(path):
        yield _file(path.name, path)
    else:
        yield _table(path)
        yield from _named(path, buckets)


def _objects(source: str, buckets: s3.Buckets) -> Iterator[Line]:
    """Lines of a prefix in S3, a zip or a table there."""
    objects = buckets.objects(source)
    if objects[0].url != source:
        root = f"{source.rstrip('/')}/"
        for item in objects:
            yield _object(item.url.removeprefix(root), item)
        if any(item.url == f"{root}{TABLE}" for item in objects):
            yield from _named(buckets.mirror(f"{root}{TABLE}"), buckets)
    elif is_zip(source):
        yield _object(source, objects[0])
    else:
        table = buckets.mirror(source)
        yield _table(table)
        yield from _named(table, buckets)


def _named(table: Path, buckets: s3.Buckets) -> Iterator[Line]:
    """Lines of the volumes that a table names, by its cells."""
    frame = read_frame(table)
    columns = [column for column in VOLUME_COLUMNS if column in frame.columns]
    cells = sorted({cell for column in columns for cell in frame[column] if cell})
    for lines in in_parallel(partial(_cell, table=table, buckets=buckets), cells):
        yield from lines


def _cell(cell: str, table: Path, buckets: s3.Buckets) -> list[Line]:
    try:
        path = locate(table, cell, buckets.placeholder)
        if path.is_relative_to(buckets.root):
            return [_object(cell, buckets.remote(path))]
        volume, *detached = VolumeFile(path).files
    except (OSError, ValueError, DataError):  # no file can have this name
        return [(cell, "", MISSING)]
    return [_file(cell, volume), *(_file(str(Path(cell).with_name(file.name)), file) for file in detached)]


def _table(path: Path) -> Line:
    return path.name, str(path.stat().st_size), sha256_file(path)


def _file(name: str, path: Path) -> Line:
    try:
        state = path.stat()
    except (OSError, ValueError):  # ValueError: a name with a NUL character
        return name, "", MISSING
    return name, str(state.st_size), str(state.st_mtime_ns)


def _object(name: str, item: s3.S3Object) -> Line:
    return (name, str(item.size), item.etag) if item.etag else (name, "", MISSING)


def _series(source: str) -> Iterator[Line]:
    """Lines of the series that a search on a DICOMweb server finds: pseudonym, nothing, number of instances."""
    pseudonym = keyed_hash(patient_key())
    with scratch_folder("remote") as name:
        for series in dicomweb.Server(name, source).search():
            count = "" if series.instances is None else str(series.instances)
            yield pseudonym(f"{series.study}/{series.series}"), "", count
