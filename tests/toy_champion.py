"""A champion in a registry that learned from the cohort of a folder of phantoms; its network has random weights."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from toy_lineage import ToyRun, hash_of, train
from toy_model import PLAN
from toy_pool import Toy, toy_pool, with_columns
from toy_versions import scores, toy_gates

import hepar.stages.ingest
import hepar.stages.register
from hepar.cases import Cohort, LabelState, Modality, Split
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params
from hepar.pool.table import Pool
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.pseudo_labels.gates import REVIEW
from hepar.registry.registration import Registration
from hepar.runtime.artifacts import write_artifact
from hepar.runtime.commit import RELEASE, release

NAME = "hepar-toy"


def write_champion(source: Path, workdir: Path, tiny: Params) -> ToyRun:
    """The working directory of a run whose model has become champion, with MLflow at MLFLOW_TRACKING_URI.

    Its parts are those of `toy_lineage`, but for the cohort. CT alone was learned.
    """
    run = ToyRun(workdir)
    hepar.stages.ingest.run(str(source), run.cohort, tiny.ingest, tiny.modalities)
    cohort = {Cohort.KIND: hash_of(run.cohort)}
    role = ModelFolder.teacher_role(Modality.CT)
    train(run.teacher, tiny, {**cohort, ModelFolder.ROLE: role}, (run.cohort,))
    with write_artifact(run.pseudo, PseudoLabels.KIND, {**cohort, PseudoLabels.teacher(Modality.CT): "t"}) as partial:
        PseudoLabels(partial).save_table([])
    write_pool(run)
    universal = {ModelFolder.POOL: hash_of(run.pool), ModelFolder.ROLE: ModelFolder.UNIVERSAL}
    coarse = PLAN.model_copy(update={"spacing_zyx_mm": (20.0, 18.0, 18.0)})  # a phantom in a few windows
    train(run.model, tiny, universal, (run.pool,), plan=coarse)
    parents = {**cohort, ModelFolder.KIND: hash_of(run.model)}
    facts = {Report.TEST_SET: "a", RELEASE: release(), ModelFolder.KIND: hash_of(run.model)}
    with write_artifact(run.report, Report.KIND, parents) as partial:
        metrics = {"CT": {name: {"dice": {"mean": 0.9}} for name in ("liver", "tumour")}}
        Report(partial).save(metrics, facts, scores(0.9), pd.DataFrame({"case_id": []}))
    hepar.stages.register.run(run.model, run.report, run.registration, toy_gates(tiny, NAME), "toy")
    assert Registration.load(run.registration).alias == "champion"
    return run


def write_pool(run: ToyRun) -> None:
    """A pool with an entry for each case that is not of the test split; its arrays are those of a toy."""
    parents = {Cohort.KIND: hash_of(run.cohort), PseudoLabels.KIND: hash_of(run.pseudo)}
    with write_artifact(run.pool, Pool.KIND, parents) as partial:
        made = toy_pool(partial, [Toy("a")])
        entries = []
        for case in Cohort.load(run.cohort).select(None, (Split.TRAIN, Split.VAL)):
            gate = REVIEW if case.liver_state == LabelState.UNKNOWN else ""
            columns = {"case_id": case.case_id, "patient_id": case.patient_id, "source": case.source, "gate": gate}
            entries.append(with_columns(made.entries[0], **columns))
        Pool(partial, made.plan, tuple(entries)).save()
