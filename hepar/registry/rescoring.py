"""The champion scored anew on the test cases of a challenger, by its own model from the registry.

A cohort that grows changes the test set, so the scores that the champion was registered with do not pair with those of
a challenger. Nor do scores of two releases of hepar; a challenger that another one scored is scored anew as well.
Scores by case are kept with the run of the model, so a repeated decision predicts nothing. The cohort lies in a folder,
or in the store, of which the volumes of these cases alone are fetched, a case at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hepar.cases import Case, Cohort, Split
from hepar.errors import ArtifactError, DataError, StorageError, one_line
from hepar.evaluation.held_out import (
    beside_references,
    describe_case,
    given_settings,
    hash_test_set,
    identify_case,
)
from hepar.evaluation.label_pairs import LabelPair, SegmentedCase
from hepar.evaluation.report_folder import Report
from hepar.evaluation.scores import CaseScores, score_case, scores_table
from hepar.imaging.volumes import Geometry, read_image
from hepar.inference.model_folder import ModelFolder
from hepar.inference.prediction import Model, load_ensemble, segment
from hepar.inference.settings import PredictionSettings
from hepar.registry.case_results import CaseResult, case_results
from hepar.registry.model_registry import ModelVersion, downloaded_model, files_of_run
from hepar.runtime.artifacts import sha256_json
from hepar.runtime.commit import RELEASE, release
from hepar.runtime.csv_cells import frame_from_csv, frame_to_csv
from hepar.runtime.device import pick_device, use_threads
from hepar.runtime.fetching import fetched
from hepar.runtime.progress import current_stage
from hepar.runtime.scratch import scratch_folder
from hepar.runtime.verification import verify_artifact

RESCORED = "rescored"  # the folder of a run with scores by case: rescored/<model and settings>/<case>.csv
KEY_LENGTH = 16


@dataclass(frozen=True)
class HeldOut:
    """The test cases of an evaluation, in their cohort, and the settings that it was given."""

    cohort: Cohort
    cases: tuple[Case, ...]
    settings: PredictionSettings

    @classmethod
    def of_version(cls, version: ModelVersion, folder: Path) -> HeldOut:
        """Those of a version, from the cohort that it was scored on.

        Raises DataError if `folder` holds another cohort or the version names no settings, ArtifactError if a volume
        is damaged.
        """
        cohort = Cohort.load(folder)
        scored = {result.case_id for result in version.cases or ()}
        cases = tuple(case for case in cohort.select(None, (Split.TEST,)) if case.case_id in scored)
        try:
            settings = given_settings(version.facts)
        except ValueError as error:
            raise DataError(f"version {version.number}: its evaluation cannot be repeated: {one_line(error)}") from None
        if hash_test_set(cases, settings) != version.test_set:
            known = version.facts.get(Cohort.KIND, "")[:12] or "unknown"
            raise DataError(
                f"{folder} does not hold the test set that version {version.number} was scored on: pass --cohort with"
                f" the cohort of its report ({known})"
            )
        cohort.verify(cases)
        return cls(cohort, cases, settings)


def rescore(mlflow: Any, version: ModelVersion, held_out: HeldOut) -> tuple[CaseResult, ...]:
    """The scores of a version's model on test cases; a case of a modality that it was not trained on has none.

    Raises ArtifactError if the model is not in the registry or not the one that was registered, StorageError if kept
    scores cannot be read.
    """
    place = f"{RESCORED}/{_settings_key(version, held_out.settings)}"
    files = {case.case_id: f"{place}/{_case_key(case)}.csv" for case in held_out.cases}
    kept = set(files_of_run(mlflow, version.run_id, place))
    if missing := [case for case in held_out.cases if files[case.case_id] not in kept]:
        with scratch_folder(RESCORED) as scratch, current_stage().counting(len(missing), "cases") as count:
            for case, scores in _score(version, missing, held_out):
                file = scratch / Path(files[case.case_id]).name
                file.write_text(frame_to_csv(scores_table([scores])))
                mlflow.MlflowClient().log_artifact(version.run_id, str(file), place)
                count.advance(case=case.case_id, version=version.number)
    return _read(mlflow, version, place, files)


def _settings_key(version: ModelVersion, settings: PredictionSettings) -> str:
    """What the scores of any case depend on: the model, the settings, and the release that scores."""
    key = {
        ModelFolder.KIND: version.model_hash,
        "settings": dict(settings.facts()),
        RELEASE: release(),
    }
    return sha256_json(key)[:KEY_LENGTH]


def _case_key(case: Case) -> str:
    return sha256_json(describe_case(case))[:KEY_LENGTH]


def _score(version: ModelVersion, cases: Sequence[Case], held_out: HeldOut) -> Iterator[tuple[Case, CaseScores]]:
    use_threads(0)
    with _own_model(version) as models:
        for case in cases:
            segmented = (
                _segmented(models, held_out, case) if case.modality in models[0].spec.modalities else _none(case)
            )
            yield case, score_case(segmented)


@contextmanager
def _own_model(version: ModelVersion) -> Iterator[Sequence[Model]]:
    """The ensemble of a version, checked against the hash that it was registered with."""
    with downloaded_model(version.uri) as folder:
        manifest = verify_artifact(folder, ModelFolder.KIND, deep=True)
        if manifest.hash != version.model_hash:
            raise ArtifactError(
                f"{version.uri} holds model {manifest.hash[:12]}, but was registered as {version.model_hash[:12]}"
            )
        yield load_ensemble(folder, pick_device())


def _segmented(models: Sequence[Model], held_out: HeldOut, case: Case) -> SegmentedCase:
    path = held_out.cohort.file(case.image)
    with fetched(path) as here:
        image = read_image(here[path])
    predicted = segment(models, image, case.modality, held_out.settings)
    return beside_references(held_out.cohort, case, predicted, Geometry.of(image))


def _none(case: Case) -> SegmentedCase:
    """A case of which nothing is scored."""
    nothing = LabelPair(None, np.zeros(case.size, bool))
    return SegmentedCase(identify_case(case), nothing, nothing, case.spacing_mm, case.distances_known)


def _read(mlflow: Any, version: ModelVersion, place: str, files: Mapping[str, str]) -> tuple[CaseResult, ...]:
    """The kept scores of these cases; the folder may hold those of others."""
    try:
        with scratch_folder(RESCORED) as scratch:
            got = mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path=place, dst_path=str(scratch))
            texts = [(Path(got) / Path(file).name).read_text() for file in files.values()]
            return tuple(result for text in texts for result in case_results(frame_from_csv(text, Report.TEXTS)))
    except (OSError, ValueError, KeyError) as error:
        what = f"version {version.number} of {version.name}"
        raise StorageError(f"{what}: its scores on these cases cannot be read: {one_line(error)}") from None
