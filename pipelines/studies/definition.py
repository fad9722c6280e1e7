"""The file of a study: params that all arms share, what each arm changes, the budget, seeds, folds, and the claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, StringConstraints, ValidationError, model_validator

from hepar.cases import Modality
from hepar.errors import ParamsError, one_line
from hepar.evaluation.comparison import choose_metrics
from hepar.ingest.sources.dicomweb import without_identifiers
from hepar.params import AtLeastOne, Count, Params, Section, load_params, override_params
from hepar.runtime.redaction import QUERY_VARIABLE, redact_address
from pipelines.studies.budget import BudgetKind, budgeted

ArmName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 .,%+()/-]*$", max_length=40)]
COMMON = {  # what no arm may change, and why
    "source": "all arms learn from one source",
    "ingest.split": "all arms are tested on the same patients",
    "ingest.split_from": "all arms are tested on the same patients",
    "train_liver.training.seed": "seeds gives it",
    "train_universal.training.seed": "seeds gives it",
    "train_universal.training.steps": "the budget gives it",
    "evaluate": "all arms are scored alike",
}


class Claim(Section):
    """A sentence, and the difference between two arms that decides whether it holds (see `claims.judge`)."""

    claim: str
    arm: str
    than: str
    metric: str  # as in `hepar compare`
    modalities: Annotated[tuple[Modality, ...], Field(min_length=1)]  # the claim is judged in each
    by: float  # `arm` is better by more than this; below 0: it is not worse by this much


class StudyFile(Section):
    """A study as it is written. Paths are relative to the file."""

    question: str
    params: str  # the params file that all arms start from
    common: dict[str, Any]  # changes of these params for all arms, keyed as in a params file or by dotted names
    arms: Annotated[dict[ArmName, dict[str, Any]], Field(min_length=2)]  # what each arm changes; the first is compared
    budget: BudgetKind  # in which each arm has what the first one has with its steps
    teachers: Literal["own", "first"]  # first: all arms use the teachers and pseudo-labels of the first
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)]  # of all trainings of an arm
    folds: (
        AtLeastOne  # 1: the split of the source; more: cross-validation of a table's training and validation patients
    )
    claims: tuple[Claim, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds has a number twice")
        for claim in self.claims:
            for name in (claim.arm, claim.than):
                if name not in self.arms:
                    raise ValueError(f"claim {claim.claim!r} names the unknown arm {name!r}")
            if claim.arm == claim.than:
                raise ValueError(f"claim {claim.claim!r} compares the arm {claim.arm!r} with itself")
            try:
                choose_metrics([claim.metric])
            except ParamsError as error:
                raise ValueError(f"claim {claim.claim!r}: {error}") from None
        return self


@dataclass(frozen=True)
class Arm:
    """An arm with whole params, its steps already at the budget."""

    name: str
    params: Params


@dataclass(frozen=True)
class Study:
    """A study whose arms have been checked. `base` are the params that they start from."""

    name: str
    file: StudyFile
    base: Params
    arms: tuple[Arm, ...]

    @property
    def first(self) -> Arm:
        """The arm that the others are compared with."""
        return self.arms[0]


def load_study(path: Path, source: str | None = None) -> Study:
    """Read the file of a study; `source` replaces that of its params.

    Raises ParamsError naming file, arm and key.
    """
    file = _read(path)
    base = override_params(load_params(path.parent / file.params), file.common, f"{path}: common")
    if source is not None:
        base = override_params(base, {"source": source}, "--source")
    if without_identifiers(base.source)[1]:  # params are written beside results, and compiled
        address = redact_address(base.source)
        raise ParamsError(f"source {address} names a patient: leave the value empty and set {QUERY_VARIABLE}")
    changed = {name: override_params(base, overrides, f"{path}: arm {name!r}") for name, overrides in file.arms.items()}
    first = next(iter(changed.values()))
    arms = []
    for name, params in changed.items():
        where = f"{path}: arm {name!r}"
        _check_common(params, base, where)
        if file.teachers == "first":
            _check_teachers(params, first, where)
        try:
            arms.append(Arm(name, budgeted(params, first, file.budget)))
        except ParamsError as error:
            raise ParamsError(f"{where}: {error}") from None
    return Study(path.stem, file, base, tuple(arms))


def _read(path: Path) -> StudyFile:
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ParamsError(f"study {path} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParamsError(f"study {path} cannot be read: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"study {path} must be a mapping")
    try:
        return StudyFile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = one_line(first["msg"]).removeprefix("Value error, ")  # as pydantic begins ours
        what = "unknown key" if first["type"] == "extra_forbidden" else message
        raise ParamsError(f"study {path}: {f'{key}: ' if key else ''}{what}") from None


def _check_common(params: Params, base: Params, where: str) -> None:
    for key, reason in COMMON.items():
        if value_of(params, key) != value_of(base, key):
            raise ParamsError(f"{where} changes {key}: {reason}")


def _check_teachers(params: Params, first: Params, where: str) -> None:
    """Raise ParamsError if an arm cannot use the teachers of the first one."""
    for key in ("ingest", "train_liver", "pseudo_label", "preprocessing"):
        if value_of(params, key) != value_of(first, key):
            raise ParamsError(f"{where} changes {key}, so it needs teachers: own")
    if params.train_universal.warm_start in set(Modality) and params.network != first.network:
        raise ParamsError(f"{where} starts from a teacher of another network: set train_universal.warm_start to none")


def value_of(params: Params, key: str) -> object:
    """The value at a dotted key of the params."""
    value: Any = params
    for name in key.split("."):
        value = value[name] if isinstance(value, Mapping) else getattr(value, name)
    return value
