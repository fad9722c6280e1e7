"""The sections of `params.yaml`: frozen, typed, without a second default anywhere.

A preset may say `extends: ../params.yaml` and hold only what differs. Unknown keys are errors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from hepar.errors import ParamsError


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] >= pair[1]:
        raise ValueError(f"{list(pair)} must be ascending")
    return pair


def _falling(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] < bounds[1]:
        raise ValueError(f"{list(bounds)}: the bound of review must not be below that of rejection")
    return bounds


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"{list(bounds)}: the bound of review must not be above that of rejection")
    return bounds


def _none_or_enough(cases: int) -> int:
    if cases != 0 and cases < MIN_PHANTOMS:
        raise ValueError(f"{cases} phantoms are too few, must be 0 or at least {MIN_PHANTOMS}")
    return cases


def _whole(value: Any) -> Any:
    """Whole floats as integers, however deep: KFP hands 3 on as 3.0, and a network wants sizes."""
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


MIN_PHANTOMS = 8
WHOLE = "config"  # of a network, which takes the place of the one that a file extends
NULL = "null"  # as YAML has it
REGISTERED = "models:/"
WARM_START = rf"^(none|CT|MR|{REGISTERED}.+)$"
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Interval = Annotated[tuple[float, float], AfterValidator(_ascending)]
Bounds = tuple[float, float]  # of review and of rejection
AtLeast = Annotated[Bounds, AfterValidator(_falling)]
AtMost = Annotated[Bounds, AfterValidator(_rising)]
SignalName = Literal[  # what hepar.pseudo_labels.gates measures of a pseudo-liver
    "volume_ml",
    "component_share",
    "hole_share",
    "roughness",
    "right_share",
    "cut_share",
    "agreement",
    "entropy",
    "tumour_inside",
    "intensity_distance",
]
SizeZYX = tuple[AtLeastOne, AtLeastOne, AtLeastOne]
SpacingZYX = tuple[Positive, Positive, Positive]


class Section(BaseModel):
    """A part of the parameters that one stage receives."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PhantomParams(Section):
    """The built-in digital abdomens, read where the source is `phantoms`."""

    cases: Annotated[int, Field(ge=MIN_PHANTOMS)]  # half CT, half MR
    seed: Count
    size_zyx: SizeZYX  # voxels; the field of view stays an abdomen


class AddedPhantoms(Section):
    """Phantoms of each modality, all masks known, that join the training patients of another source; 0 for none."""

    CT: Annotated[int, AfterValidator(_none_or_enough)]
    MR: Annotated[int, AfterValidator(_none_or_enough)]


class SplitParams(Section):
    """Shares of patients held out, where the source names no split of its own."""

    test: Share
    val: Share


class IngestParams(Section):
    """Reading, checking and canonicalising the source."""

    phantoms: PhantomParams
    added_phantoms: AddedPhantoms
    layout: str  # of a folder or zip: auto, or one of those that docs/data.md names
    uneven_slices: Literal["refuse", "resample"]  # of DICOM series with unequal steps or a tilted gantry
    split: SplitParams
    split_from: str  # a table, a cohort or an s3:// address: case_id or patient_id, split; empty: none
    max_refused_share: Share  # a larger share of refused cases fails the stage


class PreprocessingParams(Section):
    """From a canonical volume to the array that a network reads."""

    spacing_zyx_mm: SpacingZYX | None  # null: the median spacing of the cohort
    window_hu: Interval  # CT is clipped to it and scaled to -1..1
    mr_percentiles: Interval  # MR is clipped to these percentiles inside the body, then z-scored


class NetworkParams(Section):
    """Which network, and its own settings."""

    name: str
    config: Annotated[dict[str, Any], BeforeValidator(_whole)]


