"""Runs the steps of a study on this machine, one or several at a time, and writes its report.

Finished steps are not run again, an interrupted one resumes: repeat the command. If a step fails, the cells that need
it are missing from the report, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from pathlib import Path

import yaml

from hepar.errors import HeparError, Preempted
from hepar.params import dump_params
from hepar.registry import tracking
from hepar.runtime.artifacts import write_json
from hepar.runtime.commit import git_commit
from hepar.runtime.device import catch_sigterm
from hepar.runtime.whole_files import write_text
from pipelines.places import absolute_variables
from pipelines.results import PARAMS_FILE
from pipelines.run_lock import only_run
from pipelines.steps import Step, run_step, say, stop_steps
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
POLL_SECONDS = 0.5
SHORT_SPIN = "1000"  # of idle threads, which else hold up the steps beside theirs


def run_study(path: Path, out: Path, source: str | None, dry_run: bool, jobs: int = 1) -> None:
    """Run the study in the file `path`, `jobs` steps at a time, or with `dry_run` list its steps; prints its report.

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
    missing = run_cells(cells, folder, jobs=jobs)
    print_study_report(study, cells, missing, folder)
    check_complete(cells, missing)


def run_cells(cells: Sequence[StudyCell], folder: Path, run: Run = run_step, jobs: int = 1) -> list[Missing]:
    """Run the steps of all cells that are not finished, `jobs` at a time; returns the cells that failed."""
    with only_run(folder, "--out") as held:
        failed = _StepRunner(cells, folder, run, held).finish_all(jobs)
    return [
        Missing(cell.arm, cell.seed, cell.fold, cell.title, reasons[0])
        for cell in cells
        if (reasons := [failed[step.key] for step in cell.steps if step.key in failed])
    ]


def check_complete(cells: Sequence[StudyCell], missing: Sequence[Missing]) -> None:
    """Raise HeparError if cells are missing."""
    if missing:
        raise HeparError(
            f"{len(missing)} of {len(cells)} cells are missing, first {missing[0].title}: {missing[0].reason}; repeat"
            " the command to try them again"
        )


class _StepRunner:
    """Runs each step once, after those that it reads; one that reads a failed one fails with it."""

    def __init__(self, cells: Sequence[StudyCell], folder: Path, run: Run, held: tuple[int, int]) -> None:
        self.folder, self.run, self.held = folder, run, held
        self.steps = unique_steps(list(cells))
        self.titles = {step.key: cell.title for cell in reversed(cells) for step in cell.steps}  # of its first cell
        self.failed: dict[str, str] = {}

    def finish_all(self, jobs: int) -> dict[str, str]:
        """Run what is not finished, `jobs` steps at a time; returns the reasons of those that failed, by key.

        Raises Preempted if SIGTERM arrives or a step was stopped; then and if interrupted, steps that run are stopped.
        """
        waiting = [step for step in self.steps if not as_step(step, self.folder).is_finished]
        environment = _environment(self.folder, jobs)
        running: dict[Future[None], PlannedStep] = {}
        with catch_sigterm() as stopped, ThreadPoolExecutor(jobs) as threads:
            try:
                while waiting or running:
                    for step in self._ready(waiting, running.values())[: jobs - len(running)]:
                        waiting.remove(step)
                        running[self._start(step, threads, environment)] = step
                    finished, _ = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                    if stopped():
                        raise Preempted("the study was stopped: run the same command again to resume")
                    for future in finished:
                        self._look_at(running.pop(future), future)
                    waiting = [step for step in waiting if not self._has_failed(step)]
            finally:
                while wait(running, POLL_SECONDS).not_done:
                    stop_steps()
        return self.failed

    @staticmethod
    def _ready(waiting: Sequence[PlannedStep], running: Iterable[PlannedStep]) -> list[PlannedStep]:
        """The waiting steps that read no result of an unfinished one."""
        unfinished = {step.key for step in (*waiting, *running)}
        return [step for step in waiting if unfinished.isdisjoint(read.key for read in step.inputs.values())]

    def _start(self, planned: PlannedStep, threads: Executor, environment: Mapping[str, str]) -> Future[None]:
        """Start a step, with its params, split and commit in its folder."""
        number = self.steps.index(planned) + 1
        say(f"[{number}/{len(self.steps)}] {self.titles[planned.key]}: {planned.name}")
        place = step_folder(planned, self.folder)
        write_text(place / PARAMS_FILE, yaml.safe_dump(dump_params(planned.params), sort_keys=False))
        if planned.split:
            write_text(place / SPLITS, planned.split)
        write_json(place / COMMITS, sorted({*commits_of(planned, self.folder), git_commit() or UNKNOWN}))
        return threads.submit(self._run, planned, place, environment)

    def _run(self, planned: PlannedStep, place: Path, environment: Mapping[str, str]) -> None:
        start, before = time.monotonic(), seconds_of(planned, self.folder)
        try:
            self.run(as_step(planned, self.folder), place, self.held, environment, place / LOG)
        finally:
            write_json(place / SECONDS, round(before + time.monotonic() - start, 1))

    def _look_at(self, planned: PlannedStep, future: Future[None]) -> None:
        """Keep why a step failed. Raises Preempted if it was stopped."""
        title = self.titles[planned.key]
        try:
            future.result()
        except Preempted as error:
            raise Preempted(f"{title}: {error}") from None
        except HeparError as error:
            say(f"{title}: {error}; the other arms go on")
            self.failed[planned.key] = str(error)

    def _has_failed(self, planned: PlannedStep) -> bool:
        """Whether a step that this one reads has failed, and so this one."""
        reasons = [self.failed[read.key] for read in planned.inputs.values() if read.key in self.failed]
        if reasons:
            self.failed[planned.key] = reasons[0]
        return bool(reasons)


def listed(cells: Sequence[StudyCell], folder: Path) -> str:
    """Each step once, with the cells that use it, as a table in Markdown."""
    lines = ["| step | finished | used by |", "|---|---|---|"]
    for planned in unique_steps(list(cells)):
        users = [cell.title for cell in cells if planned.key in {step.key for step in cell.steps}]
        finished = "yes" if as_step(planned, folder).is_finished else "no"
        lines.append(f"| {planned.id} | {finished} | {'; '.join(users)} |")
    return "\n".join(lines)


def _environment(folder: Path, jobs: int) -> dict[str, str]:
    """One tracking database for all studies of the folder, unless a server is given."""
    beside_others = {} if jobs == 1 else {"GOMP_SPINCOUNT": SHORT_SPIN}
    return {
        tracking.URI_VARIABLE: f"{tracking.SQLITE}{folder / tracking.DATABASE}",
        **absolute_variables(),
        **beside_others,
    }
