"""Gathers what a study has made on a cluster: the reports that its tasks have left in HEPAR_STORE.

Each report has the id of its step as its name in the store. Its tables are fetched; pages and masks stay there.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from components.stored_artifacts import BULK
from hepar.errors import DataError
from hepar.evaluation.report_folder import Report
from hepar.runtime.artifacts import write_json
from hepar.runtime.object_store import Store
from hepar.runtime.stored_files import read_stored
from hepar.runtime.stored_versions import open_version
from pipelines.run_lock import only_run
from pipelines.steps import say
from pipelines.studies.definition import load_study
from pipelines.studies.folds import remote_folds
from pipelines.studies.layout import COMMITS, result_of, step_folder
from pipelines.studies.plan import PlannedStep, StudyCell, plan_cells
from pipelines.studies.report import print_study_report
from pipelines.studies.running import check_complete
from pipelines.studies.scores import Missing

CLUSTER = "cluster"  # the folder of what was gathered, apart from the steps of this machine
STORED_REPORTS = "studies/reports"  # the versions of reports in a store


def stored_name(evaluation: PlannedStep) -> str:
    """The name in the store of the report of a cell."""
    return f"{STORED_REPORTS}/{evaluation.id}"


def gather_study(path: Path, out: Path, source: str | None) -> None:
    """Write and print the report of the study in the file `path`, of the cells that a cluster has finished.

    The source must be that of the pipeline. Raises ParamsError naming what is wrong with the file, DataError if
    HEPAR_STORE is not set or has no report of the study, StorageError if the store fails, HeparError if a cell is
    missing.
    """
    study, folds, _ = remote_folds(load_study(path, source))
    cells = plan_cells(study, folds)
    folder = out.resolve() / CLUSTER
    store = Store.needed_for("what a study has made on a cluster")
    folder.mkdir(parents=True, exist_ok=True)
    with only_run(folder, "--out"):
        missing = _fetch_reports(cells, folder, store)
        if len(missing) == len(cells):
            raise DataError(
                f"{store.url} has no report of study {study.name}: is it the store of the cluster, and are file, source"
                " and version of hepar those of the pipeline?"
            )
        print_study_report(study, cells, missing, folder)
    check_complete(cells, missing)


def _fetch_reports(cells: Sequence[StudyCell], folder: Path, store: Store) -> list[Missing]:
    """Put the tables of each report in place, with the commits that worked on each step; returns the cells without."""
    missing, commits = [], defaultdict[Path, set[str]](set)
    for cell in cells:
        evaluation = cell.steps[-1]
        target, version = result_of(evaluation, folder), store.get_text(stored_name(evaluation))
        if version is None:
            reason = f"its report is not in {store.url} yet"
            missing.append(Missing(cell.arm, cell.seed, cell.fold, cell.title, reason))
            continue
        if not target.is_dir() or read_stored(target).version != version:
            say(f"{cell.title}: fetches report {version}")
            shutil.rmtree(target, ignore_errors=True)
            open_version(version, Report.KIND, BULK[Report.KIND], target, store)
        commit = Report(target).facts()[Report.COMMIT]
        for step in cell.steps:  # all of a run have its image
            commits[step_folder(step, folder)].add(commit)
    for place, found in commits.items():
        write_json(place / COMMITS, sorted(found))
    return missing
