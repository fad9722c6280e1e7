"""Folds of the training and validation patients of a cohort table.

The patients of the table's own test split belong to no fold, and no file of theirs is in the table of the folds.
"""

from __future__ import annotations

import csv
import hashlib
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from hepar.cases import STRUCTURES, LabelState, Split, parse_enum
from hepar.errors import DataError
from hepar.ingest.sources.table import REQUIRED, read_frame
from hepar.ingest.splits import split_of
from hepar.params import SplitParams
from hepar.runtime.s3_client import SCHEME

Row = Mapping[str, str]
TUMOUR, TUMOUR_FREE, UNKNOWN = "tumour", "tumour-free", "unknown"


@dataclass(frozen=True)
class Patient:
    """All scans of a patient, as rows of the table, and their split in it."""

    patient_id: str
    split: Split
    scans: tuple[Row, ...]

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(sorted({scan["modality"] for scan in self.scans}))

    @property
    def finding(self) -> str:
        """`tumour` if a scan has a tumour mask, else `tumour-free` if an expert found none, else `unknown`."""
        states = {scan["tumour_state"] for scan in self.scans}
        if LabelState.MANUAL in states:
            return TUMOUR
        return TUMOUR_FREE if LabelState.ABSENT in states else UNKNOWN

    @property
    def has_liver(self) -> bool:
        return any(scan["liver_state"] == LabelState.MANUAL for scan in self.scans)

    @property
    def is_testable(self) -> bool:
        """Whether anything is known that a prediction can be scored by."""
        return self.has_liver or self.finding != UNKNOWN

    @property
    def is_fully_labelled(self) -> bool:
        """Whether liver and tumour are known in every scan."""
        return all(
            scan["liver_state"] == LabelState.MANUAL and scan["tumour_state"] != LabelState.UNKNOWN
            for scan in self.scans
        )

    @property
    def stratum(self) -> tuple[tuple[str, ...], str, bool]:
        return self.modalities, self.finding, self.has_liver

    @property
    def rank(self) -> bytes:
        """A random order that depends on the id alone."""
        return hashlib.sha256(self.patient_id.encode()).digest()


def read_patients(table: Path, split: SplitParams) -> list[Patient]:
    """The patients of a table, ordered by id. Where it names no split, it is that of `hepar ingest`.

    Raises DataError if the table cannot be read, lacks a column, or has a patient in two splits.
    """
    frame = read_frame(table)
    if missing := [name for name in REQUIRED if name not in frame.columns]:
        raise DataError(f"{table}: column {missing[0]} is missing")
    grouped: dict[str, list[Row]] = defaultdict(list)
    for record in frame.to_dict(orient="records"):
        row = {str(name): str(value) for name, value in record.items()}
        grouped[row.get("patient_id") or row["case_id"]].append(row)
    return [Patient(name, _split(name, rows, split), tuple(rows)) for name, rows in sorted(grouped.items())]


def assign_folds(patients: Sequence[Patient], folds: int) -> dict[str, int]:
    """The fold, from 1, in which each patient outside the original test split is tested.

    Each stratum (modality, finding, with a manual liver or without) is dealt evenly, largest first; of equally filled
    folds, the one with the fewest patients of the modality comes next. Patients without any label have no fold: they
    are always trained on. Raises DataError if there are fewer than two folds or fewer patients than folds.
    """
    strata: dict[tuple[tuple[str, ...], str, bool], list[Patient]] = defaultdict(list)
    for patient in patients:
        if patient.split != Split.TEST and patient.is_testable:
            strata[patient.stratum].append(patient)
    labelled = sum(map(len, strata.values()))
    if folds < 2 or labelled < folds:
        raise DataError(
            f"folds is {folds} but must be at least 2 and at most {labelled}, the labelled patients outside the test"
            " split"
        )
    fold_of: dict[str, int] = {}
    in_modality: Counter[tuple[tuple[str, ...], int]] = Counter()
    in_fold: Counter[int] = Counter()
    for stratum, members in sorted(strata.items(), key=lambda item: (-len(item[1]), item[0])):
        in_stratum: Counter[int] = Counter()
        for patient in sorted(members, key=lambda member: member.rank):
            fold = min(
                range(1, folds + 1),
                key=lambda k: (in_stratum[k], in_modality[stratum[0], k], in_fold[k], k),
            )
            fold_of[patient.patient_id] = fold
            in_stratum[fold] += 1
            in_modality[stratum[0], fold] += 1
            in_fold[fold] += 1
    return fold_of


