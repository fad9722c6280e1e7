"""Where cases come from: one reader per source layout, each giving the same `SourceCase`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hepar.cases import Modality
from hepar.errors import DataError
from hepar.params import IngestParams, PhantomParams
from hepar.phantoms import PATTERN, TEACHING, Labels, write_phantoms
from hepar.progress import current
from hepar.readers import bids, chaos, dicom_tree, ircadb, lits, nnunet, pairs, totalsegmentator
from hepar.readers.archive import unpacked
from hepar.readers.keys import patient_key
from hepar.readers.source import SourceCase
from hepar.readers.table import read_table

PHANTOMS = "phantoms"
TABLE = "cohort.csv"
AUTO = "auto"

__all__ = ["AUTO", "LAYOUTS", "PHANTOMS", "Layout", "SourceCase", "open_source"]


@dataclass(frozen=True)
class Layout:
    """How a source may be laid out. `recognise` says in words what speaks for it; an empty string is no."""

    recognise: Callable[[Path], str]
    read: Callable[[Path, IngestParams], list[SourceCase]]


def _plain(read: Callable[[Path], list[SourceCase]]) -> Callable[[Path, IngestParams], list[SourceCase]]:
    return lambda folder, params: read(folder)


def _read_dicom(folder: Path, params: IngestParams) -> list[SourceCase]:
    return dicom_tree.read(folder, patient_key(), params.uneven_slices)


def _has_table(folder: Path) -> str:
    return f"it holds {TABLE}" if (folder / TABLE).is_file() else ""


# in the order in which `auto` asks: what is told by more precise signs comes first
LAYOUTS = {
    "table": Layout(_has_table, lambda folder, params: read_table(folder / TABLE)),
    "msd-liver": Layout(pairs.MSD_LIVER.recognise, _plain(pairs.MSD_LIVER.read)),
    "msd-hepatic-vessel": Layout(pairs.MSD_VESSEL.recognise, _plain(pairs.MSD_VESSEL.read)),
    "amos": Layout(pairs.AMOS.recognise, _plain(pairs.AMOS.read)),
    "atlas": Layout(pairs.ATLAS.recognise, _plain(pairs.ATLAS.read)),
    "nnunet": Layout(nnunet.recognise, _plain(nnunet.read)),
    "lits": Layout(lits.recognise, _plain(lits.read)),
    "totalsegmentator": Layout(totalsegmentator.recognise, _plain(totalsegmentator.read)),
    "bids": Layout(bids.recognise, _plain(bids.read)),
    "chaos": Layout(chaos.recognise, lambda folder, params: chaos.read(folder, params.uneven_slices)),
    "ircadb": Layout(ircadb.recognise, lambda folder, params: ircadb.read(folder, params.uneven_slices)),
    "dicom": Layout(dicom_tree.recognise, _read_dicom),
}


@contextmanager
def open_source(source: str, params: IngestParams) -> Iterator[list[SourceCase]]:
    """The cases of a source: a table, a folder or zip of a known layout, or the word `phantoms`.

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
    path = Path(source)
    if not path.exists():
        raise DataError(f"source {source}: there is no such file or folder")
    if path.is_file() and path.suffix != ".zip":
        yield read_table(path)
        return
    with unpacked(path) as folder:
        layout = _choose(source, folder) if params.layout == AUTO else params.layout
        if layout not in LAYOUTS:
            raise DataError(f"ingest.layout is {layout!r}, must be one of {AUTO}, {', '.join(LAYOUTS)}")
        cases = LAYOUTS[layout].read(folder, params)
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
