"""The steps of a study. A step is named by a hash of all that it depends on, so that arms with equal inputs share it.

A cell is one arm with one seed in one fold: the chain of stages up to its report. The cohort has the scans of the
study's own modalities, also for an arm of one modality, whose pool then leaves out the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hepar.cases import Modality
from hepar.params import Params, dump_params
from hepar.runtime.artifacts import sha256_json
from pipelines.studies.definition import Arm, Study

INGEST, TRAIN_LIVER, PSEUDO_LABEL = "ingest", "train-liver", "pseudo-label"
ASSEMBLE_POOL, TRAIN_UNIVERSAL, EVALUATE = "assemble-pool", "train-universal", "evaluate"
SECTIONS = {  # of the params that a stage reads
    INGEST: ("source", "modalities", "ingest"),
    TRAIN_LIVER: ("preprocessing", "network", "train_liver"),
    PSEUDO_LABEL: ("pseudo_label",),
    ASSEMBLE_POOL: ("modalities", "preprocessing", "assemble_pool"),
    TRAIN_UNIVERSAL: ("network", "train_universal"),
    EVALUATE: ("evaluate",),
}
COHORT, PSEUDO, POOL, MODEL, REPORT = "cohort", "pseudo", "pool", "model", "report"  # what steps hand on
TEACHERS = {Modality.CT: "teacher_ct", Modality.MR: "teacher_mr"}
OWN_SPLIT = "split of the source"  # the name of the only fold of a study without cross-validation
KEY_DIGITS = 12  # of the hash in a name


@dataclass(frozen=True)
class PlannedStep:
    """A stage with its params and the steps whose results it reads, by the name of the input."""

    stage: str
    params: Params
    inputs: Mapping[str, PlannedStep]
    key: str
    modality: Modality | None = None  # of a teacher
    split: str = ""  # the split table that ingest reads, see `FoldSplit`

    @property
    def name(self) -> str:
        """The stage, and for a teacher its modality."""
        return self.stage if self.modality is None else f"{self.stage}-{self.modality}"

    @property
    def id(self) -> str:
        """A name that no other step has."""
        return f"{self.name.lower()}-{self.key[:KEY_DIGITS]}"


@dataclass(frozen=True)
class StudyCell:
    """One arm with one seed in one fold, and its steps in order; the last one writes the report."""

    arm: str
    seed: int
    fold: str
    steps: tuple[PlannedStep, ...]

    @property
    def title(self) -> str:
        return f"{self.arm}, seed {self.seed}" + ("" if self.fold == OWN_SPLIT else f", {self.fold}")


@dataclass(frozen=True)
class FoldSplit:
    """A fold: its split table and what its source holds, as a hash.

    The table is CSV, or for a cluster its address; empty for the split of the source.
    """

    name: str = OWN_SPLIT
    split: str = ""
    source_hash: str = ""


def plan_cells(study: Study, folds: tuple[FoldSplit, ...] = (FoldSplit(),)) -> list[StudyCell]:
    """All cells, seed by seed, so that a study that is cut short has every arm with the first seeds."""
    return [
        StudyCell(arm.name, seed, fold.name, tuple(_chain(study, arm, seed, fold)))
        for seed in study.file.seeds
        for fold in folds
        for arm in study.arms
    ]


def unique_steps(cells: list[StudyCell]) -> list[PlannedStep]:
    """Each step once, after those that it reads."""
    return list({step.key: step for cell in cells for step in cell.steps}.values())


def _chain(study: Study, arm: Arm, seed: int, fold: FoldSplit) -> Iterator[PlannedStep]:
    """The steps of a cell in order."""
    params = _seeded(arm.params, seed)
    teaching = _seeded(study.first.params, seed) if study.file.teachers == "first" else params
    whole = params.model_copy(update={"modalities": study.base.modalities})
    cohort = _step(INGEST, whole, {}, fold=fold)
    yield cohort
    teachers = {}
    for modality, role in TEACHERS.items():
        teachers[role] = _step(TRAIN_LIVER, teaching, {COHORT: cohort}, modality=modality)
        yield teachers[role]
    pseudo = _step(PSEUDO_LABEL, teaching, {COHORT: cohort, **teachers})
    yield pseudo
    pool = _step(ASSEMBLE_POOL, params, {COHORT: cohort, PSEUDO: pseudo})
    yield pool
    model = _step(TRAIN_UNIVERSAL, params, {POOL: pool, **teachers})
    yield model
    yield _step(EVALUATE, params, {COHORT: cohort, MODEL: model})


def _step(
    stage: str,
    params: Params,
    inputs: Mapping[str, PlannedStep],
    modality: Modality | None = None,
    fold: FoldSplit | None = None,
) -> PlannedStep:
    """A step with its key, which leaves out where a source lies if its content is known."""
    values = dump_params(params)
    known = ("source",) if fold is not None and fold.source_hash else ()
    depends = {
        "stage": stage,
        "modality": modality,
        "params": {name: values[name] for name in SECTIONS[stage] if name not in known},
        "inputs": {role: needed.key for role, needed in inputs.items()},
        "source": "" if fold is None else [fold.source_hash, fold.split],
    }
    return PlannedStep(stage, params, inputs, sha256_json(depends), modality, "" if fold is None else fold.split)


def _seeded(params: Params, seed: int) -> Params:
    """The params with this seed of both trainings."""
    teacher = params.train_liver.training.model_copy(update={"seed": seed})
    universal = params.train_universal.training.model_copy(update={"seed": seed})
    return params.model_copy(
        update={
            "train_liver": params.train_liver.model_copy(update={"training": teacher}),
            "train_universal": params.train_universal.model_copy(update={"training": universal}),
        }
    )
