"""The graph: check, ingest, a liver teacher per modality, pseudo-labels, pool, universal model, evaluation,
registration, and the news when all that has ended.

Compile with `make compile`, or `kfp dsl compile --py pipelines/two_stage.py --output FILE`. The compiled
defaults are those of `params.yaml`, or of the file that HEPAR_PARAMS names, but for the source, which each run must
name. A section that is passed to a run replaces the whole section; `overrides` are merged into all of them. The section
`cluster` is compiled in, and so is the number of folds of a teacher.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp import dsl

from components import stages, steps
from hepar.params import dump_sections, load_params
from pipelines.execution import PARAMS_VARIABLE
from pipelines.pod_settings import CAPTIONS, set_up_pod
from pipelines.teacher_tasks import connect_teacher, fold_of, separate_folds

PARAMS = load_params(Path(os.environ.get(PARAMS_VARIABLE, Path(__file__).parents[1] / "params.yaml")))
DEFAULTS = dump_sections(PARAMS)
FOLDS = separate_folds(PARAMS.train_liver.folds)  # of a teacher, each a task of its own


def connect_stages(params: Mapping[str, Any]) -> tuple[tuple[str, dsl.PipelineTask], ...]:
    """The tasks of all stages, each with the name of its step; `params` are the outputs of the check."""
    modalities, preprocessing = params["modalities"], params["preprocessing"]
    network, experiment = params["network"], params["experiment"]
    ingested = stages.ingest(source=params["source"], params=params["ingest"], modalities=modalities)
    ingested.set_caching_options(False)  # the files behind a path may have changed
    cohort, cohort_hash = ingested.outputs["cohort"], ingested.outputs["Output"]

    teachers = {
        modality: connect_teacher(
            FOLDS,
            modality=modality,
            cohort_hash=cohort_hash,
            preprocessing=preprocessing,
            network=network,
            params=params["train_liver"],
            experiment=experiment,
            cohort=cohort,
        )
        for modality in ("CT", "MR")
    }
    (_, ct), (_, mr) = teachers["CT"][-1], teachers["MR"][-1]
    teacher_inputs = {
        "teacher_ct": ct.outputs["model"],
        "teacher_mr": mr.outputs["model"],
        "teacher_ct_hash": ct.outputs["Output"],
        "teacher_mr_hash": mr.outputs["Output"],
    }
    labelled = stages.pseudo_label(
        cohort=cohort, cohort_hash=cohort_hash, params=params["pseudo_label"], **teacher_inputs
    )
    pooled = stages.assemble_pool(
        cohort=cohort,
        cohort_hash=cohort_hash,
        pseudo=labelled.outputs["pseudo"],
        pseudo_hash=labelled.outputs["Output"],
        modalities=modalities,
        preprocessing=preprocessing,
        params=params["assemble_pool"],
    )
    pooled.set_caching_options(False)  # reviews may have been added
    universal = stages.train_universal(
        pool=pooled.outputs["pool"],
        pool_hash=pooled.outputs["Output"],
        network=network,
        params=params["train_universal"],
        experiment=experiment,
        **teacher_inputs,
    )
    model = {"model": universal.outputs["model"], "model_hash": universal.outputs["Output"]}
    scored = stages.evaluate(cohort=cohort, cohort_hash=cohort_hash, params=params["evaluate"], **model)
    registered = stages.register(
        cohort=cohort,
        cohort_hash=cohort_hash,
        report=scored.outputs["report"],
        report_hash=scored.outputs["Output"],
        params=params["register"],
        experiment=experiment,
        **model,
    )
    registered.set_caching_options(False)  # it depends on the state of the registry
    return (
        ("ingest", ingested),
        *teachers["CT"],
        *teachers["MR"],
        ("pseudo-label", labelled),
        ("assemble-pool", pooled),
        ("train-universal", universal),
        ("evaluate", scored),
        ("register", registered),
    )


@dsl.pipeline(name="hepar-two-stage", description="Universal liver-tumour segmentation from partially labelled data")
def two_stage(
    source: str,
    overrides: dict = {},  # type: ignore[type-arg]  # noqa: B006
    experiment: str = DEFAULTS["experiment"],
    modalities: list = DEFAULTS["modalities"],  # type: ignore[type-arg]
    ingest: dict = DEFAULTS["ingest"],  # type: ignore[type-arg]
    preprocessing: dict = DEFAULTS["preprocessing"],  # type: ignore[type-arg]
    network: dict = DEFAULTS["network"],  # type: ignore[type-arg]
    train_liver: dict = DEFAULTS["train_liver"],  # type: ignore[type-arg]
    pseudo_label: dict = DEFAULTS["pseudo_label"],  # type: ignore[type-arg]
    assemble_pool: dict = DEFAULTS["assemble_pool"],  # type: ignore[type-arg]
    train_universal: dict = DEFAULTS["train_universal"],  # type: ignore[type-arg]
    evaluate: dict = DEFAULTS["evaluate"],  # type: ignore[type-arg]
    register: dict = DEFAULTS["register"],  # type: ignore[type-arg]
) -> None:
    """The source, changes to the params, the MLflow experiment, the modalities, and one parameter per section."""
    cluster = PARAMS.cluster
    news = steps.notify(mlflow_url=cluster.mlflow_url, runs_url=cluster.runs_url)
    news.set_caching_options(False)
    with dsl.ExitHandler(news, name="run"):
        checked = steps.check(
            compiled_folds=FOLDS,
            overrides=overrides,
            source=source,
            experiment=experiment,
            modalities=modalities,
            ingest=ingest,
            preprocessing=preprocessing,
            network=network,
            train_liver=train_liver,
            pseudo_label=pseudo_label,
            assemble_pool=assemble_pool,
            train_universal=train_universal,
            evaluate=evaluate,
            register=register,
        )
        checked.set_caching_options(False)  # what it reaches may be gone
        tasks = connect_stages(checked.outputs)
    for step, task in (("check", checked), ("notify", news), *tasks):
        set_up_pod(task, step, PARAMS)
        modality = f" {task.inputs['modality']}" if "modality" in task.inputs else ""
        task.set_display_name(f"{step}{modality}{fold_of(task)}: {CAPTIONS[step][0]}")
