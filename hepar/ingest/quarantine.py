"""The quarantine list: every refused case of a cohort, the rule that it breaks and the value that breaks it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from hepar.errors import DataError


@dataclass(frozen=True)
class Refused:
    """One line of the quarantine list."""

    case_id: str
    rule: str
    value: str


def write_quarantine(path: Path, refused: Sequence[Refused]) -> None:
    """Write the list as CSV, in the given order; no refusals give a header alone."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([column.name for column in fields(Refused)])
        writer.writerows(map(astuple, refused))


def read_quarantine(path: Path) -> list[Refused]:
    """The lines of a list that `write_quarantine` wrote."""
    with path.open(newline="") as stream:
        return [Refused(**line) for line in csv.DictReader(stream)]


def check_refused_share(refused: Sequence[Refused], cases: int, max_share: float, rejected: Path) -> None:
    """Write the list to `rejected` and raise DataError if more than `max_share` of the cases are refused."""
    if len(refused) <= max_share * cases:
        return
    write_quarantine(rejected, refused)
    first = refused[0]
    raise DataError(
        f"{len(refused)} of {cases} cases are refused, more than ingest.max_refused_share ({max_share:g}) allows;"
        f" {rejected} lists them; the first is case {first.case_id}: {first.rule}: {first.value}"
    )
