"""A trained model, and how it segments a scan: the mean of its members and of test-time variants, postprocessed.

Legend: r the two structures liver and tumour.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from hepar.cases import LIVER, STRUCTURES, TUMOUR, Modality
from hepar.errors import ArtifactError, DataError, ParamsError, one_line
from hepar.evaluation.overlap import dice
from hepar.imaging.masks import Mask, fill_holes, keep_largest_component, remove_small_components
from hepar.imaging.preprocessing import preprocess_image
from hepar.imaging.volumes import Geometry, canonical, resample, to_array, to_image
from hepar.inference.lesions import PredictedLesion, measure_lesions
from hepar.inference.model_folder import ModelFolder, ModelSpec
from hepar.inference.settings import Axis, PredictionSettings
from hepar.inference.sliding_window import Probabilities, sliding_window
from hepar.networks import build_network
from hepar.runtime.device import memory_format

LIVER_THRESHOLD = 0.5  # the probability that a liver voxel exceeds
OnMember = Callable[[Probabilities], None]


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode, and its spec. An ensemble is a sequence of models that share one spec."""

    network: nn.Module
    spec: ModelSpec
    device: torch.device


@dataclass(frozen=True)
class Segmentation:
    """Masks on the scan's own grid, bool zyx, and the probabilities behind them, float32 rzyx.

    `liver_zyx` is the whole liver, tumour included. The mask of a structure that the model was not taught is empty, and
    its volume None. Smaller lesions than `min_lesion_ml` were dropped. `agreement` has, of an ensemble, the lowest Dice
    of each structure between what one model finds alone and what all find together, before that: 1 if none finds any.
    """

    liver_zyx: Mask
    tumour_zyx: Mask
    probability_rzyx: Probabilities
    geometry: Geometry
    taught: tuple[str, ...]
    min_lesion_ml: float
    agreement: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def lesions(self) -> tuple[PredictedLesion, ...]:
        """The components of `tumour_zyx` in scan order."""
        return measure_lesions(self.tumour_zyx, self.probability_rzyx[TUMOUR], self.geometry)

    @property
    def labels_zyx(self) -> npt.NDArray[np.uint8]:
        """One label map, uint8 zyx: 0 background, 1 liver, 2 tumour."""
        return np.where(self.tumour_zyx, np.uint8(2), self.liver_zyx.astype(np.uint8))

    @property
    def liver_ml(self) -> float | None:
        """Volume of the whole liver; 0 if nothing was found, None if the model was not taught livers."""
        return self._volume_ml(LIVER, self.liver_zyx)

    @property
    def tumour_ml(self) -> float | None:
        """Volume of all tumours; 0 if nothing was found, None if the model was not taught tumours."""
        return self._volume_ml(TUMOUR, self.tumour_zyx)

    def rounded(self) -> dict[str, Any]:
        """Volumes and lesions by name, as they are shown: a volume has three digits."""
        volumes = {"liver_ml": self.liver_ml, "tumour_ml": self.tumour_ml}
        shown = {name: None if volume_ml is None else round(volume_ml, 3) for name, volume_ml in volumes.items()}
        return {**shown, "lesions": [lesion.rounded() for lesion in self.lesions]}

    def _volume_ml(self, structure: int, mask_zyx: Mask) -> float | None:
        return float(mask_zyx.sum() * self.geometry.voxel_ml) if STRUCTURES[structure] in self.taught else None


def load_ensemble(folder: Path, device: torch.device) -> list[Model]:
    """Read a model and the further members of its ensemble, such as snapshots or folds.

    Raises ArtifactError if the folder is not a model or is damaged.
    """
    stored = ModelFolder(folder)
    return [_load(stored, name, device) for name in stored.weight_files()]


def _load(stored: ModelFolder, name: str, device: torch.device) -> Model:
    spec = stored.load_spec()
    weights = stored.load_weights(name)
    try:
        return make_model(weights, spec, device)
    except (RuntimeError, ParamsError) as error:
        raise ArtifactError(f"{stored.folder / name} is damaged: {one_line(error)}") from None


def make_model(weights: Mapping[str, Tensor], spec: ModelSpec, device: torch.device) -> Model:
    """A model on a device, from its weights and spec.

    Raises RuntimeError or ParamsError if they do not fit one another.
    """
    network = build_network(spec.network.name, spec.network.config, spec.patch_zyx)
    network.load_state_dict(weights)
    network.to(device, memory_format=memory_format(device)).eval()  # type: ignore[call-overload]
    return Model(network, spec, device)


