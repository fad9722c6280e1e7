"""Scores of cases as `cases.csv` of a report holds them, and the pairing of two such tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import pandas as pd

from hepar.cases import STRUCTURES, check_case_ids
from hepar.errors import DataError, one_line
from hepar.evaluation.label_pairs import CaseIdentity
from hepar.evaluation.report_folder import Report
from hepar.runtime.artifacts import MANIFEST
from hepar.runtime.csv_cells import frame_from_csv

SAME_VOLUME = 1e-3  # relative; the same mask has the same volume but for rounding in headers


@dataclass(frozen=True)
class ScoredRow:
    """The scores of a case by column; what is undefined or not scored is left out."""

    identity: CaseIdentity
    values: Mapping[str, float]


@dataclass(frozen=True)
class ScoreTable:
    """A named table of scores, one row per case, by case id. `facts` are those of its report, as far as it is known."""

    name: str
    columns: frozenset[str]
    rows: Mapping[str, ScoredRow]
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PairedCases:
    """The rows of the cases that two tables share, ordered by id, and the ids of those that only one of them has."""

    pairs: tuple[tuple[ScoredRow, ScoredRow], ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


def read_scores(place: Path, report_name: str) -> ScoreTable:
    """The scores of a CSV file, of a report folder, or of a folder that holds a report named `report_name`.

    A CSV file has the facts of the report that it lies in. Raises DataError if there are no scores at the place or the
    table breaks a rule, ArtifactError if the report is damaged.
    """
    if place.is_file():
        try:
            text = place.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{place} cannot be read: {one_line(error)}") from None
        return parse_scores(text, str(place), _facts_around(place))
    if not place.exists():
        raise DataError(f"{place} does not exist")
    if not (place / MANIFEST).is_file() and (place / report_name).is_dir():
        return _of_report(Report.load(place / report_name), str(place))
    if not (place / MANIFEST).is_file():
        raise DataError(f"{place} has no report: neither {MANIFEST} nor a folder {report_name} is in it")
    return _of_report(Report.load(place), str(place))


def _of_report(report: Report, name: str) -> ScoreTable:
    return parse_scores(report.cases_csv(), name, report.facts())


def _facts_around(table: Path) -> Mapping[str, str]:
    """The facts of the report that a table lies in; none for a table that lies elsewhere."""
    report = Report(table.parent)
    is_there = table.name == Report.CASES and (report.folder / Report.FACTS).is_file()
    return report.facts() if is_there else {}


def parse_scores(csv: str, name: str, facts: Mapping[str, str] | None = None) -> ScoreTable:
    """A table of scores. Raises DataError naming table, case, column and value if it breaks a rule or has no cases."""
    try:
        frame = frame_from_csv(csv, Report.TEXTS)
    except (ValueError, pd.errors.ParserError) as error:  # EmptyDataError is a ValueError
        raise DataError(f"{name} is not a table of scores: {one_line(error)}") from None
    if missing := [column for column in Report.TEXTS if column not in frame.columns]:
        raise DataError(f"{name} is not a table of scores: the column {missing[0]} is missing")
    rows = [_row(name, {str(key): cell for key, cell in row.items()}) for row in frame.to_dict(orient="records")]
    if not rows:
        raise DataError(f"{name} has no cases")
    try:
        check_case_ids(row.identity.case_id for row in rows)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    columns = frozenset(str(column) for column in frame.columns)
    return ScoreTable(name, columns, {row.identity.case_id: row for row in rows}, facts or {})


def share_cases(first: ScoreTable, second: ScoreTable) -> bool:
    """Whether two tables have a case in common."""
    return not first.rows.keys().isdisjoint(second.rows)


def pair_cases(first: ScoreTable, second: ScoreTable) -> PairedCases:
    """Pair the cases of two tables.

    Raises DataError if they share none, or if a shared case has another patient, modality or source, or a reference of
    another volume, so that its scores cannot be compared.
    """
    shared = sorted(first.rows.keys() & second.rows.keys())
    if not shared:
        raise DataError(
            f"{first.name} ({len(first.rows)} cases, such as {min(first.rows)}) and {second.name}"
            f" ({len(second.rows)}, such as {min(second.rows)}) have no case in common"
        )
    for case_id in shared:
        _check_same(case_id, first, second)
    return PairedCases(
        tuple((first.rows[case_id], second.rows[case_id]) for case_id in shared),
        tuple(sorted(first.rows.keys() - second.rows.keys())),
        tuple(sorted(second.rows.keys() - first.rows.keys())),
    )


def _row(table: str, row: Mapping[str, object]) -> ScoredRow:
    identity = CaseIdentity(**{item.name: str(row[item.name]) for item in fields(CaseIdentity)})
    for name in ("case_id", "patient_id", "modality"):
        if not getattr(identity, name):
            raise DataError(f"{table}: case {identity.case_id or '(unnamed)'}: {name} is empty")
    values = {}
    for column, cell in row.items():
        if column in Report.TEXTS or cell is None or (isinstance(cell, float) and math.isnan(cell)):
            continue
        if not isinstance(cell, int | float) or not math.isfinite(cell):  # bool is an int
            raise DataError(f"{table}: case {identity.case_id}: {column} is {cell!r} but must be a number or empty")
        values[column] = float(cell)
    return ScoredRow(identity, values)


def _check_same(case_id: str, first: ScoreTable, second: ScoreTable) -> None:
    one, other = first.rows[case_id], second.rows[case_id]
    for name in ("patient_id", "modality", "source"):
        values = [getattr(row.identity, name) for row in (one, other)]
        if values[0] != values[1]:
            raise DataError(
                f"case {case_id}: {name} is {values[0]!r} in {first.name} but {values[1]!r} in {second.name}; score"
                " both with the same table of cases"
            )
    for structure in STRUCTURES:
        column = f"{structure}_reference_volume_ml"
        volumes = [row.values[column] for row in (one, other) if column in row.values]
        if len(volumes) == 2 and not math.isclose(*volumes, rel_tol=SAME_VOLUME):
            raise DataError(
                f"case {case_id}: the reference {structure} has {volumes[0]:.2f} ml in {first.name} but"
                f" {volumes[1]:.2f} ml in {second.name}; both must be scored against the same reference"
            )