class AugmentationParams(Section):
    """Random changes of a training patch. A probability of 0 switches one off."""

    affine_probability: Share
    rotation_degrees: Annotated[float, Field(ge=0, le=180)]
    scale: Annotated[float, Field(ge=0, lt=1)]  # zoom along each axis drawn from 1-scale..1+scale
    mirror_axes: tuple[Literal["z", "y", "x"], ...]  # each flipped with probability 0.5
    intensity_probability: Share
    contrast: Annotated[float, Field(ge=0, lt=1)]  # factor drawn from 1-contrast..1+contrast
    brightness: Annotated[float, Field(ge=0)]  # shift in units of the normalised image
    noise: Annotated[float, Field(ge=0)]  # largest standard deviation of added noise
    blur_probability: Share
    elastic_probability: Share
    elastic_voxels: Annotated[float, Field(ge=0)]  # largest standard deviation of a smooth displacement
    gamma_probability: Share
    gamma: Annotated[float, Field(ge=0)]  # exponent drawn from e^-gamma..e^gamma
    low_resolution_probability: Share
    low_resolution: Annotated[float, Field(ge=1)]  # voxels up to so many times larger, then interpolated back
    bias_field_probability: Share  # of an MR patch
    bias_field: Annotated[float, Field(ge=0)]  # largest logarithm of a smooth factor
    lesion_probability: Share  # made-up lesions are laid into a known liver, where real ones are few
    remap_probability: Share  # values pass through a random curve, so that organs change places in brightness


class SamplingParams(Section):
    """Where patches are cut. What remains of 1 is cut anywhere."""

    tumour_share: Share
    liver_share: Share

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if self.tumour_share + self.liver_share > 1:
            raise ValueError(f"tumour_share + liver_share is {self.tumour_share + self.liver_share}, must be at most 1")
        return self


class TrainingParams(Section):
    """The optimisation of one network."""

    steps: AtLeastOne
    batch_size: AtLeastOne  # patches, over all processes together
    accumulate: AtLeastOne  # batches whose gradients are averaged for one step
    processes: Count  # that share each batch; 0: one for each GPU, as far as they divide the batch
    patch_zyx: SizeZYX
    learning_rate: Positive
    schedule: Literal["polynomial", "cosine"]  # how the learning rate falls to zero after the warm-up
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_steps: Count
    ema_decay: Annotated[float, Field(ge=0, lt=1)]  # the moving average is what is validated and kept
    clip_norm: Positive
    bce_weights: tuple[Positive, Positive]  # of liver and tumour in the cross entropy
    nesting_weight: Annotated[float, Field(ge=0)]  # weight of the penalty on tumour outside the liver
    snapshots: tuple[Share, ...]  # shares of the steps after which the moving average is kept too, as a further member
    validate_every: AtLeastOne  # steps between two validations
    validation_cases: Count  # at most so many cases a modality; 0 validates on none
    patience: Count  # validations without a better score after which training ends; 0: it never does
    checkpoint_every: AtLeastOne  # steps between two checkpoints
    threads: Count  # CPU threads; 0: all cores. Results repeat bit for bit only at the same number
    workers: Count  # threads that cut patches ahead of the step; 0: none
    cache_gib: Annotated[float, Field(ge=0)]  # arrays are kept in memory where all of them fit; else read from disk
    precision: Literal["fp32", "bf16", "fp16"]  # of the forward pass; fp16 scales its loss
    compile: bool  # by torch.compile, on a GPU: the first step takes a minute, the others less
    gradient_checkpointing: bool
    consistency_weight: Annotated[float, Field(ge=0)]  # pull to the moving average's prediction where nothing is known
    consistency_rampup_steps: Count  # over which that weight grows from almost nothing
    seed: Count
    sampling: SamplingParams
    augmentation: AugmentationParams


class TrainLiverParams(Section):
    """Stage 1: the liver teacher of one modality."""

    folds: AtLeastOne  # teachers, each of which leaves out one fold of the patients; 1: one teacher that sees all
    training: TrainingParams