def predict_probabilities(
    models: Sequence[Model],
    image: sitk.Image,
    modality: Modality,
    settings: PredictionSettings,
    on_member: OnMember | None = None,
) -> tuple[Probabilities, Geometry]:
    """Predict a canonical scan: probabilities, float32 rzyx, on a grid of the plan's spacing.

    They are the mean over the models and over the variants and mirrored scans of the settings. `on_member` receives
    those of each model alone, of the plain scan and on the same grid.
    """
    total_rzyx, plain = predict_variant(models, image, modality, settings.overlap, 0, settings.mirror_axes, on_member)
    for variant in range(1, settings.variants):
        probability_rzyx, grid = predict_variant(
            models, image, modality, settings.overlap, variant, settings.mirror_axes
        )
        for structure, probability_zyx in enumerate(probability_rzyx):
            total_rzyx[structure] += resample_probability(probability_zyx, grid, plain)
    return np.asarray(total_rzyx / settings.variants, np.float32), plain


def predict_variant(
    models: Sequence[Model],
    image: sitk.Image,
    modality: Modality,
    overlap: float,
    variant: int,
    mirror_axes: Sequence[Axis] = (),
    on_member: OnMember | None = None,
) -> tuple[Probabilities, Geometry]:
    """Predict a test-time variant of a canonical scan: probabilities, float32 rzyx, and the grid of their voxels.

    `variant` 0 is the scan on the plan's spacing. Higher ones change scale, contrast and brightness, each on a grid of
    its own. The mean is taken over the models, and over the preprocessed scan mirrored along every combination of
    `mirror_axes`, none included, with the prediction mirrored back. `on_member` receives the mean of each model. Raises
    DataError if the models were not trained on that modality.
    """
    spec, strength = models[0].spec, variant_strength(variant)
    if modality not in spec.modalities:
        raise DataError(f"the scan is {modality}, but the model was trained on {', '.join(spec.modalities)} only")
    z, y, x = (mm * (1 + strength) for mm in spec.plan.spacing_zyx_mm)
    plan = spec.plan.model_copy(update={"spacing_zyx_mm": (z, y, x)}) if variant else spec.plan
    image_zyx, grid = preprocess_image(image, modality, plan)
    input_zyx = change_contrast(image_zyx, 1 + strength, strength) if variant else image_zyx
    total_rzyx = np.zeros((len(STRUCTURES), *input_zyx.shape), np.float32)
    for model in models:
        member_rzyx = _predict_mirrored(model, input_zyx, overlap, _mirrorings(mirror_axes))
        if on_member is not None:
            on_member(member_rzyx)
        total_rzyx += member_rzyx
    return np.asarray(total_rzyx / len(models), np.float32), grid


def _predict_mirrored(
    model: Model, input_zyx: npt.NDArray[np.float32], overlap: float, mirrorings: Sequence[tuple[int, ...]]
) -> Probabilities:
    """The mean of one model over mirrored copies of a preprocessed scan, float32 rzyx."""
    total_rzyx = np.zeros((len(STRUCTURES), *input_zyx.shape), np.float32)
    for axes in mirrorings:
        mirrored_zyx = np.ascontiguousarray(np.flip(input_zyx, axes))
        mirrored_rzyx = sliding_window(model.network, mirrored_zyx, model.spec.patch_zyx, overlap, model.device)
        total_rzyx += np.flip(mirrored_rzyx, tuple(axis + 1 for axis in axes))
    return np.asarray(total_rzyx / len(mirrorings), np.float32)


def _mirrorings(mirror_axes: Sequence[Axis]) -> list[tuple[int, ...]]:
    """The axes of an array zyx to flip, for every combination of some axes: of z and x it is (), (0,), (2,), (0, 2)."""
    axes = [number for number, axis in enumerate(Axis) if axis in mirror_axes]
    return [flipped for count in range(len(axes) + 1) for flipped in itertools.combinations(axes, count)]


