"""The sections of `params.yaml`: frozen and typed. The stages have no other defaults.

A preset can say `extends: ../params.yaml` and hold only its differences. Unknown keys are errors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from hepar.cases import Modality
from hepar.errors import ParamsError, one_line
from hepar.runtime.redaction import CREDENTIALS_RULE, has_credentials, redact, redact_address
from hepar.runtime.whole_files import write_text


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] >= pair[1]:
        raise ValueError(f"{list(pair)} must be ascending")
    return pair


def _falling(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] < bounds[1]:
        raise ValueError(f"{list(bounds)}: the review bound must not be below the rejection bound")
    return bounds


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"{list(bounds)}: the review bound must not be above the rejection bound")
    return bounds


def _none_or_enough(cases: int) -> int:
    if cases != 0 and cases < MIN_PHANTOMS:
        raise ValueError(f"{cases} phantoms are too few: set 0 or at least {MIN_PHANTOMS}")
    return cases


def _without_credentials(address: str) -> str:
    if has_credentials(address):
        raise ValueError(CREDENTIALS_RULE)
    return address


def _whole(value: Any) -> Any:
    """Whole floats as integers at any depth: KFP turns 3 into 3.0, but network sizes are integers."""
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


MIN_PHANTOMS = 8
WHOLE = "config"  # of a network: replaces the one that the file extends, and is never merged with it
NULL = "null"  # stands for None in KFP, which has none
REGISTERED = "models:/"
CHAMPION = "champion"  # the alias of the best version of a model
WARM_START = rf"^(none|CT|MR|{REGISTERED}.+)$"
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Interval = Annotated[tuple[float, float], AfterValidator(_ascending)]
MRScale = Literal["linear", "quartiles", "quantiles"]
Uneven = Literal["refuse", "resample"]
Bounds = tuple[float, float]  # for review, for rejection
AtLeast = Annotated[Bounds, AfterValidator(_falling)]
AtMost = Annotated[Bounds, AfterValidator(_rising)]
SignalName = Literal[  # the fields of pseudo_labels.signals.Signals
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
Address = Annotated[str, AfterValidator(_without_credentials)]
# champion (of register.model_name), none, a version in the store, or a registered model that was made from one
StartFrom = Annotated[str, Field(pattern=rf"^({CHAMPION}|none|[0-9a-f]{{32}}\.dir|{REGISTERED}.+)$")]
SizeZYX = tuple[AtLeastOne, AtLeastOne, AtLeastOne]
SpacingZYX = tuple[Positive, Positive, Positive]


class Section(BaseModel):
    """One section of the parameters; a stage receives its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PhantomParams(Section):
    """The built-in phantoms: the source `phantoms`. `added_phantoms` uses their size, and their seed plus 1."""

    cases: Annotated[int, Field(ge=MIN_PHANTOMS)]  # half CT, half MR
    seed: Count
    size_zyx: SizeZYX  # voxels; the field of view always covers the abdomen
    labels: Literal["partial", "full"]  # full: no mask is hidden


class AddedPhantoms(Section):
    """Fully labelled phantoms added to the training patients of another source, by modality; 0 for none."""

    CT: Annotated[int, AfterValidator(_none_or_enough)]
    MR: Annotated[int, AfterValidator(_none_or_enough)]


class SplitParams(Section):
    """Fractions of patients to hold out if the source defines no split."""

    test: Share
    val: Share

    @model_validator(mode="after")
    def _below_one(self) -> Self:
        total = self.test + self.val
        if total >= 1:
            raise ValueError(f"test + val is {total} but must be below 1, so that patients remain to train on")
        return self


class IngestParams(Section):
    """Reading, checking and canonicalising the source."""

    phantoms: PhantomParams
    added_phantoms: AddedPhantoms
    layout: str  # of a folder or zip: auto, or a layout listed in docs/data.md
    uneven_slices: Uneven  # DICOM series with unequal slice spacing or gantry tilt
    empty_roi: Literal["unknown", "absent"]  # what an empty ROI, segment or mask series of the layout dicom says
    split: SplitParams
    split_from: Address  # predefined split (case_id or patient_id, split): table, cohort or s3:// URL; empty: none
    liver_share: Annotated[float, Field(gt=0, le=1)]  # of the training patients with manual livers; others are hidden
    max_refused_share: Share  # the stage fails if a larger fraction of cases is refused
    start_from: StartFrom  # cohort whose unchanged cases a run with HEPAR_STORE takes over