class DicePredictor(Section):
    """How the signals of a pseudo-liver predict its true Dice; `hepar calibrate-gates` writes it.

    A weighted sum of the signals, each clipped to what was seen while calibrating, is read off a curve. Teachers of CT
    and MR are not equally good where their signals are the same.
    """

    signals: Annotated[tuple[SignalName, ...], Field(min_length=1)]
    low: tuple[float, ...]
    high: tuple[float, ...]
    coefficients: tuple[float, ...]
    mr_offset: float  # of the sum for an MR scan
    scores: Annotated[tuple[float, ...], Field(min_length=1)]  # ascending
    dice: tuple[float, ...]  # at each score

    @model_validator(mode="after")
    def _of_equal_length(self) -> Self:
        if {len(self.low), len(self.high), len(self.coefficients)} != {len(self.signals)}:
            raise ValueError("low, high and coefficients must have one number a signal")
        if len(self.scores) != len(self.dice) or list(self.scores) != sorted(self.scores):
            raise ValueError("scores must be ascending, with one dice each")
        return self


class GateParams(Section):
    """What a pseudo-liver has to pass. Of two bounds, beyond the first it waits for review, beyond the second it is
    rejected."""

    volume_ml: Interval  # outside: rejected
    min_component_share: AtLeast  # of the largest component in all that was predicted
    max_hole_share: AtMost  # of the liver that had to be filled in
    max_roughness: AtMost  # surface against that of the smoothed liver
    min_right_share: AtLeast  # of the liver on the patient's right of the body's centre
    max_cut_share: AtMost  # of the liver on the border of the field of view
    min_agreement: AtLeast  # Dice between predictions under test-time augmentation and of an ensemble
    max_entropy: AtMost  # of the mean probability, in bits for each voxel of the liver
    min_tumour_inside: AtLeast  # share of the manual tumour inside the predicted liver
    max_intensity_distance: AtMost  # of the liver's median from manual livers, in their standard deviations
    min_predicted_dice: AtLeast  # by the predictor, where there is one
    predictor: DicePredictor | None
    review_weight: Share  # of a label that waits for review


class PseudoLabelParams(Section):
    """Stage 1's masks for cases that lack a liver."""

    overlap: Annotated[float, Field(ge=0, lt=1)]  # of neighbouring windows
    variants: AtLeastOne  # predictions a case, the plain one included; their agreement is a gate
    uncertain: Interval  # mean probabilities in it count as an uncertain boundary
    threads: Count
    gates: GateParams


class CalibrateGatesParams(Section):
    """How `hepar calibrate-gates` finds out which pseudo-livers can be trusted."""

    folds: Annotated[int, Field(ge=2)]  # of the patients with manual livers; each is hidden from one teacher
    shares: tuple[Share, ...]  # of the teachers' steps after which their earlier states draw livers, too
    min_dice: Share  # wished for of accepted labels
    coverage: Share  # share of the accepted labels that shall have it


class AssemblePoolParams(Section):
    """Which labels the universal model learns from, and what is known of a voxel."""

    modalities: Annotated[tuple[Literal["CT", "MR"], ...], Field(min_length=1)]
    labels: Literal["tumour", "manual", "mixed"]  # tumour masks only; and manual livers; and pseudo-livers
    unknown_tumour: Literal["masked", "ignored", "background"]  # masked: negatives outside the liver are used
    margin_mm: Annotated[float, Field(ge=0)]  # the liver is dilated by it before its outside counts as tumour-free
    reviews: str  # decisions of people on pseudo-livers: a folder, or s3://BUCKET/PREFIX; empty: none


class TrainUniversalParams(Section):
    """Stage 2: one model for both modalities."""

    warm_start: Annotated[str, Field(pattern=WARM_START)]  # none; the teacher CT or MR; a registered models:/NAME@ALIAS
    training: TrainingParams


class EvaluateParams(Section):
    """Scores on the held-out patients."""

    overlap: Annotated[float, Field(ge=0, lt=1)]
    threads: Count
    bootstrap_resamples: AtLeastOne
    bootstrap_seed: Count
    min_lesion_ml: Annotated[float, Field(ge=0)]  # smaller predicted tumour components are dropped


