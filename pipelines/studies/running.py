"""Runs the cells of a study on this machine, step by step, and writes its report.

Finished steps are not run again, an interrupted one resumes: repeat the command. If a step fails, the cells that need
it are missing from the report, and the others go on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from hepar.errors import HeparError, Preempted
from hepar.params import dump_params
from hepar.registry import tracking
from hepar.runtime.artifacts import write_json
from hepar.runtime.commit import git_commit
from hepar.runtime.whole_files import write_text
from pipelines.results import PARAMS_FILE
from pipelines.run_lock import only_run
from pipelines.steps import Step, run_step, say
from pipelines.studies.definition import load_study
from pipelines.studies.folds import prepare_folds
from pipelines.studies.layout import (
    COMMITS,
    LOG,
    SECONDS,
    SPLITS,
    UNKNOWN,
    as_step,
    commits_of,
    seconds_of,
    step_folder,
)
from pipelines.studies.plan import PlannedStep, StudyCell, plan_cells, unique_steps
from pipelines.studies.report import print_study_report
from pipelines.studies.scores import Missing

Run = Callable[[Step, Path, tuple[int, int], Mapping[str, str], Path], None]


def run_study(path: Path, out: Path, source: str | None, dry_run: bool) -> None:
    """Run the study in the file `path`, or with `dry_run` list its steps; prints its report.

    Studies with the same `out` share their steps. Raises ParamsError naming what is wrong with the file, Preempted if
    SIGTERM arrives, HeparError if a cell failed.
    """
    study, folder = load_study(path, source), out.resolve()
    study, folds, tables = prepare_folds(study, folder)
    cells = plan_cells(study, folds)
    if dry_run:
        print(listed(cells, folder))
        return
    folder.mkdir(parents=True, exist_ok=True)
    for table, text in tables.items():
        write_text(table, text)
    missing = run_cells(cells, folder)
    print_study_report(study, cells, missing, folder)
    check_complete(cells, missing)


def run_cells(cells: Sequence[StudyCell], folder: Path, run: Run = run_step) -> list[Missing]:
    """Run the steps of all cells that are not finished; returns the cells that failed."""
    runner = _StepRunner(folder, [step.key for step in unique_steps(list(cells))], run)
    missing = []
    with only_run(folder, "--out") as held:
        for cell in cells:
            try:
                for planned in cell.steps:
                    runner.finish(planned, cell.title, held)
            except Preempted:
                raise
            except HeparError as error:
                say(f"{cell.title}: {error}; the other arms go on")
                missing.append(Missing(cell.arm, cell.seed, cell.fold, cell.title, str(error)))
    return missing


def check_complete(cells: Sequence[StudyCell], missing: Sequence[Missing]) -> None:
    """Raise HeparError if cells are missing."""
    if missing:
        raise HeparError(
            f"{len(missing)} of {len(cells)} cells are missing, first {missing[0].title}: {missing[0].reason}; repeat"
            " the command to try them again"
        )


@dataclass
class _StepRunner:
    """Runs each step at most once; one that has failed fails again without being run."""

    folder: Path
    keys: Sequence[str]
    run: Run
    failed: dict[str, str] = field(default_factory=dict)

    def finish(self, planned: PlannedStep, title: str, held: tuple[int, int]) -> None:
        """Run a step unless it is finished. Raises HeparError if it fails, or has failed for another cell."""
        step, place = as_step(planned, self.folder), step_folder(planned, self.folder)
        if step.is_finished:
            return
        if planned.key in self.failed:
            raise HeparError(self.failed[planned.key])
        say(f"[{self.keys.index(planned.key) + 1}/{len(self.keys)}] {title}: {planned.name}")
        write_text(place / PARAMS_FILE, yaml.safe_dump(dump_params(planned.params), sort_keys=False))
        if planned.split:
            write_text(place / SPLITS, planned.split)
        write_json(place / COMMITS, sorted({*commits_of(planned, self.folder), git_commit() or UNKNOWN}))
        start, before = time.monotonic(), seconds_of(planned, self.folder)
        try:
            self.run(step, place, held, _environment(self.folder), place / LOG)
        except Preempted as error:
            raise Preempted(f"{title}: {error}") from None
        except HeparError as error:
            self.failed[planned.key] = str(error)
            raise
        finally:
            write_json(place / SECONDS, round(before + time.monotonic() - start, 1))


def listed(cells: Sequence[StudyCell], folder: Path) -> str:
    """Each step once, with the cells that use it, as a table in Markdown."""
    lines = ["| step | finished | used by |", "|---|---|---|"]
    for planned in unique_steps(list(cells)):
        users = [cell.title for cell in cells if planned.key in {step.key for step in cell.steps}]
        finished = "yes" if as_step(planned, folder).is_finished else "no"
        lines.append(f"| {planned.id} | {finished} | {'; '.join(users)} |")
    return "\n".join(lines)


def _environment(folder: Path) -> dict[str, str]:
    """One tracking database for all studies of the folder, unless a server is given."""
    given = os.environ.get(tracking.URI_VARIABLE)
    return {tracking.URI_VARIABLE: given or f"{tracking.SQLITE}{folder / tracking.DATABASE}"}
