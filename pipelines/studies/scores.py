"""Scores of the arms of a study, from the reports of its cells.

A scan that several seeds have scored stands in the table of an arm once per seed. Means over the rows are then means
over the seeds, scans are paired seed by seed, and intervals still resample whole patients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hepar.evaluation.report_folder import Report
from hepar.evaluation.score_table import ScoredRow, ScoreTable, parse_scores
from pipelines.studies.layout import result_of
from pipelines.studies.plan import StudyCell


@dataclass(frozen=True)
class Missing:
    """A cell without a report, and why."""

    arm: str
    seed: int
    fold: str
    title: str
    reason: str


@dataclass(frozen=True)
class ArmScores:
    """The scores of an arm by seed; a seed without any finished cell is left out."""

    name: str
    by_seed: Mapping[int, ScoreTable]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted(self.by_seed))

    def pooled(self, seeds: Iterable[int]) -> ScoreTable | None:
        """One table over these seeds; None if the arm has none of them."""
        rows: dict[str, ScoredRow] = {}
        columns: frozenset[str] = frozenset()
        for seed in sorted(set(seeds) & self.by_seed.keys()):
            table = self.by_seed[seed]
            columns |= table.columns
            for row in table.rows.values():
                name = f"{row.identity.case_id}, seed {seed}"
                rows[name] = replace(row, identity=replace(row.identity, case_id=name))
        return ScoreTable(self.name, columns, rows) if rows else None


def read_arm_scores(cells: Sequence[StudyCell], missing: Sequence[Missing], folder: Path) -> list[ArmScores]:
    """The scores of every arm, in the order of the study. Raises ArtifactError if a report is damaged."""
    gone = {(item.arm, item.seed, item.fold) for item in missing}
    found: dict[str, dict[int, ScoreTable]] = {cell.arm: {} for cell in cells}
    for cell in cells:
        if (cell.arm, cell.seed, cell.fold) in gone:
            continue
        own = parse_scores(Report.load(result_of(cell.steps[-1], folder)).cases_csv(), cell.title)
        before = found[cell.arm].get(cell.seed)
        rows = {**(before.rows if before else {}), **own.rows}  # a scan is tested in one fold
        columns = own.columns | (before.columns if before else frozenset())
        found[cell.arm][cell.seed] = ScoreTable(cell.arm, columns, rows)
    return [ArmScores(name, by_seed) for name, by_seed in found.items()]
