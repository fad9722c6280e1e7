"""One case after another gets its pseudo-liver: predicted by the teacher of its modality, and judged by the gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hepar.cases import Case, Modality
from hepar.inference.model_folder import hash_patient
from hepar.inference.prediction import Model
from hepar.params import PseudoLabelParams
from hepar.pseudo_labels.finished import FinishedLivers
from hepar.pseudo_labels.folder import LabelledCase, PseudoLabels
from hepar.pseudo_labels.gates import judge
from hepar.pseudo_labels.prediction import load_signals, predict_pseudo_liver
from hepar.runtime.artifacts import sha256_file


@dataclass(frozen=True)
class Teacher:
    """A teacher's hash, the hashes of the patients that it learned from, and its models."""

    hash: str
    patients: frozenset[str]
    ensemble: Sequence[Model]


@dataclass(frozen=True)
class Labeller:
    """Labels one case after another, or finds what it had predicted before it was stopped."""

    labels: PseudoLabels
    finished: FinishedLivers
    cohort: Path
    params: PseudoLabelParams
    teachers: Mapping[Modality, Teacher]

    def label(self, case: Case) -> dict[str, Any]:
        """Write the masks of a case; returns its row of the table."""
        teacher = self.teachers[case.modality]
        liver = self.finished.find(case.case_id)
        if liver is None:
            predicted = predict_pseudo_liver(case, self.cohort, teacher.ensemble, self.params)
            liver = self.finished.keep(case.case_id, predicted)
        self.labels.link_masks(case.case_id, liver)
        signals = load_signals(liver)
        verdict = judge(signals, case.modality, self.params.gates)
        labelled = LabelledCase(
            case_id=case.case_id,
            modality=str(case.modality),
            teacher=teacher.hash,
            teacher_saw_patient=hash_patient(case.patient_id) in teacher.patients,
            mask_sha256=sha256_file(self.labels.liver(case.case_id)),
        )
        return asdict(labelled) | asdict(signals) | verdict.row()