class PreprocessingParams(Section):
    """From a canonical volume to the network's input."""

    spacing_zyx_mm: SpacingZYX | None  # null: median spacing of the training and validation cases
    window_hu: Interval  # CT is clipped to it and scaled to -1..1
    mr_percentiles: Interval  # MR is clipped to these percentiles of the body
    mr_scale: MRScale  # then scaled by mean and SD (linear), by its quartiles, or to quantiles of a normal distribution


class NetworkParams(Section):
    """The network and its settings."""

    name: str
    config: Annotated[dict[str, Any], BeforeValidator(_whole)]


class ByModality(Section):
    """A probability for the patches of each modality."""

    CT: Share
    MR: Share

    def of(self, modality: Modality) -> float:
        """The probability for a modality."""
        return self.CT if modality == Modality.CT else self.MR


class AugmentationParams(Section):
    """Augmentation of training patches. A probability of 0 switches a transform off."""

    affine_probability: Share
    rotation_degrees: Annotated[float, Field(ge=0, le=180)]
    scale: Annotated[float, Field(ge=0, lt=1)]  # zoom of each axis, drawn from 1-scale..1+scale
    mirror_axes: tuple[Literal["z", "y", "x"], ...]  # each mirrored with probability 0.5
    intensity_probability: Share
    contrast: Annotated[float, Field(ge=0, lt=1)]  # factor drawn from 1-contrast..1+contrast
    brightness: NotNegative  # shift, in units of the normalised image
    noise: NotNegative  # largest standard deviation of Gaussian noise
    blur_probability: Share
    elastic_probability: Share
    elastic_voxels: NotNegative  # largest standard deviation of the displacement field
    gamma_probability: Share
    gamma: NotNegative  # exponent drawn from e^-gamma..e^gamma
    low_resolution_probability: Share
    low_resolution: Annotated[float, Field(ge=1)]  # largest factor of downsampling before interpolating back
    bias_field_probability: Share  # MR only
    bias_field: NotNegative  # largest log of the smooth gain
    remap_probability: Share  # of a random intensity curve, which reorders the brightness of organs
    monotone_probability: Share  # of a random intensity curve that keeps the order
    inversion_probability: Share  # of inverted intensities, MR only
    liver_shift_probability: Share  # of a liver that is brighter or darker than its surroundings
    liver_shift: NotNegative  # largest such shift, in units of the normalised image
    lesions: ByModality  # probability of synthetic lesions in a patch with a known liver
    look_alikes: ByModality  # probability of harmless findings that look like lesions, in such a patch


class SamplingParams(Section):
    """Fractions of patches centred on a tumour, on a liver known to be tumour-free, and on any liver; the rest are
    centred anywhere. Where a modality has no tumour or no tumour-free liver, half of these patches are centred on any
    liver and half anywhere in scans with a known liver."""

    tumour_share: Share
    tumour_free_share: Share
    liver_share: Share

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        total = self.tumour_share + self.tumour_free_share + self.liver_share
        if total > 1:
            raise ValueError(f"tumour_share + tumour_free_share + liver_share is {total} but must be at most 1")
        return self


class TrainingParams(Section):
    """Training of one network."""

    steps: AtLeastOne
    batch_size: AtLeastOne  # patches, summed over all processes
    accumulate: AtLeastOne  # batches per step (gradient accumulation)
    processes: Count  # sharing each batch; 0: one per GPU, as far as the batch divides evenly
    patch_zyx: SizeZYX
    learning_rate: Positive
    schedule: Literal["polynomial", "cosine"]  # decay of the learning rate after the warm-up
    weight_decay: NotNegative
    warmup_steps: Count
    ema_decay: Annotated[float, Field(ge=0, lt=1)]  # of the weights; the average is validated and saved
    clip_norm: Positive
    bce_weights: tuple[Positive, Positive]  # of liver and tumour in the cross entropy over all known voxels
    inside_weights: tuple[NotNegative, NotNegative]  # over the voxels of the structure alone, falling to 0 at the end
    nesting_weight: NotNegative  # of the penalty on tumour outside the liver
    snapshots: tuple[Share, ...]  # fractions of the training at which the average is saved as an ensemble member
    validate_every: AtLeastOne  # steps between two validations
    validation_cases: Count  # per modality, at most; 0: no validation
    patience: Count  # validations without improvement before training stops early; 0: never
    checkpoint_every: AtLeastOne  # steps between two checkpoints
    checkpoint_minutes: Positive  # between two checkpoints that go to the store, with HEPAR_STORE
    threads: Count  # CPU threads; 0: all cores. Bit-identical results need the same number
    workers: Count  # threads that prefetch patches; 0: none
    cache_gib: NotNegative  # memory for arrays; if they don't all fit, they are read from disk
    precision: Literal["fp32", "bf16", "fp16"]  # of the forward pass; fp16 uses loss scaling
    compile: bool  # torch.compile, GPU only: the first step takes a minute
    gradient_checkpointing: bool
    consistency_weight: NotNegative  # of consistency with the averaged model where labels are unknown
    consistency_rampup_steps: Count  # over which that weight ramps up
    seed: Count
    sampling: SamplingParams
    augmentation: AugmentationParams

    def scaled(self, share: float) -> Self:
        """The training with a share of its steps, of its warm-up (none stays none) and of the steps between
        validations."""
        given = {name: getattr(self, name) for name in ("steps", "validate_every", "warmup_steps")}
        return self.model_copy(update={name: max(min(1, steps), round(steps * share)) for name, steps in given.items()})


