"""Whose labels a model has seen, in training or validation: hashes of patients' ids in its `patients.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from hepar.errors import ArtifactError

FILE = "patients.json"


def hash_patient(patient_id: str) -> str:
    """How a model remembers a patient."""
    return hashlib.sha256(patient_id.encode()).hexdigest()


def write_patients(model: Path, hashes: Iterable[str]) -> None:
    """Note in a model folder whose labels the model has seen, by `hash_patient`."""
    (model / FILE).write_text(json.dumps(sorted(set(hashes)), indent=0) + "\n")


def patients_seen(model: Path) -> frozenset[str]:
    """Hashes of the patients whose labels a model has seen. Raises ArtifactError where the model does not tell."""
    if not (model / FILE).is_file():
        raise ArtifactError(f"{model} does not tell whose labels it has seen: {FILE} is missing")
    return frozenset(json.loads((model / FILE).read_text()))
