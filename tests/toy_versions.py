"""Versions of a model in a registry, with scores by case and a model folder that may lack the weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params, RegisterParams
from hepar.registry.model_registry import REPORT_TAG, RegisteredModel
from hepar.registry.tracking import as_tags, connect, report_place
from hepar.runtime.artifacts import read_manifest, write_artifact
from hepar.runtime.commit import RELEASE, release

MLMODEL = "flavors: {python_function: {loader_module: none, artifacts: {model: {path: artifacts/model}}}}"


def scores(liver: float, patients: int = 6) -> pd.DataFrame:
    """CT scans with this liver Dice, whose tumours are unknown."""
    counts = [f"lesion_iou>0_{name}" for name in ("true_positives", "false_negatives", "false_positives")]
    empty = dict.fromkeys(["tumour_dice", "specific", "false_positive_volume_ml", *counts])
    identity = {"modality": "CT", "sequence": "", "source": "s", "liver_dice": liver}
    rows = [{"case_id": f"c{n}", "patient_id": f"p{n}", **identity, **empty} for n in range(patients)]
    return pd.DataFrame(rows)


def toy_gates(tiny: Params, name: str = "hepar-toy") -> RegisterParams:
    """A floor of 0.5 and a margin of 0.02 on liver Dice, from three patients."""
    gates = {"min_liver_dice": 0.5, "max_liver_drop": 0.02, "min_patients": 3}
    return RegisterParams(model_name=name, gates=tiny.register_model.gates.model_copy(update=gates))


@dataclass
class ToyRegistry:
    """A registered model at MLFLOW_TRACKING_URI."""

    folder: Path
    name: str = "hepar-toy"

    def __post_init__(self) -> None:
        self.client: Any = connect().MlflowClient()
        self.client.create_registered_model(self.name)
        self.experiment = self.client.create_experiment("toy", artifact_location=self.artifacts())

    def artifacts(self) -> str | None:
        """Where artifacts lie; None is the server's own place."""
        return (self.folder / "artifacts").as_uri()

    def add(self, table: pd.DataFrame | None, test_set: str = "a", model: Path | None = None, **facts: str) -> str:
        """The number of a new version with these scores by case; None registers it without, as older releases did.

        Without a model folder it gets an empty one, of a model that has seen no patient.
        """
        run = self.client.create_run(self.experiment).info
        logged = self._write_model(run.run_id, model)
        self.client.log_artifacts(run.run_id, str(logged.parents[1]))
        model_hash = read_manifest(logged, ModelFolder.KIND).hash if model else run.run_id
        tags = as_tags({Report.TEST_SET: test_set, RELEASE: release(), ModelFolder.KIND: model_hash, **facts})
        if table is not None:
            report = self.folder / f"report-{run.run_id}"
            report.mkdir(parents=True)
            Report(report).save({}, {}, table, pd.DataFrame({"case_id": []}))
            tags[REPORT_TAG] = run.run_id
            self.client.log_artifacts(run.run_id, str(report), report_place(run.run_id))
        version = self.client.create_model_version(self.name, run.artifact_uri, run.run_id, tags=tags)
        return str(version.version)

    def _write_model(self, run_id: str, model: Path | None) -> Path:
        """A model folder where MLflow puts that of a version."""
        root = self.folder / f"model-{run_id}"
        folder = root / "artifacts" / "model"
        if model is None:
            with write_artifact(folder, ModelFolder.KIND, {}) as partial:
                ModelFolder(partial).save_patients(())
        else:
            shutil.copytree(model, folder)
        (root / "MLmodel").write_text(MLMODEL)
        return folder

    def champion(self, table: pd.DataFrame | None, test_set: str = "a", model: Path | None = None, **facts: str) -> str:
        """The number of a new version, which becomes champion whatever its scores are."""
        number = self.add(table, test_set, model, **facts)
        RegisteredModel(connect(), self.name).make_champion(number)
        return number

    @property
    def aliases(self) -> dict[str, str]:
        return RegisteredModel(connect(), self.name).aliases()

    def tag(self, number: str, key: str) -> str:
        return str(self.client.get_model_version(self.name, number).tags[key])

    def tags(self, numbers: Sequence[str]) -> list[dict[str, str]]:
        return [dict(self.client.get_model_version(self.name, number).tags) for number in numbers]


class ServedRegistry(ToyRegistry):
    """A registered model whose files MLflow's server keeps."""

    def artifacts(self) -> None:
        return None