class TrainLiverParams(Section):
    """Stage 2, train-liver: the liver teacher of one modality."""

    folds: AtLeastOne  # 1: one teacher trained on all patients; k: an ensemble of k, each leaving one fold out
    training: TrainingParams

    def check_compiled(self, folds: int, pipeline: str = "the pipeline") -> None:
        """Raise ParamsError if a pipeline has the steps of another number of folds; one step trains any number."""
        if folds > 1 and self.folds != folds:
            raise ParamsError(
                f"train_liver.folds is {self.folds}, but {pipeline} has the steps of {folds} folds: compile it with"
                f" {self.folds}"
            )


class DicePredictor(Section):
    """Predicts the true Dice of a pseudo-liver from its signals; written by `hepar calibrate-gates`.

    A monotone curve maps a weighted sum of the signals, each clipped to its range during calibration, to Dice. MR has
    an offset, because CT and MR teachers differ in quality at equal signals.
    """

    signals: Annotated[tuple[SignalName, ...], Field(min_length=1)]
    low: tuple[float, ...]
    high: tuple[float, ...]
    coefficients: tuple[float, ...]
    mr_offset: float  # added to the sum for MR
    scores: Annotated[tuple[float, ...], Field(min_length=1)]  # ascending
    dice: tuple[float, ...]  # at each score

    @model_validator(mode="after")
    def _of_equal_length(self) -> Self:
        if {len(self.low), len(self.high), len(self.coefficients)} != {len(self.signals)}:
            raise ValueError("low, high and coefficients must have one number per signal")
        if len(self.scores) != len(self.dice) or list(self.scores) != sorted(self.scores):
            raise ValueError("scores must be ascending, each with one dice")
        return self


class GateParams(Section):
    """Thresholds of the gates. Of two bounds, beyond the first a pseudo-liver goes to review, beyond the second it is
    rejected."""

    volume_ml: Interval  # outside: rejected
    min_component_share: AtLeast  # fraction of the prediction in the component that is the liver
    max_hole_share: AtMost  # fraction of the liver that was filled holes
    max_roughness: AtMost  # surface area relative to that of the smoothed liver
    min_right_share: AtLeast  # fraction of the liver right of the body's centre (patient's right)
    max_cut_share: AtMost  # fraction of the liver on the border of the field of view
    min_agreement: AtLeast  # lowest Dice between the unaugmented prediction and any other
    max_entropy: AtMost  # of the mean probability, in bits per liver voxel
    min_tumour_inside: AtLeast  # fraction of the manual tumour inside the predicted liver
    max_intensity_distance: AtMost  # of the median from that of manual livers, in standard deviations
    min_predicted_dice: AtLeast  # by the predictor, if there is one
    predictor: DicePredictor | None
    review_weight: Share  # loss weight of a label awaiting review


class PseudoLabelParams(Section):
    """Pseudo-livers for cases without a liver mask."""

    overlap: Annotated[float, Field(ge=0, lt=1)]  # of neighbouring windows
    variants: AtLeastOne  # test-time variants per case, the plain one included; their agreement is a gate
    uncertain: Interval  # mean probabilities that mark the uncertain boundary
    threads: Count
    gates: GateParams


