"""Where the steps of studies lie: a folder for each with its params, its log and the artifact that it writes."""

from __future__ import annotations

import json
from pathlib import Path

from hepar.cases import Cohort
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.pool.table import Pool
from hepar.pseudo_labels.folder import PseudoLabels
from pipelines.results import PARAMS_FILE
from pipelines.steps import Step
from pipelines.studies.plan import (
    ASSEMBLE_POOL,
    COHORT,
    EVALUATE,
    INGEST,
    MODEL,
    POOL,
    PSEUDO,
    PSEUDO_LABEL,
    REPORT,
    TRAIN_LIVER,
    TRAIN_UNIVERSAL,
    PlannedStep,
)

SPLITS, LOG, SECONDS, COMMITS = "splits.csv", "stage.log", "seconds.json", "commits.json"
UNKNOWN = "unknown"  # the commit of a step that has no record of it
STEPS = "steps"  # the folder of the steps of all studies
RESULTS = {  # the artifact of a stage: its folder in that of the step, and its kind
    INGEST: (COHORT, Cohort.KIND),
    TRAIN_LIVER: (MODEL, ModelFolder.KIND),
    PSEUDO_LABEL: (PSEUDO, PseudoLabels.KIND),
    ASSEMBLE_POOL: (POOL, Pool.KIND),
    TRAIN_UNIVERSAL: (MODEL, ModelFolder.KIND),
    EVALUATE: (REPORT, Report.KIND),
}


def seconds_of(planned: PlannedStep, folder: Path) -> float:
    """Seconds of a step so far, interrupted attempts included."""
    path = step_folder(planned, folder) / SECONDS
    return float(path.read_text()) if path.is_file() else 0.0


def commits_of(planned: PlannedStep, folder: Path) -> list[str]:
    """The commits of the attempts at a step, interrupted ones included; none if there is no record."""
    path = step_folder(planned, folder) / COMMITS
    return list(json.loads(path.read_text())) if path.is_file() else []


def step_folder(planned: PlannedStep, folder: Path) -> Path:
    """The folder of a step, in the folder that all studies share."""
    return folder / STEPS / planned.id


def result_of(planned: PlannedStep, folder: Path) -> Path:
    """The artifact that a step writes."""
    return step_folder(planned, folder) / RESULTS[planned.stage][0]


def as_step(planned: PlannedStep, folder: Path) -> Step:
    """The command of a step, which runs in its folder."""
    words = [planned.stage, "--params", PARAMS_FILE]
    if planned.modality is not None:
        words += ["--modality", str(planned.modality)]
    if planned.split:
        words += ["--split-from", SPLITS]
    for role, needed in planned.inputs.items():
        words += [f"--{role.replace('_', '-')}", str(result_of(needed, folder))]
    place, kind = RESULTS[planned.stage]
    return Step(planned.name, (*words, f"--{place}", place), result_of(planned, folder), kind)
