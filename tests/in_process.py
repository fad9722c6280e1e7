"""The stages of a run one after another in this process, in the order and the places of `hepar run`.

It saves the imports of eight processes. What KFP does between the stages is not part of it.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.process import BaseProcess
from pathlib import Path

from commands import PRELOADED, QUIET

import hepar.cli.retraining
import hepar.stages.assemble_pool
import hepar.stages.evaluate
import hepar.stages.ingest
import hepar.stages.pseudo_label
import hepar.stages.register
import hepar.stages.train_liver
import hepar.stages.train_universal
from hepar.cases import Cohort, Modality
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params
from hepar.pool.table import Pool
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.registry.registration import Registration
from pipelines.results import PLACES


def run_in_process(params: Params, workdir: Path, image: str = "") -> None:
    """A runner as `hepar run --runner` names them."""
    places = {kind: workdir / place for kind, place in PLACES.items()}
    cohort, pseudo, pool = (places[kind] for kind in (Cohort.KIND, PseudoLabels.KIND, Pool.KIND))
    teachers = {modality: places[ModelFolder.teacher_role(modality)] for modality in Modality}
    model, report = places[ModelFolder.UNIVERSAL], places[Report.KIND]
    preprocessing, network, experiment = params.preprocessing, params.network, params.experiment
    hepar.stages.ingest.run(params.source, cohort, params.ingest, params.modalities)
    for modality, teacher in teachers.items():
        hepar.stages.train_liver.run(cohort, teacher, modality, preprocessing, network, params.train_liver, experiment)
    hepar.stages.pseudo_label.run(cohort, teachers, pseudo, params.pseudo_label)
    hepar.stages.assemble_pool.run(cohort, pseudo, pool, params.modalities, preprocessing, params.assemble_pool)
    hepar.stages.train_universal.run(pool, teachers, model, network, params.train_universal, experiment)
    hepar.stages.evaluate.run(cohort, model, report, params.evaluate)
    registration = places[Registration.KIND]
    hepar.stages.register.run(model, report, registration, params.register_model, experiment, cohort)


def forked_retraining(words: list[str], variables: dict[str, str]) -> BaseProcess:
    """`hepar retrain …` in a process to be killed, forked from one that has imported everything; it runs the stages."""
    context = multiprocessing.get_context("forkserver")
    os.environ.update(QUIET)
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_retrain, args=(words, variables))
    process.start()
    return process


def _retrain(words: list[str], variables: dict[str, str]) -> None:
    from hepar.cli.main import app

    os.environ.clear()
    os.environ.update(variables)
    hepar.cli.retraining.load_runner = lambda name: run_in_process
    app(words)
