"""Where cases come from: one reader per source layout, each giving the same `SourceCase`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hepar.errors import DataError
from hepar.params import PhantomParams
from hepar.phantoms import write_phantoms
from hepar.progress import current
from hepar.readers.source import SourceCase
from hepar.readers.table import read_table

PHANTOMS = "phantoms"

__all__ = ["PHANTOMS", "SourceCase", "open_source"]


@contextmanager
def open_source(source: str, phantoms: PhantomParams) -> Iterator[list[SourceCase]]:
    """The cases of a source: a CSV or Parquet table, a folder that holds `cohort.csv`, or the word `phantoms`.

    Phantoms are made in a temporary folder that lives as long as the context. Raises DataError where the source is
    missing or empty.
    """
    if source == PHANTOMS:
        with (
            tempfile.TemporaryDirectory(prefix="hepar-phantoms-") as folder,
            current().counting(phantoms.cases, "phantoms") as count,
        ):
            table = write_phantoms(
                Path(folder),
                cases=phantoms.cases,
                seed=phantoms.seed,
                size_zyx=phantoms.size_zyx,
                progress=lambda done, total: count.advance(done),
            )
            yield read_table(table)
        return
    path = Path(source)
    if path.is_dir():
        path = path / "cohort.csv"
    if not path.is_file():
        raise DataError(f"source {source}: there is no table {path}")
    yield read_table(path)