class CalibrateGatesParams(Section):
    """Calibration of the gates by `hepar calibrate-gates`."""

    folds: Annotated[int, Field(ge=2)]  # of the patients with manual livers; each fold is hidden from one teacher
    shares: tuple[Share, ...]  # fractions of the training at which teachers predict as well, standing for weaker ones
    min_dice: Share  # target Dice of accepted labels
    coverage: Share  # fraction of accepted labels that must reach it


UnknownTumour = Literal["masked", "ignored", "background", "left-out"]


class AssemblePoolParams(Section):
    """Labels that the universal model learns from."""

    labels: Literal["tumour", "manual", "mixed"]  # tumour masks only; plus manual livers; plus pseudo-livers
    unknown_tumour: UnknownTumour  # masked: tumour-free outside the liver; left-out: such a case is not trained on
    margin_mm: NotNegative  # around the liver, within which an unknown tumour stays unknown
    reviews: Address  # review decisions on pseudo-livers: a folder or s3://BUCKET/PREFIX; empty: none
    start_from: StartFrom  # pool whose unchanged cases a run with HEPAR_STORE takes over


class TrainUniversalParams(Section):
    """Stage 5, train-universal: one model for both modalities."""

    warm_start: Annotated[str, Field(pattern=WARM_START)]  # none, the teacher CT or MR, or models:/NAME@ALIAS
    training: TrainingParams


class EvaluateParams(Section):
    """Evaluation on the held-out patients."""

    overlap: Annotated[float, Field(ge=0, lt=1)]
    threads: Count
    variants: AtLeastOne  # test-time variants of size and contrast, the plain one included, whose mean is taken
    mirror_axes: tuple[Literal["z", "y", "x"], ...]  # each variant is also mirrored along every combination of these
    tumour_threshold: Share | None  # probability that a lesion exceeds somewhere; null: the model's own
    min_lesion_ml: NotNegative | None  # smaller predicted lesions are dropped; null: the model's own
    bootstrap_resamples: AtLeastOne
    bootstrap_seed: Count


class PromotionGates(Section):
    """Gates for becoming champion: bounds of every version, and margins against the champion on the same patients.

    Each is applied per modality. Against a margin stands the 95 % interval over patients of the difference: all of it
    must lie within the margin, so a margin of 0 asks for a gain. A certain loss within it needs a certain gain.
    """

    min_liver_dice: Share  # mean over scans
    min_tumour_dice: Share  # mean over scans with tumours
    min_recall: Share  # share of the lesions that are found, mean over scans with tumours
    max_false_lesions: NotNegative  # mean over scans in which tumours are known
    min_specificity: Share  # share of the tumour-free scans without a predicted tumour
    max_false_ml: NotNegative  # of the tumour volume predicted in a tumour-free scan, mean
    min_source_liver_dice: Share  # mean over the scans of each source
    min_source_tumour_dice: Share  # likewise
    allow_phantoms: bool  # whether scores of phantoms count; a model that has no others cannot become champion
    max_liver_drop: Share  # of the mean Dice
    max_tumour_drop: Share  # of the mean Dice
    max_recall_drop: Share  # of the share of lesions that are found, mean over scans with tumours
    max_false_lesions_rise: NotNegative  # per scan in which tumours are known
    max_specificity_drop: Share
    max_false_ml_rise: NotNegative  # of the tumour volume predicted in a tumour-free scan
    min_patients: Annotated[int, Field(ge=2)]  # scored by both models; fewer are not enough evidence
    min_tumour_free_patients: Count  # likewise, for specificity and false tumour volume; 0: not needed
    bootstrap_resamples: AtLeastOne
    bootstrap_seed: Count


class RegisterParams(Section):
    """The model registry."""

    model_name: str
    gates: PromotionGates


class RetrainParams(Section):
    """When `hepar retrain` and `hepar watch` train again. In no stage's hash: no result depends on it."""

    min_new_cases: AtLeastOne  # of training and validation patients
    min_became_known: AtLeastOne  # labels of such patients that were unknown to the champion
    max_drift: Positive  # distance that the whole interval must exceed: 0 equal, 0.9 a shift by 1 SD, 2 at most
    min_drift_patients: Annotated[int, Field(ge=2)]  # new ones with that measurement; fewer show no drift
    min_scored_patients: Annotated[int, Field(ge=2)]  # newly labelled ones; fewer do not speak against the champion
    suspect_dice: Share  # of a new liver mask and the champion's prediction, below which it goes to review
    max_suspect_share: Share  # of the new cases; a larger one refuses the batch
    max_resubmissions: Count  # of a run that failed
    bootstrap_resamples: AtLeastOne
    bootstrap_seed: Count
    look_seconds: Interval  # of `hepar watch`: between looks at first, and at most, as it doubles while nothing changes


