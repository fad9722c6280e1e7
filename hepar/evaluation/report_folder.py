"""The folder `report/`: summary metrics, provenance, scores of each case, lesions, the page and predicted masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from hepar.cases import STRUCTURES
from hepar.errors import ArtifactError, one_line
from hepar.evaluation.label_pairs import CaseIdentity
from hepar.inference.settings import PredictionSettings
from hepar.runtime.artifacts import Manifest, read_manifest, write_json
from hepar.runtime.csv_cells import frame_from_csv, frame_to_csv
from hepar.runtime.verification import verify_artifact
from hepar.runtime.whole_files import write_text


@dataclass(frozen=True)
class Report:
    """A report on disk. `Report(folder)` addresses one that is being written; `Report.load` opens a finished one."""

    folder: Path

    KIND = "report"
    METRICS = "metrics.json"  # by modality, see `summarise`
    FACTS = "facts.json"  # what was scored: hashes of cohort, test set, pool and model, settings, and the commit
    TEST_SET = "test set"  # the fact that tells whether two reports are comparable
    SOURCES = "test sources"  # those of the test scans, with licences
    PREDICTIONS = "predictions"  # the hash of masks that were scored without a model
    REFERENCE_LABELS, PREDICTION_LABELS = "labels of the reference", "labels of the prediction"  # of such masks
    COMMIT = "git commit"
    SETTINGS = tuple(item.name for item in fields(PredictionSettings))  # of the prediction
    LEFT_TO_MODEL = "left to the model"  # the names of the settings whose values are the model's own
    NOT_SCORED = "not scored"  # the structures that the model was not taught; only if there are such
    CASES = "cases.csv"
    TEXTS = tuple(item.name for item in fields(CaseIdentity))  # the columns of that table that hold texts
    LESIONS = "lesions.csv"  # a row per reference and predicted lesion, see `LesionRow`
    PAGE = "report.html"
    MASKS = "masks"  # <case>.nii.gz: 0 background, 1 liver, 2 tumour
    PROBABILITIES = "probabilities"  # <case>_<structure>.nii.gz: 255 times the probability, around the liver

    @property
    def page(self) -> Path:
        """The HTML page."""
        return self.folder / self.PAGE

    def mask(self, case_id: str) -> Path:
        """The predicted labels of a case."""
        return self.folder / self.MASKS / f"{case_id}.nii.gz"

    def probability(self, case_id: str, structure: str) -> Path:
        """The predicted probabilities of a structure of a case, see `keep_probabilities`."""
        return self.folder / self.PROBABILITIES / f"{case_id}_{structure}.nii.gz"

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, read once. Raises ArtifactError if it is missing, damaged or of another kind."""
        return read_manifest(self.folder, self.KIND)

    def metrics(self) -> dict[str, Any]:
        """The summary metrics by modality. Raises ArtifactError if the file cannot be read."""
        return self._read(self.METRICS)

    def mean_dice(self) -> dict[str, float]:
        """The mean Dice of each structure that was scored, by names such as `CT/liver_dice`."""
        return {
            f"{modality}/{structure}_dice": structures[structure]["dice"]["mean"]
            for modality, structures in self.metrics().items()
            for structure in STRUCTURES
            if structures[structure]["dice"]["mean"] is not None
        }

    def facts(self) -> dict[str, str]:
        """What was scored, by hash. Raises ArtifactError if the file cannot be read."""
        return self._read(self.FACTS)

    def prediction_settings(self) -> dict[str, str]:
        """How the masks were predicted, for `PredictionSettings.from_facts`; older reports name fewer settings."""
        facts = self.facts()
        return {name: facts[name] for name in self.SETTINGS if name in facts}

    def cases(self) -> pd.DataFrame:
        """Scores of each case, one row per case."""
        return frame_from_csv(self.cases_csv(), self.TEXTS)

    def cases_csv(self) -> str:
        """The table of `cases` as it is stored."""
        return (self.folder / self.CASES).read_text()

    def lesions(self) -> pd.DataFrame:
        """The lesions of reference and prediction, one row per lesion."""
        return frame_from_csv((self.folder / self.LESIONS).read_text(), self.TEXTS)

    def save(
        self, metrics: Mapping[str, Any], facts: Mapping[str, str], cases: pd.DataFrame, lesions: pd.DataFrame
    ) -> None:
        """Write metrics, facts and the tables of cases and lesions; the same values give the same bytes."""
        write_json(self.folder / self.METRICS, metrics)
        write_json(self.folder / self.FACTS, facts)
        write_text(self.folder / self.CASES, frame_to_csv(cases))
        write_text(self.folder / self.LESIONS, frame_to_csv(lesions))

    @classmethod
    def load(cls, folder: Path) -> Report:
        """Open a finished report. Raises ArtifactError if it is of another kind or a file is missing or damaged."""
        verify_artifact(folder, cls.KIND)
        return cls(folder)

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be read: {one_line(error)}") from None
        if not isinstance(found, dict):
            raise ArtifactError(f"{path} must hold an object but holds a {type(found).__name__}")
        return found
