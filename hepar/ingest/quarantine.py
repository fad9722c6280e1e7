"""The quarantine list: every refused case of a cohort, the rule that it breaks and the value that breaks it."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from io import StringIO
from pathlib import Path, PurePosixPath

from hepar.errors import DataError
from hepar.runtime.csv_cells import inert_cell, original_text
from hepar.runtime.whole_files import write_bytes

ADDRESS = re.compile(r"\s*\(0x[0-9a-f]+\)|0x[0-9a-f]{5,}", re.IGNORECASE)  # of an object in memory
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])(?:/[^\s/:;,'\"()<>]+){2,}/?")
MAX_CHARACTERS = 500  # of a value: a reader may quote what it read


@dataclass(frozen=True)
class Refused:
    """One line of the quarantine list."""

    case_id: str
    rule: str
    value: str


def reproducible(message: str, names: Mapping[str, str]) -> str:
    """A reader's message as it reads wherever the files lie: on one line, without addresses in memory, and with no path
    of this machine.

    `names` maps paths and URLs to what stands for them; any other absolute path becomes "a file".
    """
    for path in sorted(names, key=len, reverse=True):
        message = message.replace(path, names[path])
    for folder in sorted({str(PurePosixPath(path).parent) for path in names if path.startswith("/")}, key=len)[::-1]:
        message = message.replace(f"{folder}/", "") if len(folder) > 1 else message
    message = ABSOLUTE_PATH.sub("a file", ADDRESS.sub("", message))
    message = " ".join("".join(sign if sign.isprintable() else " " for sign in message).split())
    return message if len(message) <= MAX_CHARACTERS else f"{message[:MAX_CHARACTERS]}…"


def write_quarantine(path: Path, refused: Sequence[Refused]) -> None:
    """Write the list as CSV, in the given order; no refusals give a header alone."""
    lines = StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow([column.name for column in fields(Refused)])
    writer.writerows([inert_cell(text) for text in astuple(line)] for line in refused)
    write_bytes(path, lines.getvalue().encode(errors="backslashreplace"))


def read_quarantine(path: Path) -> list[Refused]:
    """The lines of a list that `write_quarantine` wrote."""
    with path.open(newline="", encoding="utf-8") as stream:
        return [
            Refused(**{name: original_text(cell) for name, cell in line.items()}) for line in csv.DictReader(stream)
        ]


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
