"""A model on disk: spec, weights, members of an ensemble, training history, and the patients seen in training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hepar.cases import Modality
from hepar.errors import ArtifactError, DataError, one_line
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.inference.defaults import MIN_LESION_ML, TUMOUR_THRESHOLD
from hepar.params import NetworkParams, SizeZYX
from hepar.runtime.artifacts import read_manifest, write_json
from hepar.runtime.journal import finish_replacing
from hepar.runtime.tensor_files import read_tensors
from hepar.runtime.verification import verify_artifact
from hepar.runtime.whole_files import check_archive, whole_file, write_text

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor  # a step without torch reads specs and versions, too


class ModelSpec(BaseModel):
    """Everything about a model except its weights. `origin` gives the hashes of what it was trained on.

    `taught` names the structures that its training data had labels for; prediction leaves out the others.
    `tumour_threshold` is the probability that a lesion must exceed somewhere and `min_lesion_ml` the least volume of a
    lesion, both chosen on the validation patients.
    `liver_intensity` has, by modality, mean and standard deviation over the livers learned from of the median
    preprocessed intensity inside the liver; a modality of which none is known is missing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: NetworkParams
    plan: PreprocessingPlan
    patch_zyx: SizeZYX
    modalities: tuple[Modality, ...]
    taught: tuple[Literal["liver", "tumour"], ...] = ("liver", "tumour")
    tumour_threshold: float = TUMOUR_THRESHOLD
    min_lesion_ml: float = MIN_LESION_ML
    liver_intensity: dict[Modality, tuple[float, float]] = Field(default_factory=dict)
    origin: dict[str, str]

    @model_validator(mode="before")
    @classmethod
    def _read_pair(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Earlier models have the pair of a liver teacher's only modality, or null."""
        known = values.get("liver_intensity", {})
        if isinstance(known, Mapping):
            return values
        return {**values, "liver_intensity": dict.fromkeys(values["modalities"], known) if known else {}}


_MEMBER = "member "


@dataclass(frozen=True)
class ModelFolder:
    """A model folder, at `folder`. Weights are state dicts without pickled code.

    Members are further weights of the same network, which together with the first form an ensemble.
    """

    folder: Path

    KIND = "model"
    SPEC = "model.json"
    WEIGHTS = "weights.pt"
    MEMBERS = "members"
    HISTORY = "history.csv"
    HISTORY_COLUMNS = ("step", "split", "modality", "metric", "value")
    PATIENTS = "patients.json"
    NOT_TRAINED = "not_trained.txt"  # instead of a model: of a teacher that the cohort does not need
    POOL, POOL_VERSION, WARM_START = "pool", "pool version", "warm start"  # parents of a universal model
    ROLE, UNIVERSAL = "role", "universal"  # an entry of `origin`, and its value for the universal model
    FOLD = "fold"  # an entry of `origin` of a teacher that leaves out one fold, such as 2/3
    ENSEMBLE_INTENSITY = "liver intensity of all folds"  # a parent of such a teacher: that of its ensemble, as JSON

    @staticmethod
    def teacher_role(modality: Modality) -> str:
        """The role of the liver teacher of a modality."""
        return f"liver teacher {modality}"

    @staticmethod
    def member_name(number: int) -> str:
        """The name among the parents of an ensemble of the model that a member was taken from; numbers start at 1."""
        return f"{_MEMBER}{number}"

    @staticmethod
    def is_member(name: str) -> bool:
        """Whether a parent is one that `member_name` has named."""
        return name.startswith(_MEMBER)

    def save(
        self, weights: Mapping[str, Tensor], spec: ModelSpec, members: Sequence[Mapping[str, Tensor]] = ()
    ) -> None:
        """Write spec, weights and members; the folder must exist."""
        write_json(self.folder / self.SPEC, spec.model_dump(mode="json"))
        _save_weights(weights, self.folder / self.WEIGHTS)
        for number, member in enumerate(members, start=1):
            self.add_member(member, number)

    def save_untrained(self, reason: str) -> None:
        """Write why there is no model, which has seen no patient.

        Reading the folder as a model then raises ArtifactError with that reason.
        """
        write_text(self.folder / self.NOT_TRAINED, f"{reason}\n")
        self.save_patients(())

    def not_trained(self) -> str | None:
        """Why there is no model; None if there is one."""
        place = self.folder / self.NOT_TRAINED
        return place.read_text().strip() if place.is_file() else None

    def _check_trained(self) -> None:
        if (reason := self.not_trained()) is not None:
            raise ArtifactError(f"{self.folder} holds no model: {reason}")

    def add_member(self, weights: Mapping[str, Tensor], number: int) -> None:
        """Write the weights of one more member; numbers start at 1."""
        _save_weights(weights, self.folder / self.MEMBERS / f"{number}.pt")

    def load_spec(self) -> ModelSpec:
        """Read the spec. Raises ArtifactError if it or another file of the model is missing or damaged."""
        finish_replacing(self.folder)
        if not self.folder.exists():
            raise ArtifactError(f"{self.folder} does not exist")
        self._check_trained()
        if not (self.folder / self.SPEC).is_file():
            raise ArtifactError(f"{self.folder} is not a model folder: {self.SPEC} is missing")
        verify_artifact(self.folder, self.KIND)
        try:
            return ModelSpec.model_validate(json.loads((self.folder / self.SPEC).read_text()))
        except ValueError as error:
            raise ArtifactError(f"{self.folder / self.SPEC} is damaged: {one_line(error)}") from None

    def weight_files(self) -> tuple[str, ...]:
        """Files that hold weights, relative to the folder: the model's own first, then its members by number."""
        members = sorted((self.folder / self.MEMBERS).glob("*.pt"), key=lambda path: int(path.stem))
        return (self.WEIGHTS, *(f"{self.MEMBERS}/{path.name}" for path in members))

    def load_weights(self, name: str = WEIGHTS) -> dict[str, Tensor]:
        """Read the state dict of a weight file, on the CPU, after a check of its hash.

        Raises ArtifactError if it is missing or damaged, or if a parameter is not finite.
        """
        import torch

        self._check_trained()
        if not (self.folder / name).is_file():
            raise ArtifactError(f"{self.folder} is not a complete model: {name} is missing")
        verify_artifact(self.folder, self.KIND, [name], deep=True)
        try:
            weights: dict[str, Tensor] = read_tensors(self.folder / name)
        except DataError as error:
            raise ArtifactError(f"{self.folder} is damaged: {one_line(error)}") from None
        if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
            raise ArtifactError(f"{self.folder / name} is damaged: it is not a state dict")
        for parameter, value in weights.items():
            if not torch.isfinite(value).all():
                raise ArtifactError(f"{self.folder / name} is damaged: {parameter} is NaN or infinite")
        return weights

    def save_history(self, history: pd.DataFrame) -> None:
        """Write losses and scores by step; the table must have `HISTORY_COLUMNS`."""
        write_text(self.folder / self.HISTORY, history[list(self.HISTORY_COLUMNS)].to_csv(index=False))

    def load_history(self) -> pd.DataFrame:
        """Read the history; `modality` is empty for metrics over all modalities.

        Raises ArtifactError if it is missing or damaged.
        """
        import pandas as pd  # takes 40 MiB, which a prediction need not hold

        verify_artifact(self.folder, self.KIND, [self.HISTORY])
        # as text, or an empty modality would become NaN
        return pd.read_csv(self.folder / self.HISTORY, keep_default_na=False, na_values={"value": [""]})

    def save_patients(self, hashes: Iterable[str]) -> None:
        """Write the patients whose labels the model has seen in training or validation, by `hash_patient`."""
        write_text(self.folder / self.PATIENTS, json.dumps(sorted(set(hashes)), indent=0) + "\n")

    def has_patients(self) -> bool:
        """Whether the folder lists the patients; that of an imported checkpoint does not."""
        return self.PATIENTS in read_manifest(self.folder, self.KIND).files

    def load_patients(self) -> frozenset[str]:
        """Hashes of the patients whose labels the model has seen. Raises ArtifactError if there is no list or it is
        damaged."""
        if not self.has_patients():
            raise ArtifactError(
                f"{self.folder} does not list the patients seen in training: {self.PATIENTS} is missing"
            )
        verify_artifact(self.folder, self.KIND, [self.PATIENTS])
        return frozenset(json.loads((self.folder / self.PATIENTS).read_text()))


def hash_patient(patient_id: str) -> str:
    """SHA-256 of a patient id: a model folder holds no id itself."""
    return hashlib.sha256(patient_id.encode()).hexdigest()


def _save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    import torch

    with whole_file(path) as partial:  # of the same name, which torch writes into the file
        torch.save({name: value.detach().cpu().contiguous() for name, value in weights.items()}, partial)
        check_archive(path, partial)
