"""Where cases come from: one reader per layout of a source, each returning `SourceCase`s."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from hepar.cases import Modality
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
from hepar.ingest.sources.files import is_zip
from hepar.ingest.sources.pseudonyms import patient_key
from hepar.ingest.sources.source import SourceCase
from hepar.ingest.sources.table import read_table
from hepar.params import IngestParams, PhantomParams, Uneven
from hepar.phantoms import FULLY_LABELLED, CohortDesign, write_phantoms
from hepar.phantoms.cohort import TABLE
from hepar.runtime.progress import current_stage
from hepar.runtime.redaction import redact_address
from hepar.runtime.remote_cache import RemoteFile, in_parallel
from hepar.runtime.s3_client import SCHEME
from hepar.runtime.scratch import scratch_folder

PHANTOMS = "phantoms"
AUTO = "auto"
Locate = Callable[[str], Path]  # from an `s3://` address to its local path
Read = Callable[[Path, IngestParams, Locate], list[SourceCase]]

__all__ = ["AUTO", "LAYOUTS", "PHANTOMS", "Layout", "SourceCase", "check_layout", "is_remote", "open_source"]


class SourceStore(Protocol):
    """A local folder whose files stand for those of a store."""

    root: Path

    def remote(self, path: Path) -> RemoteFile: ...


@dataclass(frozen=True)
class Layout:
    """A layout of a source. `recognise` returns what it recognised in a folder, an empty string if nothing."""

    recognise: Callable[[Path], str]
    read: Read


def _plain(read: Callable[[Path], list[SourceCase]]) -> Read:
    return lambda folder, params, locate: read(folder)


def _with_slices(read: Callable[[Path, Uneven], list[SourceCase]]) -> Read:
    return lambda folder, params, locate: read(folder, params.uneven_slices)


def _read_dicom(folder: Path, params: IngestParams, locate: Locate) -> list[SourceCase]:
    return dicom_tree.read(folder, dicom_tree.Reading(patient_key(), params.uneven_slices, params.empty_roi))


def _has_table(folder: Path) -> str:
    return f"a table {TABLE}" if (folder / TABLE).is_file() else ""


# in the order in which `auto` tries them: the most specific first
LAYOUTS = {
    "table": Layout(_has_table, lambda folder, params, locate: read_table(folder / TABLE, locate)),
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
    "dicom": Layout(dicom_tree.recognise, _read_dicom),
}


@contextmanager
def open_source(source: str, params: IngestParams) -> Iterator[list[SourceCase]]:
    """The cases of a source: a table, a folder or zip, an `s3://` or `dicomweb+https://` address, or `phantoms`.

    With `params.added_phantoms` phantoms join the training patients of any other source. Unpacked or generated files
    last as long as the context. Raises DataError if the source is missing or empty, or if its layout is not recognised.
    """
    phantoms = params.phantoms
    with ExitStack() as stack:
        if source == PHANTOMS:
            design = CohortDesign() if phantoms.labels == "partial" else CohortDesign().revealed()
            yield stack.enter_context(_phantoms(phantoms, phantoms.cases, design))
            return
        cases = stack.enter_context(_opened(source, params))
        # another seed, so that they differ from phantoms in the source
        others = phantoms.model_copy(update={"seed": phantoms.seed + 1})
        for modality, count in ((Modality.CT, params.added_phantoms.CT), (Modality.MR, params.added_phantoms.MR)):
            if count:
                added = stack.enter_context(_phantoms(others, count, CohortDesign(FULLY_LABELLED, (str(modality),))))
                cases = [*cases, *(_named_as_added(case) for case in added)]
        yield cases


@contextmanager
def _opened(source: str, params: IngestParams) -> Iterator[list[SourceCase]]:
    with scratch_folder("remote") as name:
        buckets = s3.Buckets(name)
        if source.startswith(dicomweb.SCHEMES):
            store: SourceStore = (server := dicomweb.Server(name, source))
            path = server.mirror()
        else:
            store = buckets
            path = buckets.mirror(source) if is_remote(source) else Path(source)
        with _read(source, path, params, buckets.path) as cases:
            yield in_parallel(partial(_with_remote, store=store), cases)


def check_layout(layout: str) -> None:
    """Raise DataError for a layout that is neither known nor `auto`."""
    if layout not in (AUTO, *LAYOUTS):
        raise DataError(f"ingest.layout is {layout!r} but must be one of {AUTO}, {', '.join(LAYOUTS)}")


def is_remote(source: str) -> bool:
    """Whether a source lies in a store or behind a server, not on this disk."""
    return source.startswith((SCHEME, *dicomweb.SCHEMES))


def _with_remote(case: SourceCase, store: SourceStore) -> SourceCase:
    """The case with the remote file of each of its placeholders, which lie below the store's folder."""
    resolved = {path: _resolved(path) for path in case.files}
    return replace(
        case, remote={path: store.remote(real) for path, real in resolved.items() if real.is_relative_to(store.root)}
    )


def _resolved(path: Path) -> Path:
    """Where a path leads; itself if no file can have this name, which reading refuses."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # RuntimeError: links in a circle
        return path


@contextmanager
def _read(source: str, path: Path, params: IngestParams, locate: Locate) -> Iterator[list[SourceCase]]:
    """The cases of a local table, folder or zip."""
    if not path.exists():
        raise DataError(f"source {redact_address(source)}: no such file or folder")
    if path.is_file() and not is_zip(path):
        yield read_table(path, locate)
        return
    with unpacked(path) as opened:
        folder = opened.folder
        layout = _choose(source, folder) if params.layout == AUTO else params.layout
        check_layout(layout)
        cases = LAYOUTS[layout].read(folder, params, locate)
        if not cases:
            raise DataError(f"source {redact_address(source)}: no cases found for layout {layout}")
        yield [*(_confined(case, (folder, path)) for case in cases), *opened.refused]


def _confined(case: SourceCase, roots: tuple[Path, ...]) -> SourceCase:
    """The case with the folders that its files must not leave, besides those that its reader named.

    A source with a zip inside is read from a folder of links to it, so that its files lie in either of the two.
    """
    return case if case.fault else replace(case, roots=(*case.roots, *roots))


def _named_as_added(case: SourceCase) -> SourceCase:
    return replace(case, case_id=f"added-{case.case_id}", patient_id=f"added-{case.patient_id}")


def _choose(source: str, folder: Path) -> str:
    for name, layout in LAYOUTS.items():
        if reason := layout.recognise(folder):
            if name != "table":
                current_stage().log(f"layout {name}: {reason}")
            return name
    raise DataError(f"source {redact_address(source)}: layout not recognised; known layouts: {', '.join(LAYOUTS)}")


@contextmanager
def _phantoms(params: PhantomParams, cases: int, design: CohortDesign) -> Iterator[list[SourceCase]]:
    with (
        scratch_folder("phantoms") as folder,
        current_stage().counting(cases, "phantoms") as count,
    ):
        table = write_phantoms(
            folder,
            cases=cases,
            seed=params.seed,
            size_zyx=params.size_zyx,
            design=design,
            progress=lambda done, total: count.advance(done),
        )
        yield read_table(table)
