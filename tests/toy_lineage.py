"""The working directory of a run without its computing: artifacts with true parents, trainings in MLflow, a version.

The chain: two cases, a CT teacher with its MLflow run, pseudo-labels, a pool, the universal model with its run, a
report and the registration of version 1.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from conftest import made_once
from toy_case import write_case
from toy_model import PLAN, toy_spec, toy_weights
from toy_pool import Toy, toy_pool, with_columns
from toy_versions import scores, toy_gates

import hepar.stages.register
from hepar.cases import Cohort, LabelState, Modality, Split
from hepar.evaluation.report_folder import Report
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.inference.model_folder import ModelFolder
from hepar.ingest.quarantine import Refused, write_quarantine
from hepar.params import Params
from hepar.pool.table import Pool
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.registry.lineage_records import LINEAGE, write_records
from hepar.registry.tracking import TrainingRun
from hepar.runtime.artifacts import as_parents_of_parent, dvc_version, read_any_manifest, write_artifact
from hepar.runtime.commit import COMMIT_VARIABLE
from hepar.runtime.execution import KFP_RUN_VARIABLE, STAGE_IMAGE_VARIABLE

NAME = "hepar-toy"
LICENCE = "CC BY-NC-SA 4.0"
PATIENT = "patient-of-the-test"
IMAGE, KFP, COMMIT = "registry.example.org/hepar@sha256:ab", "run-7", "c0ffee"


@dataclass(frozen=True)
class ToyRun:
    """The folders of the run, by the names that `hepar run` gives them."""

    folder: Path

    @property
    def cohort(self) -> Path:
        return self.folder / "cohort"

    @property
    def teacher(self) -> Path:
        return self.folder / "models" / "liver-ct"

    @property
    def pseudo(self) -> Path:
        return self.folder / "pseudo"

    @property
    def pool(self) -> Path:
        return self.folder / "pool"

    @property
    def model(self) -> Path:
        return self.folder / "models" / "universal"

    @property
    def report(self) -> Path:
        return self.folder / "report"

    @property
    def registration(self) -> Path:
        return self.folder / "registration"


def finished_run(factory: pytest.TempPathFactory, tiny: Params) -> ToyRun:
    """A run of image `IMAGE` and KFP run `KFP`, with its MLflow database in it, for tests that leave it alone."""

    def write(folder: Path) -> None:
        (folder / "run").mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'run' / 'mlflow.db'}")
            patch.setenv(STAGE_IMAGE_VARIABLE, IMAGE)
            patch.setenv(KFP_RUN_VARIABLE, KFP)
            patch.setenv(COMMIT_VARIABLE, COMMIT)
            write_run(folder / "run", tiny)

    return ToyRun(made_once(factory, "lineage", write) / "run")


def copied_run(finished: ToyRun, target: Path) -> ToyRun:
    """The artifacts of a run in another folder, without the MLflow database."""
    shutil.copytree(finished.folder, target, ignore=shutil.ignore_patterns("mlflow.db", ".mlflow*", "mlartifacts"))
    return ToyRun(target)


def hash_of(folder: Path) -> str:
    """The content hash of an artifact."""
    return read_any_manifest(folder).hash


def write_run(folder: Path, tiny: Params) -> ToyRun:
    """Write the run into `folder`, with MLflow at MLFLOW_TRACKING_URI."""
    run = ToyRun(folder)
    _write_cohort(run.cohort, folder / "scratch")
    teacher_origin = {Cohort.KIND: hash_of(run.cohort), ModelFolder.ROLE: ModelFolder.teacher_role(Modality.CT)}
    train(run.teacher, tiny, teacher_origin, (run.cohort,))
    made_from = {Cohort.KIND: hash_of(run.cohort), PseudoLabels.teacher(Modality.CT): hash_of(run.teacher)}
    with write_artifact(run.pseudo, PseudoLabels.KIND, made_from) as partial:
        PseudoLabels(partial).save_table([])
    _write_pool(run.pool, hash_of(run.cohort), hash_of(run.pseudo), made_from)
    origin = {ModelFolder.POOL: hash_of(run.pool), ModelFolder.ROLE: ModelFolder.UNIVERSAL}
    origin[ModelFolder.WARM_START] = hash_of(run.teacher)
    version = {ModelFolder.POOL_VERSION: dvc_version(run.pool)}
    train(run.model, tiny, origin, (run.pool, run.teacher, folder / "no-such-teacher"), version)
    parents = {Cohort.KIND: hash_of(run.cohort), ModelFolder.KIND: hash_of(run.model)}
    facts = {Report.TEST_SET: "a", Report.COMMIT: COMMIT, ModelFolder.KIND: hash_of(run.model), **version}
    with write_artifact(run.report, Report.KIND, parents) as partial:
        dice = {name: {"dice": {"mean": 0.9}} for name in ("liver", "tumour")}
        Report(partial).save({"CT": dice}, facts, scores(0.9), pd.DataFrame({"case_id": []}))
    hepar.stages.register.run(run.model, run.report, run.registration, toy_gates(tiny, NAME), "toy")
    return run


def train(
    model: Path,
    tiny: Params,
    origin: Mapping[str, str],
    inputs: tuple[Path, ...],
    notes: Mapping[str, str] | None = None,
    plan: PreprocessingPlan = PLAN,
) -> None:
    """Write a model folder and its MLflow run, as a training does; the hash of the model is that of its origin."""
    spec = toy_spec(tiny.network).model_copy(update={"origin": dict(origin), "plan": plan})
    checkpoints = model.parent / f"checkpoints-{model.name}"
    with TrainingRun("toy", model.name, spec, tiny.train_universal.training, checkpoints) as tracked:
        tracked.log_files(LINEAGE, partial(write_records, inputs))
        with write_artifact(model, ModelFolder.KIND, {**origin, **(notes or {})}) as folder:
            saved = ModelFolder(folder)
            saved.save(toy_weights(tiny), spec)
            saved.save_history(pd.DataFrame([(1, "train", "", "loss", 0.5)], columns=list(saved.HISTORY_COLUMNS)))
            saved.save_patients(())
        tracked.tag_model(hash_of(model))
    shutil.rmtree(checkpoints)


def _write_cohort(cohort: Path, scratch: Path) -> None:
    """Case a, fully labelled, and case b of the test split, whose liver is unknown; ingest has refused case c."""
    made = write_case(scratch)
    with write_artifact(cohort, Cohort.KIND, {}) as partial:
        cases = []
        for name, split in (("a", Split.TRAIN), ("b", Split.TEST)):
            files = {
                what: Cohort.volume(name, what) for what in ("image", "tumour", *(["liver"] if name == "a" else []))
            }
            for what, place in files.items():
                (partial / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(scratch / "cohort" / f"{what}.nii.gz", partial / place)
            case = replace(made, case_id=name, patient_id=PATIENT, source="LiTS", licence=LICENCE, split=split, **files)
            if name == "b":
                case = replace(case, liver="", liver_state=LabelState.UNKNOWN, liver_sha256="")
            cases.append(replace(case, source_sha256="5" * 64, header='{"secret": "kept out"}'))
        Cohort(partial, tuple(cases)).save()
        write_quarantine(partial / Cohort.QUARANTINE, [Refused("c", "no scan occurs twice", PATIENT)])
    shutil.rmtree(scratch)


def _write_pool(pool: Path, cohort: str, pseudo: str, pseudo_parents: Mapping[str, str]) -> None:
    parents = {Cohort.KIND: cohort, PseudoLabels.KIND: pseudo}
    inherited = as_parents_of_parent(PseudoLabels.KIND, pseudo_parents)
    with write_artifact(pool, Pool.KIND, {**parents, **inherited}) as partial:
        made = toy_pool(partial, [Toy("a", source="LiTS")])
        entries = [with_columns(entry, licence=LICENCE, patient_id=PATIENT) for entry in made.entries]
        Pool(partial, made.plan, tuple(entries)).save()
