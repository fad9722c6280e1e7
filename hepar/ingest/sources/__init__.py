"""Where cases come from: one reader per source layout, each giving the same `SourceCase`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from hepar.cases import Cohort, Modality, Split, parse_enum
from hepar.errors import DataError
from hepar.ingest.sources import (
    bids,
    chaos,
    dicom_tree,
    dicomweb,
    image_label_pairs,
    ircadb,
    lits,
    nnunet,
    s3,
    totalsegmentator,
)
from hepar.ingest.sources.archive import unpacked
from hepar.ingest.sources.dicom import Uneven
from hepar.ingest.sources.pseudonyms import patient_key
from hepar.ingest.sources.remote_cache import RemoteFile, in_parallel
from hepar.ingest.sources.source import SourceCase
from hepar.ingest.sources.table import read_frame, read_table
from hepar.params import IngestParams, PhantomParams
from hepar.phantoms import PATTERN, TEACHING, Labels, write_phantoms
from hepar.runtime.progress import current

PHANTOMS = "phantoms"
TABLE = "cohort.csv"
AUTO = "auto"
Read = Callable[[Path, IngestParams, Callable[[str], Path]], list[SourceCase]]  # the last places `s3://` addresses

__all__ = ["AUTO", "LAYOUTS", "PHANTOMS", "Layout", "SourceCase", "is_remote", "open_source", "read_splits"]


class Store(Protocol):
    """A folder whose files stand for those of a store."""

    root: Path

    def remote(self, path: Path) -> RemoteFile: ...


@dataclass(frozen=True)
class Layout:
    """How a source may be laid out. `recognise` says in words what speaks for it; an empty string is no."""

    recognise: Callable[[Path], str]
    read: Read


def _plain(read: Callable[[Path], list[SourceCase]]) -> Read:
    return lambda folder, params, elsewhere: read(folder)


def _with_slices(read: Callable[[Path, Uneven], list[SourceCase]]) -> Read:
    return lambda folder, params, elsewhere: read(folder, params.uneven_slices)


def _read_dicom(folder: Path, uneven: Uneven) -> list[SourceCase]:
    return dicom_tree.read(folder, patient_key(), uneven)


def _has_table(folder: Path) -> str:
    return f"it holds {TABLE}" if (folder / TABLE).is_file() else ""


# in the order in which `auto` asks: what is told by more precise signs comes first
LAYOUTS = {
    "table": Layout(_has_table, lambda folder, params, elsewhere: read_table(folder / TABLE, elsewhere)),
    "msd-liver": Layout(image_label_pairs.MSD_LIVER.recognise, _plain(image_label_pairs.MSD_LIVER.read)),
    "msd-hepatic-vessel": Layout(image_label_pairs.MSD_VESSEL.recognise, _plain(image_label_pairs.MSD_VESSEL.read)),
    "amos": Layout(image_label_pairs.AMOS.recognise, _plain(image_label_pairs.AMOS.read)),
    "atlas": Layout(image_label_pairs.ATLAS.recognise, _plain(image_label_pairs.ATLAS.read)),
    "nnunet": Layout(nnunet.recognise, _plain(nnunet.read)),
    "lits": Layout(lits.recognise, _plain(lits.read)),
    "totalsegmentator": Layout(totalsegmentator.recognise, _plain(totalsegmentator.read)),
    "bids": Layout(bids.recognise, _plain(bids.read)),
    "chaos": Layout(chaos.recognise, _with_slices(chaos.read)),
    "ircadb": Layout(ircadb.recognise, _with_slices(ircadb.read)),
    "dicom": Layout(dicom_tree.recognise, _with_slices(_read_dicom)),
}


@contextmanager
def open_source(source: str, params: IngestParams) -> Iterator[list[SourceCase]]:
    """The cases of a source: a table, a folder or zip of a known layout, an `s3://` or `dicomweb+https://` address, or
    the word `phantoms`.

    With `params.added_phantoms` phantoms join the training patients of any other source. What has to be
    unpacked or made lies in a temporary folder as long as the context. Raises DataError where the source is missing,
    empty, or of no layout.
    """
    phantoms = params.phantoms
    with ExitStack() as stack:
        if source == PHANTOMS:
            yield stack.enter_context(_phantoms(phantoms, phantoms.cases, PATTERN, tuple(Modality)))
            return
        cases = stack.enter_context(_opened(source, params))
        # of another seed, so that they differ from phantoms that a source may hold
        others = phantoms.model_copy(update={"seed": phantoms.seed + 1})
        for modality, count in ((Modality.CT, params.added_phantoms.CT), (Modality.MR, params.added_phantoms.MR)):
            if count:
                added = stack.enter_context(_phantoms(others, count, TEACHING, (modality,)))
                cases = [*cases, *(_named_as_added(case) for case in added)]
        yield cases


@contextmanager
def _opened(source: str, params: IngestParams) -> Iterator[list[SourceCase]]:
    with tempfile.TemporaryDirectory(prefix="hepar-remote-") as name:
        buckets = s3.Buckets(Path(name))
        if source.startswith(dicomweb.SCHEMES):
            store: Store = (server := dicomweb.Server(Path(name), source))
            path = server.mirror()
        else:
            store = buckets
            path = buckets.mirror(source) if is_remote(source) else Path(source)
        with _listed(source, path, params, buckets.path) as cases:
            yield in_parallel(partial(_with_remote, store=store), cases)


def read_splits(source: str) -> dict[str, Split]:
    """The official splits of a table by case or patient id: a CSV or Parquet file, a cohort's folder, or one in S3.

    Raises DataError naming table, id and value where it is none, or an id has two splits.
    """
    with tempfile.TemporaryDirectory(prefix="hepar-remote-") as name:
        path = s3.Buckets(Path(name)).mirror(source) if source.startswith(s3.SCHEME) else Path(source)
        path = path / Cohort.TABLE if path.is_dir() else path
        if not path.is_file():
            raise DataError(f"ingest.split_from {source}: there is no such table")
        frame = read_frame(path)
    column = next((name for name in ("case_id", "patient_id") if name in frame.columns), None)
    if column is None or "split" not in frame.columns:
        raise DataError(f"ingest.split_from {source}: needs columns case_id or patient_id, and split")
    splits: dict[str, Split] = {}
    for name, value in zip(frame[column], frame["split"], strict=True):
        split = parse_enum(Split, value, case_id=name, column="split")
        if splits.setdefault(name, split) != split:
            raise DataError(f"ingest.split_from {source}: {name} is in {splits[name]} and in {split}")
    return splits


def is_remote(source: str) -> bool:
    """Whether a source lies in a store or behind a server, not on a disk."""
    return source.startswith((s3.SCHEME, *dicomweb.SCHEMES))


def _with_remote(case: SourceCase, store: Store) -> SourceCase:
    """The case with the place of every file that is not here: those below the store's folder stand for such."""
    real = {path: path.resolve() for path in case.files}
    return replace(
        case, remote={path: store.remote(place) for path, place in real.items() if place.is_relative_to(store.root)}
    )


