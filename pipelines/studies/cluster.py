"""A study as one Kubeflow pipeline: each step is a task, once, however many arms use it."""

# no `from __future__ import annotations`: KFP evaluates those of a pipeline
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp import compiler, dsl
from kfp.dsl.utils import validate_pipeline_name

from components import stages
from hepar.errors import ParamsError
from hepar.params import dump_sections
from pipelines.pod_settings import set_up_pod
from pipelines.steps import say
from pipelines.studies.definition import Study, load_study
from pipelines.studies.folds import remote_folds, store_tables
from pipelines.studies.gathering import stored_name
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
    StudyCell,
    plan_cells,
    unique_steps,
)
from pipelines.teacher_tasks import Tasks, connect_teacher, fold_of

SUFFIX = ".yaml"
COMPONENTS = {
    INGEST: stages.ingest,
    TRAIN_LIVER: stages.train_liver,
    PSEUDO_LABEL: stages.pseudo_label,
    ASSEMBLE_POOL: stages.assemble_pool,
    TRAIN_UNIVERSAL: stages.train_universal,
    EVALUATE: stages.evaluate,
}
OUTPUTS = {
    INGEST: COHORT,
    TRAIN_LIVER: MODEL,
    PSEUDO_LABEL: PSEUDO,
    ASSEMBLE_POOL: POOL,
    TRAIN_UNIVERSAL: MODEL,
    EVALUATE: REPORT,
}
OWN_SECTION = {
    INGEST: "ingest",
    TRAIN_LIVER: "train_liver",
    PSEUDO_LABEL: "pseudo_label",
    ASSEMBLE_POOL: "assemble_pool",
    TRAIN_UNIVERSAL: "train_universal",
    EVALUATE: "evaluate",
}
UNCACHED = (INGEST, ASSEMBLE_POOL)  # files behind a path may have changed, reviews may have been added


def compile_study(path: Path, package: Path, source: str | None) -> None:
    """Compile the study in the file `path` to the pipeline `package`, with every cell unrolled.

    The tables of folds go to the store. Raises ParamsError if `package` is no YAML file, if KFP refuses the name of the
    study, as `remote_folds`, and StorageError if the store fails.
    """
    study = load_study(path, source)
    _check_name(study)
    if package.suffix != SUFFIX:
        raise ParamsError(f"--cluster is {package} but its name must end in {SUFFIX}")
    study, folds, tables = remote_folds(study)
    cells = plan_cells(study, folds)
    pipeline = as_pipeline(study, cells)
    store_tables(tables)
    package.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline, str(package))
    say(f"{package}: {len(cells)} cells in {sum(map(_task_count, unique_steps(cells)))} tasks")


def as_pipeline(study: Study, cells: list[StudyCell]) -> Any:
    """The pipeline of all cells; a task's name begins with the arm, seed and fold that first need it."""
    names = {step.key: f"{cell.title}: {step.name}" for cell in reversed(cells) for step in cell.steps}

    @dsl.pipeline(name=_pipeline_name(study), description=study.file.question)
    def fan_out() -> None:
        tasks: dict[str, Any] = {}
        for step in unique_steps(cells):
            for name, task in _connect(step, tasks):
                task.set_display_name(names[step.key] + fold_of(task))
                set_up_pod(task, name, step.params)
                if name in UNCACHED:
                    task.set_caching_options(False)
                tasks[step.key] = task

    return fan_out


def _pipeline_name(study: Study) -> str:
    return f"hepar-study-{study.name}".lower()


def _check_name(study: Study) -> None:
    name = _pipeline_name(study)
    try:
        validate_pipeline_name(name)
    except ValueError:
        raise ParamsError(
            f"study {study.name}: its pipeline would be {name}, but KFP takes at most 128 characters, and only letters,"
            " digits and hyphens: rename the file"
        ) from None


def _connect(step: PlannedStep, tasks: Mapping[str, Any]) -> Tasks:
    """The tasks of a step, each with the name of what it asks for; the last one writes what the step hands on."""
    given = _arguments(step, tasks)
    if step.stage == TRAIN_LIVER:
        return connect_teacher(step.params.train_liver.folds, **given)
    return ((step.stage, COMPONENTS[step.stage](**given)),)


def _task_count(step: PlannedStep) -> int:
    folds = step.params.train_liver.folds
    return folds + 1 if step.stage == TRAIN_LIVER and folds > 1 else 1


def _arguments(step: PlannedStep, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """What the component of a step takes: its section as `params`, other params by name, inputs with their hashes."""
    component = COMPONENTS[step.stage].component_spec
    wanted, sections = set(component.inputs), dump_sections(step.params)
    given: dict[str, Any] = {name: sections[name] for name in wanted & sections.keys()}
    given["params"] = sections[OWN_SECTION[step.stage]]
    if step.split:
        given["params"] = {**given["params"], "split_from": step.split}
    if step.modality is not None:
        given["modality"] = str(step.modality)
    if step.stage == EVALUATE:
        given["stored_name"] = stored_name(step)
    for role, needed in step.inputs.items():
        task = tasks[needed.key]
        given[role] = task.outputs[OUTPUTS[needed.stage]]
        given[f"{role}_hash"] = task.outputs["Output"]
    return {name: value for name, value in given.items() if name in wanted}
