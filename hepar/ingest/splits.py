"""Split patients into training, validation and test, and check that all models can be trained and tested."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from hepar.cases import Case, Cohort, LabelState, Modality, Split, parse_enum
from hepar.errors import DataError
from hepar.ingest.sources import s3
from hepar.ingest.sources.source import SourceCase
from hepar.ingest.sources.table import read_frame
from hepar.params import SplitParams
from hepar.runtime.s3_client import SCHEME
from hepar.runtime.scratch import scratch_folder


def split_of(patient_id: str, params: SplitParams) -> Split:
    """The split of a patient by a hash of the id alone.

    All scans of a patient share it, and it stays the same whatever joins the cohort or is labelled later.
    """
    digest = hashlib.sha256(patient_id.encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < params.test:
        return Split.TEST
    return Split.VAL if position < params.test + params.val else Split.TRAIN


def assign_splits(cases: Sequence[SourceCase], params: SplitParams) -> list[SourceCase]:
    """The cases, each with a split: its source's own, else that of `split_of`."""
    return [replace(case, split=case.split or split_of(case.patient_id, params)) for case in cases]


@dataclass(frozen=True)
class OfficialSplits:
    """Splits by case id and by patient id; a table with only one of them gives both, since a case may be a patient."""

    cases: Mapping[str, Split]
    patients: Mapping[str, Split]

    def of(self, case: SourceCase) -> Split | None:
        """The split of a case, else that of its patient; None if neither is listed."""
        return self.cases.get(case.case_id) or self.patients.get(case.patient_id)


def assign_official_splits(cases: Sequence[SourceCase], official: OfficialSplits) -> list[SourceCase]:
    """The cases with the splits that `official` gives to them or their patients; the others keep theirs.

    Raises DataError if it names no case and no patient.
    """
    splits = {case.case_id: official.of(case) for case in cases}
    if not any(splits.values()):
        raise DataError(f"ingest.split_from names no case or patient of the source, such as {cases[0].case_id}")
    return [replace(case, split=splits[case.case_id] or case.split) for case in cases]


def read_splits(source: str) -> OfficialSplits:
    """Official splits by case or patient id, from a CSV or Parquet table or a cohort's folder, on this disk or in S3.

    With both columns, a row may lack the patient. Raises DataError naming table, id and value if there is no such
    table, a value is not a split, or an id has two.
    """
    with scratch_folder("remote") as name:
        path = s3.Buckets(name).mirror(source) if source.startswith(SCHEME) else Path(source)
        path = path / Cohort.TABLE if path.is_dir() else path
        if not path.is_file():
            raise DataError(f"ingest.split_from {source}: no such table")
        frame = read_frame(path)
    columns = [name for name in ("case_id", "patient_id") if name in frame.columns]
    if not columns or "split" not in frame.columns:
        raise DataError(f"ingest.split_from {source}: needs a column split and a column case_id or patient_id")
    if not (unnamed := frame[frame[columns[0]] == ""]).empty:
        value = unnamed["split"].iloc[0]
        raise DataError(f"ingest.split_from {source}: {columns[0]} is empty in a row with split {value!r}")
    return OfficialSplits(*(_splits_by(column, frame, source) for column in (columns[0], columns[-1])))


def _splits_by(column: str, frame: pd.DataFrame, source: str) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    for name, value in zip(frame[column], frame["split"], strict=True):
        split = parse_enum(Split, value, case_id=name, column="split")
        if name and splits.setdefault(name, split) != split:
            raise DataError(f"ingest.split_from {source}: {name} is in both {splits[name]} and {split}")
    return splits


def check_trainable(cases: Sequence[Case], modalities: Sequence[Modality]) -> None:
    """Raise DataError naming what is missing if the teachers or the universal model cannot be trained and tested.

    Each of `modalities` needs a teacher.
    """
    for modality in modalities:
        members = [case for case in cases if case.modality == modality]
        if not members:
            raise DataError(
                f"the cohort has no {modality} case, but modalities is {', '.join(modalities)}: each needs a liver"
                " teacher"
            )
        if not any(case.split == Split.TRAIN and case.liver_state == LabelState.MANUAL for case in members):
            raise DataError(
                f"the cohort has no {modality} training case with a manual liver: its teacher cannot be trained"
            )
        if not any(case.split == Split.TEST and case.liver_state == LabelState.MANUAL for case in members):
            raise DataError(f"the cohort has no {modality} test case with a manual liver: nothing to evaluate on")
    if not any(case.split == Split.TRAIN and case.tumour_state == LabelState.MANUAL for case in cases):
        raise DataError("the cohort has no training case with a manual tumour: nothing to learn tumours from")