@contextmanager
def _listed(
    source: str, path: Path, params: IngestParams, elsewhere: Callable[[str], Path]
) -> Iterator[list[SourceCase]]:
    """The cases at a place of this disk."""
    if not path.exists():
        raise DataError(f"source {source}: there is no such file or folder")
    if path.is_file() and path.suffix != ".zip":
        yield read_table(path, elsewhere)
        return
    with unpacked(path) as folder:
        layout = _choose(source, folder) if params.layout == AUTO else params.layout
        if layout not in LAYOUTS:
            raise DataError(f"ingest.layout is {layout!r}, must be one of {AUTO}, {', '.join(LAYOUTS)}")
        cases = LAYOUTS[layout].read(folder, params, elsewhere)
        if not cases:
            raise DataError(f"source {source}: layout {layout} finds no case in it")
        yield cases


def _named_as_added(case: SourceCase) -> SourceCase:
    return replace(case, case_id=f"added-{case.case_id}", patient_id=f"added-{case.patient_id}")


def _choose(source: str, folder: Path) -> str:
    for name, layout in LAYOUTS.items():
        if reason := layout.recognise(folder):
            if name != "table":
                current().say(f"layout {name}: {reason}")
            return name
    raise DataError(f"source {source}: no layout is recognised; there are {', '.join(LAYOUTS)}")


@contextmanager
def _phantoms(
    params: PhantomParams, cases: int, pattern: Sequence[Labels], modalities: Sequence[Modality]
) -> Iterator[list[SourceCase]]:
    with (
        tempfile.TemporaryDirectory(prefix="hepar-phantoms-") as folder,
        current().counting(cases, "phantoms") as count,
    ):
        table = write_phantoms(
            Path(folder),
            cases=cases,
            seed=params.seed,
            size_zyx=params.size_zyx,
            progress=lambda done, total: count.advance(done),
            pattern=pattern,
            modalities=[str(modality) for modality in modalities],
        )
        yield read_table(table)
