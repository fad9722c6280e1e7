"""The graph: ingest, a liver teacher per modality, pseudo-labels, pool, universal model, evaluation, registration.

Compile with `kfp dsl compile --py pipelines/two_stage.py --output build/two_stage.yaml`. The compiled defaults are
those of `params.yaml`, or of the file that HEPAR_PARAMS names; a section passed to a run replaces the whole section.
Compiled pipelines are copied around, so a source that names a patient is refused.
"""

import os
from pathlib import Path

from kfp import dsl

from components import stages
from hepar.errors import ParamsError
from hepar.ingest.sources.dicomweb import without_identifiers
from hepar.params import dump_sections, load_params
from hepar.runtime.redaction import QUERY_VARIABLE, redact_address
from pipelines.execution import PARAMS_VARIABLE
from pipelines.pod_settings import tell_execution

DEFAULTS = dump_sections(load_params(Path(os.environ.get(PARAMS_VARIABLE, Path(__file__).parents[1] / "params.yaml"))))
if without_identifiers(DEFAULTS["source"])[1]:
    raise ParamsError(
        f"source {redact_address(DEFAULTS['source'])} names a patient: leave the value empty and set {QUERY_VARIABLE}"
    )


@dsl.pipeline(name="hepar-two-stage", description="Universal liver-tumour segmentation from partially labelled data")
def two_stage(
    source: str = DEFAULTS["source"],
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
    """The source, the MLflow experiment, the modalities, and one parameter per section of the params."""
    ingested = stages.ingest(source=source, params=ingest, modalities=modalities)
    ingested.set_caching_options(False)  # the files behind a path may have changed
    cohort, cohort_hash = ingested.outputs["cohort"], ingested.outputs["Output"]

    teachers = {
        modality: stages.train_liver(
            modality=modality,
            cohort_hash=cohort_hash,
            preprocessing=preprocessing,
            network=network,
            params=train_liver,
            experiment=experiment,
            cohort=cohort,
        ).set_display_name(f"train-liver-{modality.lower()}")
        for modality in ("CT", "MR")
    }
    teacher_inputs = {
        "teacher_ct": teachers["CT"].outputs["model"],
        "teacher_mr": teachers["MR"].outputs["model"],
        "teacher_ct_hash": teachers["CT"].outputs["Output"],
        "teacher_mr_hash": teachers["MR"].outputs["Output"],
    }
    labelled = stages.pseudo_label(cohort=cohort, cohort_hash=cohort_hash, params=pseudo_label, **teacher_inputs)
    pooled = stages.assemble_pool(
        cohort=cohort,
        cohort_hash=cohort_hash,
        pseudo=labelled.outputs["pseudo"],
        pseudo_hash=labelled.outputs["Output"],
        modalities=modalities,
        preprocessing=preprocessing,
        params=assemble_pool,
    )
    pooled.set_caching_options(False)  # reviews may have been added
    universal = stages.train_universal(
        pool=pooled.outputs["pool"],
        pool_hash=pooled.outputs["Output"],
        network=network,
        params=train_universal,
        experiment=experiment,
        **teacher_inputs,
    )
    model = {"model": universal.outputs["model"], "model_hash": universal.outputs["Output"]}
    scored = stages.evaluate(cohort=cohort, cohort_hash=cohort_hash, params=evaluate, **model)
    registered = stages.register(
        cohort=cohort,
        cohort_hash=cohort_hash,
        report=scored.outputs["report"],
        report_hash=scored.outputs["Output"],
        params=register,
        experiment=experiment,
        **model,
    )
    registered.set_caching_options(False)  # it depends on the state of the registry
    for task in (ingested, *teachers.values(), labelled, pooled, universal, scored, registered):
        tell_execution(task)
