"""What an attack may end in, and the table of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How one attack ended; the column of the table."""

    ACCEPTED = "accepted right"
    REFUSED = "refused"  # with one sentence
    TRACEBACK = "traceback"  # or an end that is no sentence
    CRASH = "crash"
    HANG = "hang"
    WRONG = "wrong result"
    OUTSIDE = "outside"  # read or written outside the source, the cohort and the run's own folders


GOOD = (Verdict.ACCEPTED, Verdict.REFUSED)


@dataclass(frozen=True)
class Outcome:
    """One attack: the row of the table it belongs to, what was done, how it ended, and what was seen."""

    row: str
    attack: str
    verdict: Verdict
    seen: str = ""


def failures(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.verdict not in GOOD]


def table(outcomes: Sequence[Outcome]) -> str:
    """A line for each row, in order of appearance, and one for all; zeros are dots."""
    rows = list(dict.fromkeys(outcome.row for outcome in outcomes))
    width = max(map(len, [*rows, "all"]))
    lines = [" | ".join(["what".ljust(width), "tried", *Verdict])]
    for row in [*rows, "all"]:
        counts = Counter(outcome.verdict for outcome in outcomes if row in (outcome.row, "all"))
        cells = [str(counts.total()).rjust(5), *(str(counts[v] or "·").rjust(len(v)) for v in Verdict)]
        lines.append(" | ".join([row.ljust(width), *cells]))
    return "\n".join(lines)


def listing(outcomes: Iterable[Outcome], limit: int) -> str:
    """The failures, one a line, at most `limit` of each row and verdict."""
    seen: Counter[tuple[str, Verdict]] = Counter()
    lines = []
    for outcome in failures(outcomes):
        seen[outcome.row, outcome.verdict] += 1
        if seen[outcome.row, outcome.verdict] <= limit:
            lines.append(f"{outcome.verdict}: {outcome.row}: {outcome.attack}: {outcome.seen}")
    return "\n".join(lines)
