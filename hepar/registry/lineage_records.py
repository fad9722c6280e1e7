"""What a training logs about its inputs, so that lineage can be told from the tracking server when folders are gone.

In the folder `lineage` of the MLflow run lie, for each input, its kind, hash and parents as JSON and, for a cohort or a
pool, its cases as CSV: ids, label states, hashes and licences, but neither voxels nor patients nor headers; for a
cohort also the ids of the cases that ingest refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from hepar.cases import Case, Cohort, Modality, cases_frame
from hepar.inference.model_folder import ModelFolder
from hepar.ingest.quarantine import read_quarantine
from hepar.pool.table import Pool, entry_row
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.runtime.artifacts import (
    MANIFEST,
    Manifest,
    as_parents_of_parent,
    parents_of_parent,
    read_any_manifest,
    write_json,
)
from hepar.runtime.csv_cells import frame_from_csv, frame_to_csv
from hepar.runtime.whole_files import write_text

LINEAGE = "lineage"  # the folder in an MLflow run
CASE = "case_id"
TABLES: Mapping[str, Mapping[str, str]] = {  # the columns by kind, each with the column of the artifact's own table
    Cohort.KIND: {
        **{name: name for name in ("case_id", "source", "licence", "modality", "split", "liver_state", "tumour_state")},
        **{name: name for name in ("image_sha256", "liver_sha256", "tumour_sha256", "source_sha256")},
    },
    Pool.KIND: {
        **{name: name for name in ("case_id", "source", "licence", "modality", "split", "liver_state", "tumour_state")},
        **{"image_sha256": "image_sha256", "liver_sha256": "liver_mask_sha256", "tumour_sha256": "tumour_mask_sha256"},
        **{"teacher": "teacher", "gate": "gate"},
    },
}
_TEACHERS = {PseudoLabels.teacher(modality): ModelFolder.KIND for modality in Modality}
_LINKS = {  # the parents that are artifacts, with their kinds
    **{kind: kind for kind in (Cohort.KIND, PseudoLabels.KIND, Pool.KIND, Pool.REVIEWS, ModelFolder.KIND)},
    **_TEACHERS,
    ModelFolder.WARM_START: ModelFolder.KIND,
}


@dataclass(frozen=True)
class Record:
    """What is known about an artifact, wherever it is now: the first three entries of its manifest."""

    kind: str
    hash: str
    parents: Mapping[str, str]

    @classmethod
    def of(cls, manifest: Manifest) -> Record:
        return cls(manifest.kind, manifest.hash, manifest.parents)

    @property
    def links(self) -> dict[str, tuple[str, str]]:
        """The artifacts that it was made from, by their part in it: kind and hash."""
        kinds = {name: ModelFolder.KIND for name in self.parents if ModelFolder.is_member(name)} | _LINKS
        return {name: (kinds[name], value) for name, value in self.parents.items() if name in kinds}

    @property
    def facts(self) -> dict[str, str]:
        """The parents that are no artifacts, such as the role of a model and the DVC version of its pool."""
        kinds = {kind for kind, _ in self.links.values()}
        inherited = {
            name for kind in kinds for name in as_parents_of_parent(kind, parents_of_parent(kind, self.parents))
        }
        return {name: value for name, value in self.parents.items() if name not in {*self.links, *inherited}}

    @property
    def implied(self) -> tuple[Record, ...]:
        """What it tells about its parents: a pool names the teachers of its pseudo-labels."""
        told = {name: parents_of_parent(kind, self.parents) for name, (kind, _) in self.links.items() if name == kind}
        return tuple(Record(name, self.parents[name], parents) for name, parents in told.items() if parents)


def case_table(folder: Path, kind: str) -> pd.DataFrame | None:
    """The cases of a cohort or a pool, with the columns of `TABLES`, all texts; None for another kind.

    Raises DataError or ArtifactError if the table of the folder is missing or damaged.
    """
    if kind == Cohort.KIND:
        return cohort_table(Cohort.load(folder).cases)
    if kind == Pool.KIND:
        return _as_texts(pd.DataFrame([entry_row(entry) for entry in Pool.load(folder).entries]), kind)
    return None


def cohort_table(cases: Sequence[Case]) -> pd.DataFrame:
    """The cases of a cohort as `case_table` has them."""
    return _as_texts(cases_frame(cases), Cohort.KIND)


def _as_texts(frame: pd.DataFrame, kind: str) -> pd.DataFrame:
    return pd.DataFrame({name: frame[own].astype(str) for name, own in TABLES[kind].items()})


def refused_cases(folder: Path, kind: str) -> tuple[str, ...] | None:
    """The ids of the cases that ingest refused; None for another kind than a cohort, or without a quarantine list."""
    path = folder / Cohort.QUARANTINE
    return tuple(line.case_id for line in read_quarantine(path)) if kind == Cohort.KIND and path.is_file() else None


def write_records(inputs: Sequence[Path], folder: Path) -> None:
    """Write the records of artifacts, and their tables of cases, into `folder`; the same artifacts give the same bytes.

    A path that is no artifact is left out.
    """
    for place in inputs:
        if not (place / MANIFEST).is_file():
            continue
        record = Record.of(read_any_manifest(place))
        write_json(folder / f"{_stem(record.kind, record.hash)}.json", asdict(record))
        if (table := case_table(place, record.kind)) is not None:
            write_text(folder / f"{_stem(record.kind, record.hash)}.csv", frame_to_csv(table))
        if (refused := refused_cases(place, record.kind)) is not None:
            write_text(folder / _refused_file(record.hash), frame_to_csv(pd.DataFrame({CASE: refused})))


@dataclass(frozen=True)
class LoggedRecords:
    """Copies of what lies in the folder `lineage` of an MLflow run."""

    folder: Path  # that holds them, at any depth: MLflow's stores differ in where they put a file

    def records(self) -> list[Record]:
        """All records; a file that is none is left out."""
        found = []
        for path in sorted(self.folder.rglob("*.json")):
            try:
                found.append(Record(**json.loads(path.read_text())))
            except (ValueError, TypeError):
                continue
        return found

    def table(self, kind: str, artifact_hash: str) -> pd.DataFrame | None:
        """The table of cases of an artifact; None without one."""
        if kind not in TABLES:
            return None
        found = sorted(self.folder.rglob(f"{_stem(kind, artifact_hash)}.csv"))
        return frame_from_csv(found[0].read_text(), tuple(TABLES[kind])) if found else None

    def refused(self, kind: str, artifact_hash: str) -> tuple[str, ...] | None:
        """The ids of the cases that ingest refused; None for another kind than a cohort, or if they were not logged."""
        found = sorted(self.folder.rglob(_refused_file(artifact_hash))) if kind == Cohort.KIND else []
        return tuple(frame_from_csv(found[0].read_text(), (CASE,))[CASE]) if found else None


def _refused_file(cohort_hash: str) -> str:
    return f"{_stem(Cohort.KIND, cohort_hash)}-refused.csv"


def _stem(kind: str, artifact_hash: str) -> str:
    return f"{kind}-{artifact_hash[:12]}"
