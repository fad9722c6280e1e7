"""Results of a local run: where its artifacts lie in the working directory, and what is printed at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from hepar.cases import Cohort, Modality
from hepar.evaluation.lesions import threshold_name
from hepar.evaluation.report_folder import Report
from hepar.evaluation.tables import number
from hepar.inference.model_folder import ModelFolder
from hepar.pool.table import Pool
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.registry.registration import Registration
from hepar.runtime.artifacts import MANIFEST, read_any_manifest
from hepar.runtime.fetching import complete
from hepar.runtime.journal import RESULTS, Journal
from hepar.runtime.progress import StageStatus
from hepar.runtime.verification import verify_artifact

PLACES = {  # by kind, and for models by role
    Cohort.KIND: "cohort",
    PseudoLabels.KIND: "pseudo",
    Pool.KIND: "pool",
    Report.KIND: "report",
    Registration.KIND: "registration",
    ModelFolder.teacher_role(Modality.CT): "models/liver-ct",
    ModelFolder.teacher_role(Modality.MR): "models/liver-mr",
    ModelFolder.UNIVERSAL: "models/universal",
}
LESION_IOU = 0.1  # from which a lesion counts as detected


PARAMS_FILE = "params.yaml"


def find_artifacts(kfp_root: Path) -> dict[str, Path]:
    """The finished artifacts in KFP's folders, by their place in the working directory; folds of a teacher have none.

    Raises ArtifactError if one is damaged.
    """
    found = {}
    for manifest in sorted(kfp_root.glob(f"*/*/*/{MANIFEST}")):
        kind = read_any_manifest(manifest.parent).kind
        parents = verify_artifact(manifest.parent, kind).parents
        if ModelFolder.FOLD in parents:
            continue
        found[PLACES[parents[ModelFolder.ROLE] if kind == ModelFolder.KIND else kind]] = manifest.parent
    return found


def place_results(kfp_root: Path, workdir: Path) -> list[str]:
    """Move the artifacts and the params of a run to their places in the working directory, replacing those of the last.

    What went to the store is fetched first. Returns the places for which the run wrote nothing, if any; everything then
    stays as it is. If the process dies, the
    next run, or the next command that reads one of the places, finishes the move. KFP's folders must be in `workdir`.
    Raises ArtifactError if an artifact is damaged or a place cannot be replaced, such as one on another file system.
    """
    found = find_artifacts(kfp_root)
    if missing := [place for place in PLACES.values() if place not in found]:
        return missing
    for folder in found.values():
        complete(folder)
    moves = {folder: workdir / place for place, folder in found.items()}
    moves[kfp_root / PARAMS_FILE] = workdir / PARAMS_FILE
    Journal(workdir / RESULTS).replace(moves, scratch=kfp_root)
    return []


def finish_placing(workdir: Path) -> None:
    """Finish what a killed run left of placing its results."""
    Journal(workdir / RESULTS).finish()


def score_table(workdir: Path) -> Table:
    """Scores on the held-out patients by modality: mean, 95 % confidence interval and number of cases."""
    metrics = Report(workdir / PLACES[Report.KIND]).metrics()
    table = Table(title="hepar: held-out patients", show_header=True)
    for column in ("", *metrics):
        table.add_column(column, no_wrap=True)
    rows: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
        "liver Dice": lambda m: _with_interval(m["liver"]["dice"]),
        "tumour Dice": lambda m: _with_interval(m["tumour"]["dice"]),
        f"lesion F1 (IoU > {LESION_IOU})": lambda m: number(
            m["tumour"]["lesion_f1"][threshold_name(LESION_IOU)]["value"], digits=3
        ),
    }
    for name, read in rows.items():
        table.add_row(name, *(read(values) for values in metrics.values()))
    return table


def summary(workdir: Path, statuses: Sequence[StageStatus]) -> str:
    """The registered model, the report and the duration of each stage, one per line."""
    lines = {
        "model": Registration.load(workdir / PLACES[Registration.KIND]).summary,
        "report": str(Report(workdir / PLACES[Report.KIND]).page),
        **{f"{status.stage}, s": f"{status.seconds:.0f}" for status in statuses},
    }
    return "\n".join(f"{name:26} {value}" for name, value in lines.items())


def _with_interval(estimate: Mapping[str, Any]) -> str:
    low_high = estimate["ci95"]
    interval = "" if low_high is None else f" [{low_high[0]:.3f}, {low_high[1]:.3f}]"
    return f"{number(estimate['mean'], digits=3)}{interval} n={estimate['n']}"