class Toleration(Section):
    """A taint of nodes that a step may run on in spite of it."""

    key: str
    operator: Literal["Equal", "Exists"]
    value: str  # empty for Exists
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class StepResources(Section):
    """What one step asks of a cluster."""

    cpu: Positive  # cores, reserved and at most
    memory_gib: Positive  # reserved and at most
    gpus: Count
    gpu_type: str  # how the cluster names them, such as nvidia.com/gpu
    scratch_gib: Count  # of a volume for temporary files, which goes with the pod; 0: none
    shared_memory_gib: Positive  # of /dev/shm, where several processes train; counts as memory
    timeout_hours: Positive  # of one attempt
    retries: Count  # after a failure, within a window that is long enough for all of them
    node_selector: dict[str, str]  # labels that a node must have
    tolerations: tuple[Toleration, ...]


class ClusterSteps(Section):
    """One entry per step of the pipeline. With `train_liver.folds` above 1, each fold gets what train_liver says."""

    check: StepResources
    ingest: StepResources
    train_liver: StepResources
    gather_folds: StepResources
    pseudo_label: StepResources
    assemble_pool: StepResources
    train_universal: StepResources
    evaluate: StepResources
    register_model: StepResources = Field(alias="register")
    notify: StepResources

    def of(self, step: str) -> StepResources:
        """The entry of a step by its name, such as `train-liver`."""
        name = step.replace("-", "_")
        found: StepResources = getattr(self, "register_model" if name == "register" else name)
        return found


class ClusterSecrets(Section):
    """Names of Kubernetes secrets in the namespace of the runs; empty: none."""

    s3: str  # its keys: access-key, secret-key
    mlflow: str  # username, password
    dicomweb: str  # token, query
    patient_key: str  # key
    notify: str  # url


class ClusterParams(Section):
    """What the compiled pipeline asks of a cluster. In no stage's hash: no result depends on it."""

    settings: str  # name of the ConfigMap with addresses, such as MLFLOW_TRACKING_URI; empty: none
    secrets: ClusterSecrets
    storage_class: str  # of the scratch volumes; empty: the cluster's default
    mlflow_url: Address  # of MLflow in a browser, for the links of notifications; empty: none
    runs_url: Address  # of KFP's runs in a browser, to which a run's id is added; empty: none
    docs_url: Address  # of the folder docs/ in a browser, for the links of steps; empty: relative
    steps: ClusterSteps


class PipelineParams(Section):
    """The params that a run of the pipeline takes."""

    source: Annotated[Address, Field(min_length=1)]  # of the scans; docs/data.md lists what it can be
    experiment: Annotated[str, Field(min_length=1)]  # of MLflow, in which trainings and registrations are recorded
    modalities: Annotated[tuple[Modality, ...], Field(min_length=1)]  # that are learned; other scans are left out
    ingest: IngestParams
    preprocessing: PreprocessingParams
    network: NetworkParams
    train_liver: TrainLiverParams
    pseudo_label: PseudoLabelParams
    assemble_pool: AssemblePoolParams
    train_universal: TrainUniversalParams
    evaluate: EvaluateParams
    register_model: RegisterParams = Field(alias="register")


class Params(PipelineParams):
    """A whole `params.yaml`."""

    calibrate_gates: CalibrateGatesParams
    retrain: RetrainParams
    cluster: ClusterParams


class RegistryParams(Section):
    """What the commands on registered versions read of a params file."""

    register_model: RegisterParams = Field(alias="register")


SectionT = TypeVar("SectionT", bound=Section)
ParamsT = TypeVar("ParamsT", bound=PipelineParams)


def load_params(path: Path) -> Params:
    """Read a params file and what it extends. Raises ParamsError naming file, key and value."""
    return _validated(Params, _read(path), str(path))


def load_register_params(path: Path) -> RegisterParams:
    """Read the section `register` alone of a params file and what it extends. Raises ParamsError as `load_params`.

    The file may be that of a run of another release: what its other sections hold is not read, and they may be missing.
    A section of another name is an error, since it may be a misspelt `register`.
    """
    sections = {field.alias or name for name, field in Params.model_fields.items()} - {"register"}
    values = {name: value for name, value in _read(path).items() if name not in sections}
    try:
        return RegistryParams.model_validate(values).register_model
    except ValidationError as error:
        raise ParamsError(f"{path}: {_problems(error)}") from None


