"""The tasks of a pipeline that make one teacher: a single one, or one for each fold and one that gathers them.

Each fold is a task of its own, so that folds train at the same time on GPUs of their own, and one that fails is
repeated without the others.
"""

# no `from __future__ import annotations`: KFP looks at the values of a pipeline
import os
from typing import Any

from kfp import dsl

from components import stages, steps
from hepar.errors import ParamsError
from pipelines.execution import ONE_MACHINE_VARIABLE

SEPARATE_VARIABLE = "HEPAR_SEPARATE_FOLDS"
MAX_FOLDS = sum(name.startswith("fold_") for name in steps.gather_folds.component_spec.inputs)
Tasks = tuple[tuple[str, dsl.PipelineTask], ...]  # each with the name of its step


def connect_teacher(folds: int, **given: Any) -> Tasks:
    """The tasks of a teacher, with the inputs `given` of `train_liver`; the last one writes the model folder.

    Raises ParamsError for more folds than a pipeline can gather.
    """
    if folds == 1:
        return (("train-liver", stages.train_liver(**given)),)
    if folds > MAX_FOLDS:
        raise ParamsError(f"train_liver.folds is {folds}, but a pipeline gathers at most {MAX_FOLDS}")
    members = [stages.train_liver_fold(fold=number, folds=folds, **given) for number in range(1, folds + 1)]
    models = {f"fold_{number}": member.outputs["model"] for number, member in enumerate(members, start=1)}
    gathered = steps.gather_folds(modality=given["modality"], **models)
    gathered.set_caching_options(False)  # KFP's key has no content of the folds, and copying takes seconds
    return (*(("train-liver", member) for member in members), ("gather-folds", gathered))


def separate_folds(folds: int) -> int:
    """The folds of a teacher that get tasks of their own; 1 for a run on this machine, whose tasks wait for each other.

    One task preprocesses the scans once, and keeps the folds that it has finished when a run is begun again. With
    HEPAR_SEPARATE_FOLDS this machine runs what a cluster would.
    """
    return 1 if os.environ.get(ONE_MACHINE_VARIABLE) and not os.environ.get(SEPARATE_VARIABLE) else folds


def fold_of(task: dsl.PipelineTask) -> str:
    """The fold of a task that trains one, such as ` 2/3`; else nothing."""
    return f" {task.inputs['fold']}/{task.inputs['folds']}" if "fold" in task.inputs else ""
