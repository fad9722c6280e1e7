"""The model of a fold on its test scans in other lights."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

import numpy as np

from folds.lights import LIGHTS, Scan
from folds.scoring import ScanScores, from_json, score_scan
from folds.training import FoldFolder
from hepar.cases import Case, Cohort, LabelState, Split
from hepar.evaluation.references import read_references
from hepar.imaging.volumes import Geometry, read_image, to_array, to_image
from hepar.inference.model_folder import ModelFolder
from hepar.inference.prediction import Model, load_ensemble, segment
from hepar.inference.settings import PredictionSettings
from hepar.runtime.artifacts import read_manifest, sha256_json, write_json
from hepar.runtime.device import pick_device, use_threads

STRESS = "stress.json"


@dataclass(frozen=True)
class Predictor:
    """The models of a fold and the settings of its evaluation."""

    models: list[Model]
    settings: PredictionSettings

    @classmethod
    def load(cls, fold: FoldFolder) -> Predictor:
        params = fold.params.evaluate
        use_threads(params.threads)
        return cls(load_ensemble(fold.model, pick_device()), PredictionSettings.from_params(params))


def stress_fold(fold: FoldFolder) -> dict[str, list[ScanScores]]:
    """Scores by light, of the fold's test scans with a manual liver.

    They are kept in `stress.json` scan by scan, and computed again if model, cohort or settings change.
    """
    path = fold.folder / STRESS
    manifests = [read_manifest(fold.model, ModelFolder.KIND), read_manifest(fold.cohort, Cohort.KIND)]
    key = sha256_json([*(manifest.hash for manifest in manifests), fold.params.evaluate.model_dump(mode="json")])
    stored = json.loads(path.read_text()) if path.is_file() else {}
    done = stored["lights"] if stored.get("key") == key else {}
    cohort, predictor = Cohort.load(fold.cohort), None
    chosen = [case for case in cohort.select(None, (Split.TEST,)) if case.liver_state == LabelState.MANUAL]
    for number, case in enumerate(chosen, start=1):
        lights = LIGHTS[case.modality]
        if all(case.case_id in done.get(light, {}) for light in lights):
            continue
        predictor = predictor or Predictor.load(fold)
        if case.modality not in predictor.models[0].spec.modalities:
            continue
        for light, scores in _stress(case, cohort, predictor, fold).items():
            done.setdefault(light, {})[case.case_id] = asdict(scores)
        write_json(path, {"key": key, "lights": done})
        print(f"{fold.title}: {number} of {len(chosen)} scans in other lights", file=sys.stderr, flush=True)
    return {light: [from_json(value) for value in scans.values()] for light, scans in done.items()}


def _stress(case: Case, cohort: Cohort, predictor: Predictor, fold: FoldFolder) -> dict[str, ScanScores]:
    """The scores of a case by light."""
    image = read_image(cohort.file(case.image))
    geometry = Geometry.of(image)
    references = read_references(cohort, case, predictor.models[0].spec.taught)
    liver_zyx = read_references(cohort, case).liver_zyx
    assert liver_zyx is not None  # only cases with a manual liver are changed
    scan = Scan(case.case_id, to_array(image).astype(np.float32), liver_zyx, geometry.spacing_zyx_mm)
    found = {}
    for light, change in LIGHTS[case.modality].items():
        changed = to_image(change(scan), geometry)
        predicted = segment(predictor.models, changed, case.modality, predictor.settings)
        found[light] = score_scan(case, fold.seed, fold.folder.name, references, predicted.labels_zyx)
    return found