class PromotionGates(Section):
    """When a challenger replaces the champion."""

    min_liver_dice: Share  # per modality
    min_tumour_dice: Share  # per modality that has tumours in the test split
    max_drop: Share  # the largest loss against the champion that is let pass, in any mean Dice


class RegisterParams(Section):
    """The model registry."""

    model_name: str
    experiment: str
    gates: PromotionGates


class Params(Section):
    """A whole `params.yaml`."""

    ingest: IngestParams
    preprocessing: PreprocessingParams
    network: NetworkParams
    train_liver: TrainLiverParams
    pseudo_label: PseudoLabelParams
    calibrate_gates: CalibrateGatesParams
    assemble_pool: AssemblePoolParams
    train_universal: TrainUniversalParams
    evaluate: EvaluateParams
    register_model: RegisterParams = Field(alias="register")


SectionT = TypeVar("SectionT", bound=Section)


def load_params(path: Path) -> Params:
    """Read a params file, with what it extends. Raises ParamsError naming file, key and value."""
    values = _read(path)
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise ParamsError(f"{path}: {_first(error)}") from None


def read_section(kind: type[SectionT], values: Mapping[str, Any]) -> SectionT:
    """Check one section, as a component receives it. Raises ParamsError naming key and value."""
    try:
        return kind.model_validate(_replaced(values, NULL, None))
    except ValidationError as error:
        raise ParamsError(f"{kind.__name__}: {_first(error)}") from None


def dump_params(params: Params) -> dict[str, Any]:
    """The parameters as plain values, keyed as in the file."""
    return params.model_dump(mode="json", by_alias=True)


def dump_sections(params: Params) -> dict[str, Any]:
    """The parameters as `read_section` takes them: KFP knows no null, so its place holds the word."""
    sections: dict[str, Any] = _replaced(dump_params(params), None, NULL)
    return sections


def _replaced(value: Any, old: str | None, new: str | None) -> Any:
    if isinstance(value, Mapping):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(item, old, new) for item in value]
    return new if value is old or value == old else value


def write_preset(path: Path, extends: Path, values: Mapping[str, Any], comment: str) -> None:
    """Write a new params file that extends another; `values` are keyed by dotted names. Raises ParamsError as below.

    A network's config is written whole, since it takes the place of the one that is extended.
    """
    check_new_preset(path, extends)
    base = _read(extends)
    nested: dict[str, Any] = {"extends": os.path.relpath(extends.resolve(), path.resolve().parent)}
    for dotted, value in values.items():
        *sections, key = dotted.split(".")
        place, there = nested, base
        for section in sections:
            there = there.get(section, {})
            place = place.setdefault(section, dict(there) if section == WHOLE else {})
        place[key] = value
    path.write_text(f"# {comment}\n" + yaml.safe_dump(nested, sort_keys=False, default_flow_style=None))


def check_new_preset(path: Path, extends: Path) -> None:
    """Raise ParamsError where a new params file cannot be written: it is there, or nothing may be written beside it."""
    if path.exists():
        raise ParamsError(f"{path} is there already: name another file to extend {extends}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ParamsError(f"{path} cannot be written: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK):
        raise ParamsError(f"{path} cannot be written: {path.parent} is not to be written to")


def _first(error: ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}{more}"
    if first["type"] == "missing":
        return f"key {key} is missing{more}"
    return f"{key} is {first['input']!r}: {first['msg']}{more}"


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ParamsError(f"{path}: extends itself")
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ParamsError(f"params file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(f"params file {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"{path}: must be a mapping of sections")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ParamsError(f"{path}: extends is {base!r}, must name a params file")
    return _merge(_read(path.parent / base, (*seen, path.resolve())), values)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != WHOLE
        merged[key] = _merge(merged[key], value) if nested else value
    return merged
