"""The pool and its table: one entry per case, with the label of liver and tumour, its weight and its provenance.

A pool is this table (`pool.parquet`), the preprocessing plan (`plan.json`), the preprocessed arrays of each case
(`cases/<case>`), and a datasheet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from hepar.cases import LabelState, Modality, Split
from hepar.errors import ArtifactError, one_line
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.pool.arrays import PreprocessedArrays
from hepar.runtime.artifacts import MANIFEST, write_json
from hepar.runtime.fetching import fetch_into, fetched
from hepar.runtime.journal import finish_replacing
from hepar.runtime.scratch import scratch_folder
from hepar.runtime.stored_files import read_stored
from hepar.runtime.verification import verify_artifact
from hepar.runtime.whole_files import write_bytes

# far above those of any pool
MAX_ARRAY_BYTES, MAX_TABLE_BYTES, MAX_PICTURE_BYTES = 2**34, 2**30, 2**26


@dataclass(frozen=True)
class LiverRecord:
    """The label of the liver."""

    state: LabelState
    weight: float  # how much it is trusted: 1 for a manual mask, 0 for none
    mask_sha256: str = ""  # of the mask file; empty without one
    volume_ml: float = 0.0  # of the target; 0 without a mask
    teacher: str = ""  # hash of the model that predicted a pseudo-liver, else empty
    gate: str = ""  # outcome of the gates or of a review; empty for a liver from the cohort
    reasons: str = ""  # of the gates; empty if accepted
    review: str = ""  # who decided what, and when; empty without a review


@dataclass(frozen=True)
class TumourRecord:
    """The label of the tumours."""

    state: LabelState
    weight: float  # how much it is trusted; if the tumour is unknown, how much its absence outside the liver is trusted
    mask_sha256: str = ""  # of the mask file; empty without one
    volume_ml: float = 0.0  # of the target; 0 without a mask
    lesion_diameters_mm: tuple[float, ...] = ()  # equivalent diameters, ascending


@dataclass(frozen=True)
class Provenance:
    """Where a case comes from."""

    source: str
    sequence: str
    licence: str
    image_sha256: str


@dataclass(frozen=True)
class ArraysRecord:
    """The preprocessed arrays of a case."""

    folder: str  # relative to the pool
    key: str  # hash of everything they depend on
    sha256: str = ""  # hash of their content
    known_share: float = 0.0  # mean weight over all voxels and both structures; at 0 the case is not trained on


@dataclass(frozen=True)
class PoolEntry:
    """One case of a pool."""

    case_id: str
    patient_id: str
    split: Split
    modality: Modality
    liver: LiverRecord
    tumour: TumourRecord
    provenance: Provenance
    arrays: ArraysRecord

    @property
    def group(self) -> str:
        """The sampling group: cases of one modality and source share its patches."""
        return f"{self.modality}/{self.provenance.source}"


COLUMNS: Mapping[str, tuple[str, ...]] = {  # of the table: the attributes that lead to the value in an entry
    "case_id": ("case_id",),
    "patient_id": ("patient_id",),
    "source": ("provenance", "source"),
    "modality": ("modality",),
    "sequence": ("provenance", "sequence"),
    "split": ("split",),
    "liver_state": ("liver", "state"),
    "tumour_state": ("tumour", "state"),
    "liver_weight": ("liver", "weight"),
    "tumour_weight": ("tumour", "weight"),
    "liver_mask_sha256": ("liver", "mask_sha256"),
    "tumour_mask_sha256": ("tumour", "mask_sha256"),
    "teacher": ("liver", "teacher"),
    "gate": ("liver", "gate"),
    "reasons": ("liver", "reasons"),
    "review": ("liver", "review"),
    "liver_ml": ("liver", "volume_ml"),
    "tumour_ml": ("tumour", "volume_ml"),
    "known_share": ("arrays", "known_share"),
    "lesion_diameters_mm": ("tumour", "lesion_diameters_mm"),
    "licence": ("provenance", "licence"),
    "image_sha256": ("provenance", "image_sha256"),
    "folder": ("arrays", "folder"),
    "sha256": ("arrays", "sha256"),
    "key": ("arrays", "key"),
}
_TYPES: Mapping[str, Any] = {
    "modality": Modality,
    "split": Split,
    "liver_state": LabelState,
    "tumour_state": LabelState,
    "lesion_diameters_mm": lambda values: tuple(float(value) for value in values),
}
_RECORDS: Mapping[str, Any] = {
    "liver": LiverRecord,
    "tumour": TumourRecord,
    "provenance": Provenance,
    "arrays": ArraysRecord,
}


@dataclass(frozen=True)
class Pool:
    """A pool on disk: its folder, preprocessing plan and entries."""

    folder: Path
    plan: PreprocessingPlan
    entries: tuple[PoolEntry, ...]

    KIND = "pool"
    TABLE = "pool.parquet"
    PLAN = "plan.json"
    CASES = "cases"  # folder of the preprocessed arrays
    DATASHEET, PICTURES = "README.md", "pictures"
    REVIEWS = "reviews"  # among its parents: the hash of the decisions that count
    REQUIRED = (TABLE, PLAN)

    def arrays(self, entry: PoolEntry) -> PreprocessedArrays:
        """The preprocessed arrays of one case, on disk. Raises ArtifactError if they are missing or damaged."""
        return PreprocessedArrays.open(self.folder / entry.arrays.folder)

    @contextmanager
    def local_arrays(self, entry: PoolEntry) -> Iterator[PreprocessedArrays]:
        """The preprocessed arrays of one case, fetched for as long as the context lasts if they are in the store."""
        files = [self.folder / name for name in self.array_files(entry)]
        with fetched(*files) as here:
            yield PreprocessedArrays.open(here[files[0]].parent)

    @contextmanager
    def local(self) -> Iterator[Pool]:
        """The pool with the arrays of all its entries on this disk: itself, or, if it is by reference, a temporary one.

        Raises StorageError if the store fails or the disk has no room.
        """
        if not read_stored(self.folder).files:
            yield self
            return
        names = [name for entry in self.entries for name in self.array_files(entry)]
        with scratch_folder("pool") as scratch:
            fetch_into(scratch, self.folder, names)
            yield replace(self, folder=scratch)

    @staticmethod
    def array_files(entry: PoolEntry) -> tuple[str, ...]:
        """Paths in the pool of the files with the preprocessed arrays of a case."""
        return tuple(f"{entry.arrays.folder}/{name}" for name in PreprocessedArrays.FILES)

    @classmethod
    def max_bytes(cls, name: str) -> int | None:
        """How large a file of a pool may be, by its path in it; None if a pool holds no such file."""
        folder, _, last = name.rpartition("/")
        if folder:
            arrays, picture = last in PreprocessedArrays.FILES, folder == cls.PICTURES and last.endswith(".png")
            return MAX_ARRAY_BYTES if arrays else MAX_PICTURE_BYTES if picture else None
        return MAX_TABLE_BYTES if name in (cls.TABLE, cls.PLAN, cls.DATASHEET, MANIFEST) else None

    def select(self, split: Split, also_unknown: bool = False) -> tuple[PoolEntry, ...]:
        """The entries of a split with anything known; all entries of the split with `also_unknown`."""
        return tuple(
            entry for entry in self.entries if entry.split == split and (also_unknown or entry.arrays.known_share > 0)
        )

    def verify(self) -> None:
        """Checks every file. Raises ArtifactError naming the first one that is damaged."""
        verify_artifact(self.folder, self.KIND)

    def save(self) -> None:
        """Writes table and plan; the same entries give the same bytes, in whatever order."""
        rows = [entry_row(entry) for entry in sorted(self.entries, key=lambda entry: entry.case_id)]
        write_bytes(self.folder / self.TABLE, pd.DataFrame(rows, columns=list(COLUMNS)).to_parquet(index=False))
        write_json(self.folder / self.PLAN, self.plan.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> Pool:
        """Reads a pool. Raises ArtifactError if it is incomplete or damaged."""
        finish_replacing(folder)
        if not (folder / cls.TABLE).is_file() or not (folder / cls.PLAN).is_file():
            raise ArtifactError(f"{folder} is not a pool: {cls.TABLE} or {cls.PLAN} is missing")
        try:
            rows = pd.read_parquet(folder / cls.TABLE).to_dict(orient="records")
            plan = PreprocessingPlan.model_validate(json.loads((folder / cls.PLAN).read_text()))
            return cls(folder, plan, tuple(entry_from_row({str(k): v for k, v in row.items()}) for row in rows))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{folder} is damaged, or of another version of hepar: {one_line(error)}") from None


def entry_row(entry: PoolEntry) -> dict[str, Any]:
    """The row of the table for an entry."""
    row: dict[str, Any] = {}
    for column, path in COLUMNS.items():
        value: Any = entry
        for name in path:
            value = getattr(value, name)
        row[column] = list(value) if isinstance(value, tuple) else str(value) if column in _TYPES else value
    return row


def entry_from_row(row: Mapping[str, Any]) -> PoolEntry:
    """The entry for a row of the table. Raises KeyError, TypeError or ValueError if a column is missing or invalid."""
    values: dict[str, Any] = {}
    records: dict[str, dict[str, Any]] = {name: {} for name in _RECORDS}
    for column, path in COLUMNS.items():
        value = _TYPES[column](row[column]) if column in _TYPES else row[column]
        (values if len(path) == 1 else records[path[0]])[path[-1]] = value
    return PoolEntry(**values, **{name: make(**records[name]) for name, make in _RECORDS.items()})