def override_params(params: ParamsT, overrides: Mapping[str, Any], where: str) -> ParamsT:
    """The params with other values, keyed as in a file or by dotted names such as `evaluate.overlap`.

    A section is merged, a network's config is replaced. Raises ParamsError that begins with `where` and names the key.
    """
    values = dump_params(params)
    for dotted, value in overrides.items():
        *sections, last = dotted.split(".")
        place: Any = values
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise ParamsError(f"{where}: unknown key {dotted}")
        place.update(_merge({last: place.get(last)}, {last: value}))
    return _validated(type(params), values, where)


def _validated(kind: type[ParamsT], values: Mapping[str, Any], where: str) -> ParamsT:
    try:
        params = kind.model_validate(values)
    except ValidationError as error:
        raise ParamsError(f"{where}: {_problems(error)}") from None
    teacher = params.train_universal.warm_start
    if teacher in set(Modality) and teacher not in params.modalities:
        names = ", ".join(params.modalities)
        raise ParamsError(f"{where}: train_universal.warm_start is {teacher}, but modalities is {names}")
    return params


def read_section(kind: type[SectionT], values: Mapping[str, Any]) -> SectionT:
    """Validate one section as a KFP component receives it. Raises ParamsError naming key and value."""
    try:
        return kind.model_validate(_replaced(values, NULL, None))
    except ValidationError as error:
        raise ParamsError(f"{kind.__name__}: {_problems(error)}") from None


def read_pipeline_params(sections: Mapping[str, Any], overrides: Mapping[str, Any]) -> PipelineParams:
    """The params of a run as KFP passes them, with overrides. Raises ParamsError naming key and value."""
    params = _validated(PipelineParams, _replaced(sections, NULL, None), "the parameters of the run")
    return override_params(params, _replaced(overrides, NULL, None), "overrides")


def dump_params(params: PipelineParams) -> dict[str, Any]:
    """The parameters as plain values, keyed as in the file."""
    return params.model_dump(mode="json", by_alias=True)


def dump_sections(params: PipelineParams) -> dict[str, Any]:
    """The parameters for `read_section` and `read_pipeline_params`: None is "null", since KFP cannot pass it.

    Sections that start from the champion name its model.
    """
    sections: dict[str, Any] = _replaced(dump_params(params), None, NULL)
    for name in ("ingest", "assemble_pool"):
        if sections[name]["start_from"] == CHAMPION:
            sections[name]["start_from"] = f"{REGISTERED}{params.register_model.model_name}@{CHAMPION}"
    return sections


def _replaced(value: Any, old: str | None, new: str | None) -> Any:
    if isinstance(value, Mapping):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(item, old, new) for item in value]
    return new if value is old or value == old else value


def write_preset(path: Path, extends: Path, values: Mapping[str, Any], comment: str) -> None:
    """Write a new params file that extends another; `values` are keyed by dotted names.

    A network's config is written whole, because it replaces the extended one.
    Raises ParamsError like `check_new_preset`.
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
    write_text(path, f"# {comment}\n" + yaml.safe_dump(nested, sort_keys=False, default_flow_style=None))


def check_new_preset(path: Path, extends: Path) -> None:
    """Raise ParamsError if the file already exists or its folder is not writable."""
    if path.exists():
        raise ParamsError(f"{path} already exists: choose another --out")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ParamsError(f"{path} cannot be written: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK):
        raise ParamsError(f"{path} cannot be written: {path.parent} is read-only")


def _problems(error: ValidationError) -> str:
    return "; ".join(map(_problem, error.errors()))


def _problem(found: ErrorDetails) -> str:
    key = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        return f"unknown key {key}"
    if found["type"] == "missing":
        return f"key {key} is missing"
    given = redact_address(found["input"]) if isinstance(found["input"], str) else found["input"]
    return f"{key} is {redact(repr(given))}: {found['msg']}"


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ParamsError(f"{path} extends itself")
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ParamsError(f"params file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(f"params file {path} cannot be read: {one_line(error)}") from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not YAML: {redact(one_line(error))}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"{path} must be a mapping of sections")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ParamsError(f"{path}: extends is {base!r} but must name a params file")
    if not (path.parent / base).exists():
        raise ParamsError(f"{path} extends {base}, which does not exist")
    return _merge(_read(path.parent / base, (*seen, path.resolve())), values)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != WHOLE
        merged[key] = _merge(merged[key], value) if nested else value
    return merged