def split_fold(patients: Sequence[Patient], fold_of: Mapping[str, int], fold: int, folds: int) -> dict[str, Split]:
    """The split of each patient outside the original test split when `fold` is tested.

    Validation takes fully labelled patients of the next fold, in each modality in the proportion of the table. Where
    two or more with a tumour are left, one of them is in validation, from a later fold if need be, and so with
    tumour-free ones; the last one of a kind is trained on.
    """
    rest = [patient for patient in patients if patient.split != Split.TEST]
    splits = {
        patient.patient_id: Split.TEST if fold_of.get(patient.patient_id) == fold else Split.TRAIN for patient in rest
    }
    left = [patient for patient in rest if splits[patient.patient_id] == Split.TRAIN]

    def distance(patient: Patient) -> tuple[int, bytes]:
        return (fold_of[patient.patient_id] - fold - 1) % folds, patient.rank

    for modality in sorted({name for patient in rest for name in patient.modalities}):
        members = [patient for patient in left if modality in patient.modalities]
        usable = sorted((p for p in members if p.is_fully_labelled), key=distance)
        chosen = [patient for patient in usable if splits[patient.patient_id] == Split.VAL]
        spare: dict[str, list[Patient]] = {}
        for finding in (TUMOUR, TUMOUR_FREE):
            same = [patient for patient in usable if patient.finding == finding]
            spare[finding] = same[: len(same) - 1]
            if spare[finding] and not any(patient.finding == finding for patient in chosen):
                chosen.append(spare[finding][0])
        wanted = round(_validation_share(rest, modality) * len(members))
        further = sorted((p for kind in spare.values() for p in kind if p not in chosen), key=distance)
        chosen += [p for p in further if distance(p)[0] == 0][: max(0, wanted - len(chosen))]
        splits.update({patient.patient_id: Split.VAL for patient in chosen})
    return splits


def table_of(patients: Iterable[Patient], table: str) -> str:
    """The rows of these patients as CSV, with absolute places of their files, so that it may lie anywhere.

    `table` is the path or `s3://` address of the table that they are from. There must be a patient.
    """
    rows = [
        {name: _absolute(value, table) if name in ("image", *STRUCTURES) else value for name, value in scan.items()}
        for patient in patients
        for scan in patient.scans
    ]
    return _csv(rows)


def splits_as_csv(patients: Iterable[Patient], splits: Mapping[str, Split]) -> str:
    """A split table for `ingest.split_from`, one row per scan of a patient in `splits`."""
    return _csv(
        [
            {"case_id": scan["case_id"], "split": str(splits[patient.patient_id])}
            for patient in patients
            if patient.patient_id in splits
            for scan in patient.scans
        ]
    )


def split_tables(patients: Sequence[Patient], folds: int) -> dict[int, str]:
    """The split table of each fold, by its number from 1. Raises DataError as `assign_folds`."""
    fold_of = assign_folds(patients, folds)
    return {
        number: splits_as_csv(patients, split_fold(patients, fold_of, number, folds)) for number in range(1, folds + 1)
    }


def _split(patient_id: str, rows: Sequence[Row], split: SplitParams) -> Split:
    found = {
        parse_enum(Split, row["split"], row["case_id"], "split") if row.get("split") else split_of(patient_id, split)
        for row in rows
    }
    if len(found) > 1:
        raise DataError(f"patient {patient_id} is in the splits {', '.join(sorted(found))}")
    (only,) = found
    return Split(only)


def _validation_share(patients: Sequence[Patient], modality: str) -> float:
    """The fraction of validation patients in the table, of those of a modality outside the test split."""
    members = [patient for patient in patients if modality in patient.modalities]
    return sum(patient.split == Split.VAL for patient in members) / len(members)


def _absolute(cell: str, table: str) -> str:
    if not cell or cell.startswith(SCHEME):
        return cell
    if table.startswith(SCHEME):
        return SCHEME + posixpath.normpath(posixpath.join(posixpath.dirname(table.removeprefix(SCHEME)), cell))
    return str((Path(table).parent / cell).resolve())


def _csv(rows: Sequence[Row]) -> str:
    text = StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