def variant_strength(variant: int) -> float:
    """Relative change of scale, contrast and brightness in a test-time variant: 0, 0.1, -0.1, 0.2, -0.2, …"""
    return 0.1 * ((variant + 1) // 2) * (1 if variant % 2 else -1)


def change_contrast(image: Any, factor: float, shift: float) -> Any:
    """The image, an array or a tensor of any shape, with contrast about its mean scaled by `factor`, plus `shift`."""
    mean = image.mean()
    return (image - mean) * factor + mean + shift


def resample_probability(probability_zyx: Probabilities, geometry: Geometry, target: Geometry) -> Probabilities:
    """A probability map, float32 zyx, resampled linearly from its grid to another grid of the same patient."""
    return np.asarray(to_array(resample(to_image(probability_zyx, geometry), target)), np.float32)


def segment(
    models: Sequence[Model], image: sitk.Image, modality: Modality, settings: PredictionSettings
) -> Segmentation:
    """Segment liver and tumour of a scan in any orientation, on its own grid, with all models of an ensemble."""
    spec = models[0].spec
    point = settings.operating_point(spec)
    thresholds = np.array([LIVER_THRESHOLD, point.tumour_threshold], np.float32)[:, None, None, None]
    members: list[npt.NDArray[np.bool_]] = []
    on_member = (lambda member_rzyx: members.append(member_rzyx > thresholds)) if len(models) > 1 else None
    predicted_rzyx, grid = predict_probabilities(models, canonical(image), modality, settings, on_member)
    own = Geometry.of(image)
    probability_rzyx = np.empty((len(STRUCTURES), *own.size_zyx), np.float32)
    for structure, probability_zyx in enumerate(predicted_rzyx):
        probability_rzyx[structure] = resample_probability(probability_zyx, grid, own)
    masks_zyx = postprocess(
        probability_rzyx[LIVER] > LIVER_THRESHOLD,
        probability_rzyx[TUMOUR] > point.tumour_threshold,
        spec.taught,
        own.voxel_ml,
        point.min_lesion_ml,
    )
    agreement = _agreement(members, predicted_rzyx > thresholds, spec.taught) if members else {}
    return Segmentation(*masks_zyx, probability_rzyx, own, spec.taught, point.min_lesion_ml, agreement)


def _agreement(
    members: Sequence[npt.NDArray[np.bool_]], mean_rzyx: npt.NDArray[np.bool_], taught: Sequence[str]
) -> dict[str, float]:
    """The lowest Dice of each taught structure between the masks of a member and those of the mean."""
    lowest = {}
    for structure, name in enumerate(STRUCTURES):
        if name in taught:
            dices = [dice(mean_rzyx[structure], member_rzyx[structure]) for member_rzyx in members]
            lowest[name] = min(1.0 if value is None else value for value in dices)
    return lowest


def postprocess(
    liver_zyx: Mask, tumour_zyx: Mask, taught: Sequence[str], voxel_ml: float, min_lesion_ml: float
) -> tuple[Mask, Mask]:
    """Keep one liver without holes, which includes its tumours, and drop lesions below `min_lesion_ml`.

    A structure that was not taught is left out: without tumours the liver stands alone, and without a liver tumours
    stay wherever they are. Returns liver and tumour, bool zyx; empty masks stay empty.
    """
    if STRUCTURES[TUMOUR] not in taught:
        tumour_zyx = np.zeros_like(tumour_zyx)
    if STRUCTURES[LIVER] in taught:
        liver_zyx = fill_holes(keep_largest_component(liver_zyx | tumour_zyx))
        tumour_zyx = tumour_zyx & liver_zyx
    else:
        liver_zyx = np.zeros_like(liver_zyx)
    return liver_zyx, remove_small_components(tumour_zyx, min_lesion_ml / voxel_ml)


def label_file_names(scans: Sequence[Path]) -> list[str]:
    """File names for the label maps of scans: `SCAN_labels.nii.gz`, after the folder's name if several scans share one.

    Raises DataError if two scans would still be written to one file.
    """
    stems = [path.name.removesuffix(".gz").removesuffix(".nii") for path in scans]
    shared = {stem for stem, count in Counter(stems).items() if count > 1}
    names = [f"{path.parent.name}_{stem}" if stem in shared else stem for path, stem in zip(scans, stems, strict=True)]
    if clashing := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"several scans would be written to {clashing[0]}_labels.nii.gz: predict them one by one")
    return [f"{name}_labels.nii.gz" for name in names]
