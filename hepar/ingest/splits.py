"""Split patients into training, validation and test, and check that all models can be trained and tested."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

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


def assign_official_splits(cases: Sequence[SourceCase], official: Mapping[str, Split]) -> list[SourceCase]:
    """The cases with the splits that `official` gives to their ids or their patients' ids; the others keep theirs.

    Raises DataError if it names no case and no patient.
    """
    splits = {case.case_id: official.get(case.case_id, official.get(case.patient_id)) for case in cases}
    if not any(splits.values()):
        raise DataError(f"ingest.split_from names no case or patient of the source, such as {cases[0].case_id}")
    return [replace(case, split=splits[case.case_id] or case.split) for case in cases]


def read_splits(source: str) -> dict[str, Split]:
    """Official splits by case or patient id, from a CSV or Parquet table or a cohort's folder, on this disk or in S3.

    Raises DataError naming table, id and value if there is no such table, a value is not a split, or an id has two.
    """
    with scratch_folder("remote") as name:
        path = s3.Buckets(name).mirror(source) if source.startswith(SCHEME) else Path(source)
        path = path / Cohort.TABLE if path.is_dir() else path
        if not path.is_file():
            raise DataError(f"ingest.split_from {source}: no such table")
        frame = read_frame(path)
    column = next((name for name in ("case_id", "patient_id") if name in frame.columns), None)
    if column is None or "split" not in frame.columns:
        raise DataError(f"ingest.split_from {source}: needs a column split and a column case_id or patient_id")
    splits: dict[str, Split] = {}
    for name, value in zip(frame[column], frame["split"], strict=True):
        if not name:
            raise DataError(f"ingest.split_from {source}: {column} is empty in a row with split {value!r}")
        split = parse_enum(Split, value, case_id=name, column="split")
        if splits.setdefault(name, split) != split:
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
