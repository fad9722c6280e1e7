"""Suspicious liver masks as a queue for `hepar review`: a folder of pseudo-labels whose livers are the masks in doubt.

The uncertain voxels of each are those on which mask and prediction differ, so the page shows them over the scan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hepar.cases import Case, Cohort
from hepar.imaging.volumes import Geometry, read_image, read_mask, to_image, write_image
from hepar.inference.model_folder import ModelFolder
from hepar.inference.prediction import Model, load_ensemble, segment
from hepar.inference.settings import PredictionSettings
from hepar.pseudo_labels.folder import LabelledCase, PseudoLabels
from hepar.pseudo_labels.gates import REVIEW, Verdict
from hepar.pseudo_labels.signals import Signals
from hepar.registry.model_registry import ModelVersion, downloaded_model
from hepar.retraining.folder import RetrainingFolder
from hepar.retraining.suspicion import Suspect
from hepar.runtime.artifacts import link_or_copy, read_manifest, write_artifact
from hepar.runtime.device import pick_device


@dataclass(frozen=True)
class SuspectQueue:
    """Writes the queue of a cohort, with predictions of a champion under the settings of its evaluation."""

    cohort: Cohort
    champion: ModelVersion
    settings: PredictionSettings

    def write(self, suspects: Sequence[Suspect], folder: RetrainingFolder) -> None:
        """Replace the queue. A suspect that ingest refused has no mask to look at, and is left out.

        Raises ArtifactError if the champion's model cannot be fetched.
        """
        masks = {found.case_id: found for found in suspects if found.dice is not None}
        parents = {
            Cohort.KIND: read_manifest(self.cohort.folder, Cohort.KIND).hash,
            ModelFolder.KIND: self.champion.model_hash,
        }
        with write_artifact(folder.suspects, PseudoLabels.KIND, parents) as partial:
            labels = PseudoLabels(partial)
            cases = [case for case in self.cohort if case.case_id in masks]
            labels.save_table([self._row(case, masks[case.case_id]) for case in cases])
            for case, models in self._with_models(cases):
                self._write_masks(case, models, labels)

    def _with_models(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Sequence[Model]]]:
        if cases:
            with downloaded_model(self.champion.uri) as model:
                models = load_ensemble(model, pick_device())
                yield from ((case, models) for case in cases)

    def _write_masks(self, case: Case, models: Sequence[Model], labels: PseudoLabels) -> None:
        image = read_image(self.cohort.file(case.image))
        predicted_zyx = segment(models, image, case.modality, self.settings).liver_zyx
        differs_zyx = predicted_zyx ^ read_mask(self.cohort.file(case.liver))
        link_or_copy(self.cohort.file(case.liver), labels.liver(case.case_id))
        write_image(to_image(differs_zyx.astype(np.uint8), Geometry.of(image)), labels.uncertain(case.case_id))

    def _row(self, case: Case, suspect: Suspect) -> dict[str, Any]:
        """The row of the table: of the signals only the agreement of mask and prediction is known."""
        labelled = LabelledCase(
            case_id=case.case_id,
            modality=str(case.modality),
            teacher=self.champion.model_hash,
            teacher_saw_patient=False,
            mask_sha256=case.liver_sha256,
        )
        signals = dict.fromkeys(Signals.names(), float("nan")) | {"agreement": suspect.dice}
        return asdict(labelled) | signals | Verdict(REVIEW, 0.0, (suspect.reason,)).row()
