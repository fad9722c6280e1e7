"""Results of a local run: where its artifacts stand in the working directory, and what is printed at the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from hepar.cases import Cohort
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.pool.table import Pool
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.registry.registration import Registration
from hepar.runtime.artifacts import MANIFEST, read_manifest
from hepar.runtime.progress import StageStatus

PLACES = {  # by kind, and for models by role
    Cohort.KIND: "cohort",
    PseudoLabels.KIND: "pseudo",
    Pool.KIND: "pool",
    Report.KIND: "report",
    Registration.KIND: "registration",
    "liver teacher CT": "models/liver-ct",
    "liver teacher MR": "models/liver-mr",
    "universal": "models/universal",
}


def collect_artifacts(kfp_root: Path, workdir: Path) -> list[str]:
    """Move each artifact from KFP's folders to its place in the working directory; returns the places left empty."""
    for manifest in sorted(kfp_root.glob(f"*/*/*/{MANIFEST}")):
        kind = json.loads(manifest.read_text())["kind"]
        parents = read_manifest(manifest.parent, kind).parents
        place = workdir / PLACES[parents["role"] if kind == ModelFolder.KIND else kind]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        manifest.parent.rename(place)
    return [place for place in PLACES.values() if not (workdir / place / MANIFEST).is_file()]


def score_table(workdir: Path) -> Table:
    """Scores on the held-out patients by modality: mean, 95 % confidence interval and number of cases."""
    metrics = Report(workdir / PLACES[Report.KIND]).metrics()
    table = Table(title="hepar: held-out patients", show_header=True)
    for column in ("", *metrics):
        table.add_column(column, no_wrap=True)
    rows: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
        "liver Dice": lambda m: _with_interval(m["liver"]["dice"]),
        "tumour Dice": lambda m: _with_interval(m["tumour"]["dice"]),
        "lesion F1 (IoU > 0.1)": lambda m: _number(m["tumour"]["lesion_f1"]["iou>0.1"]["value"]),
    }
    for name, read in rows.items():
        table.add_row(name, *(read(values) for values in metrics.values()))
    return table


def summary(workdir: Path, statuses: Sequence[StageStatus]) -> str:
    """The registered model, the report and the seconds of each stage, one per line."""
    registered = Registration.load(workdir / PLACES[Registration.KIND])
    reasons = f" ({'; '.join(registered.reasons)})" if registered.reasons else ""
    lines = {
        "model": f"{registered.name} version {registered.version}, {registered.alias}{reasons}",
        "report": str(Report(workdir / PLACES[Report.KIND]).page),
        **{f"seconds of {status.stage}": f"{status.seconds:.0f}" for status in statuses},
    }
    return "\n".join(f"{name:26} {value}" for name, value in lines.items())


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _with_interval(estimate: Mapping[str, Any]) -> str:
    low_high = estimate["ci95"]
    interval = "" if low_high is None else f" [{low_high[0]:.3f}, {low_high[1]:.3f}]"
    return f"{_number(estimate['mean'])}{interval} n={estimate['n']}"
