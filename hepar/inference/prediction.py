"""A trained model, and how it segments a scan: the mean of its members and of test-time variants, postprocessed.

Legend: r the two structures liver and tumour.
"""

from __future__ import annotations

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
from hepar.imaging.headers import volume_stem
from hepar.imaging.masks import (
    Mask,
    dilate,
    fill_holes,
    grow_components,
    keep_largest_component,
    remove_small_components,
)
from hepar.imaging.parallel_grids import Box, box_on, resample_part, shared_slices, turned, whole_box, within
from hepar.imaging.volumes import Geometry, canonical, resample, resample_mask, to_array, to_image
from hepar.inference.lesions import PredictedLesion, measure_lesions
from hepar.inference.liver_choice import choose_liver, component_of
from hepar.inference.liver_region import LIVER_THRESHOLD, Region, above, follow_liver, found_thresholds
from hepar.inference.model_folder import ModelFolder, ModelSpec
from hepar.inference.prepared_scan import PreparedScan
from hepar.inference.scan_grid import ScannedOrientation, on_canonical_scan
from hepar.inference.settings import PredictionSettings
from hepar.inference.sliding_window import Probabilities
from hepar.inference.variant_prediction import OnMember, VariantPrediction
from hepar.inference.window_count import OnWindow, WindowCount
from hepar.networks import build_network
from hepar.runtime.device import is_large, memory_format, return_freed_blocks

UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)  # the direction of most canonical scans
AROUND_LIVER_MM = 10.0  # how far variants are predicted beyond the liver


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode, and its spec. An ensemble is a sequence of models that share one spec."""

    network: nn.Module
    spec: ModelSpec
    device: torch.device


@dataclass(frozen=True)
class Segmentation:
    """Masks on the scan's own grid, bool zyx, and the probabilities behind them in a box of it, float32 rzyx.

    Without a box the probabilities cover the scan. Beyond the box, which holds liver and tumours, nothing was predicted
    or all is negligible. `liver_zyx` is the whole liver, tumour included. The mask of a structure that the model was
    not taught is empty, and its volume None. Smaller lesions than `min_lesion_ml` were dropped. `agreement` has, of an
    ensemble, the lowest Dice of each structure between what one model finds alone and what all find together, before
    that: 1 if none finds any.
    """

    liver_zyx: Mask
    tumour_zyx: Mask
    probability_rzyx: Probabilities
    geometry: Geometry
    taught: tuple[str, ...]
    min_lesion_ml: float
    agreement: Mapping[str, float] = field(default_factory=dict)
    box: Box | None = None

    @cached_property
    def lesions(self) -> tuple[PredictedLesion, ...]:
        """The components of `tumour_zyx` in scan order."""
        box = self._box
        tumour_zyx, grid = self.tumour_zyx[box], self.geometry.cropped(box)
        found = measure_lesions(tumour_zyx, self.probability_rzyx[TUMOUR], grid)
        return tuple(lesion.shifted(tuple(part.start for part in box)) for lesion in found)

    def probability_in(self, structure: int, box: Box | None = None) -> Probabilities:
        """The probabilities of a structure in a box of the scan, or in all of it, float32 zyx; 0 beyond the own box."""
        wanted = self._whole if box is None else within(box, self.geometry.size_zyx)
        wanted_zyx = np.zeros([part.stop - part.start for part in wanted], np.float32)
        if (shared := shared_slices(wanted, self._box)) is not None:
            to, source = shared
            wanted_zyx[to] = self.probability_rzyx[structure][source]
        return wanted_zyx

    @property
    def _whole(self) -> Box:
        return whole_box(self.geometry.size_zyx)

    @property
    def _box(self) -> Box:
        return self._whole if self.box is None else self.box

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


@dataclass(frozen=True)
class PlanPrediction:
    """Probabilities, float32 rzyx, on the grid of the plan or a part of it; `liver_zyx` shows which is the liver.

    It is the component of what is found that is most likely the liver, bool zyx, tumours included.
    """

    probability_rzyx: Probabilities
    grid: Geometry
    liver_zyx: Mask


def load_ensemble(folder: Path, device: torch.device) -> list[Model]:
    """Read a model and the further members of its ensemble, such as snapshots or folds.

    Raises ArtifactError if the folder is not a model or is damaged.
    """
    stored = ModelFolder(folder)
    models = [_load(stored, name, device) for name in stored.weight_files()]
    if device.type == "cpu" and is_large(models[0].network):
        return_freed_blocks()
    return models


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
    whole: bool = False,
    on_window: OnWindow | None = None,
) -> PlanPrediction:
    """Predict a canonical scan on the grid of the plan.

    Probabilities are the mean over the models and over the variants and mirrored scans of the settings. `on_member`
    receives those of each model alone, of the plain scan and on the same grid. Unless the scan is predicted as a
    `whole`, the grid is the part of the plan's around the liver, if one is found. `on_window` is told the progress.
    Raises DataError if the models were not trained on that modality.
    """
    _check_modality(models[0].spec, modality)
    scan = PreparedScan(image, modality, models[0].spec.plan)
    count = WindowCount(on_window)
    followed = None if whole else follow_liver(models, scan, settings, count)
    if followed is not None:
        plain, region = followed
    else:
        plain, region = VariantPrediction(models, scan, settings, scan.whole, count=count), None
        plain.predict(None)
    box = scan.whole if region is None else region.box
    total_rzyx, grid = plain.mean(on_member, box), scan.grid.cropped(box)
    del plain  # its sums take as much memory again
    for variant in range(1, settings.variants):
        varied = varied_scan(models[0].spec, image, modality, variant)
        found = None if region is None else (region, scan.grid)
        probability_rzyx, own = _predict_varied(models, varied, settings, found, count)
        for structure, probability_zyx in enumerate(probability_rzyx):
            total_rzyx[structure] += resample_part(probability_zyx, own, grid)
    total_rzyx /= settings.variants
    if region is not None:
        return PlanPrediction(total_rzyx, grid, region.mask_zyx)
    spec = models[0].spec
    found_zyx = above(total_rzyx, found_thresholds(spec.taught, settings.operating_point(spec)))
    expected = spec.liver_intensity.get(modality)
    return PlanPrediction(total_rzyx, grid, choose_liver(found_zyx, expected, lambda: scan.exactly(box)))


def _predict_varied(
    models: Sequence[Model],
    scan: PreparedScan,
    settings: PredictionSettings,
    found: tuple[Region, Geometry] | None,
    count: WindowCount,
) -> tuple[Probabilities, Geometry]:
    """A test-time variant of the whole scan, or of it around a liver that was found on the grid of the plan."""
    box, mask_zyx = scan.whole, None
    if found is not None:
        region, plan_grid = found
        box = box_on(region.box, plan_grid, scan.grid)
        mask = to_image(region.mask_zyx, plan_grid.cropped(region.box))
        mask_zyx = dilate(resample_mask(mask, scan.grid.cropped(box)), scan.grid.spacing_zyx_mm, AROUND_LIVER_MM)
    prediction = VariantPrediction(models, scan, settings, box, count=count)
    prediction.predict(mask_zyx)
    return prediction.mean(), scan.grid.cropped(box)


def predict_variant(
    models: Sequence[Model], image: sitk.Image, modality: Modality, overlap: float, variant: int
) -> tuple[Probabilities, Geometry]:
    """Predict a test-time variant of a whole canonical scan: probabilities, float32 rzyx, and the grid of their voxels.

    `variant` 0 is the scan on the plan's spacing. Higher ones change scale, contrast and brightness, each on a grid of
    its own. The mean is taken over the models. Raises DataError if the models were not trained on that modality.
    """
    _check_modality(models[0].spec, modality)
    scan = varied_scan(models[0].spec, image, modality, variant)
    return _predict_varied(models, scan, PredictionSettings(overlap=overlap), None, WindowCount())


def varied_scan(spec: ModelSpec, image: sitk.Image, modality: Modality, variant: int) -> PreparedScan:
    """A test-time variant of a canonical scan; 0 is the scan itself."""
    strength = variant_strength(variant)
    z, y, x = (mm * (1 + strength) for mm in spec.plan.spacing_zyx_mm)
    plan = spec.plan.model_copy(update={"spacing_zyx_mm": (z, y, x)}) if variant else spec.plan
    return PreparedScan(image, modality, plan, strength)


def _check_modality(spec: ModelSpec, modality: Modality) -> None:
    if modality not in spec.modalities:
        raise DataError(f"the scan is {modality}, but the model was trained on {', '.join(spec.modalities)} only")


def variant_strength(variant: int) -> float:
    """Relative change of scale, contrast and brightness in a test-time variant: 0, 0.1, -0.1, 0.2, -0.2, …"""
    return 0.1 * ((variant + 1) // 2) * (1 if variant % 2 else -1)


def resample_probability(probability_zyx: Probabilities, geometry: Geometry, target: Geometry) -> Probabilities:
    """A probability map, float32 zyx, resampled linearly from its grid to another grid of the same patient."""
    return np.asarray(to_array(resample(to_image(probability_zyx, geometry), target)), np.float32)


def segment(
    models: Sequence[Model],
    image: sitk.Image,
    modality: Modality,
    settings: PredictionSettings,
    whole: bool = False,
    on_window: OnWindow | None = None,
) -> Segmentation:
    """Segment liver and tumour of a scan in any orientation, on its own grid, with all models of an ensemble.

    Of the windows of the scan only those that matter to the liver are predicted, or all of them if `whole`;
    `on_window` is told how many of how many are predicted.
    """
    spec = models[0].spec
    point = settings.operating_point(spec)
    thresholds = np.array([LIVER_THRESHOLD, point.tumour_threshold], np.float32)[:, None, None, None]
    members: list[npt.NDArray[np.bool_]] = []
    on_member = (lambda member_rzyx: members.append(member_rzyx > thresholds)) if len(models) > 1 else None
    upright = image if image.GetDirection() == UPRIGHT else canonical(image)  # without a copy of a large scan
    predicted = predict_probabilities(models, upright, modality, settings, on_member, whole, on_window)
    agreement = _agreement(members, predicted.probability_rzyx > thresholds, spec.taught) if members else {}
    canonical_grid = Geometry.of(upright)
    probability_rzyx, box = on_canonical_scan(predicted.probability_rzyx, predicted.grid, canonical_grid)

    def chosen() -> Mask:
        return resample_mask(to_image(predicted.liver_zyx, predicted.grid), canonical_grid.cropped(box))

    liver_zyx, tumour_zyx = postprocess(
        probability_rzyx[LIVER] > LIVER_THRESHOLD,
        probability_rzyx[TUMOUR] > point.tumour_threshold,
        spec.taught,
        Geometry.of(image).voxel_ml,
        point.min_lesion_ml,
        lambda found_zyx: component_of(found_zyx, chosen),
        probability_rzyx[TUMOUR] > point.outline_threshold,
    )
    as_scanned = ScannedOrientation(box, canonical_grid, Geometry.of(image))
    return Segmentation(
        as_scanned.mask(liver_zyx),
        as_scanned.mask(tumour_zyx),
        np.ascontiguousarray(turned(probability_rzyx, as_scanned.canonical, as_scanned.own)),
        as_scanned.own,
        spec.taught,
        point.min_lesion_ml,
        agreement,
        as_scanned.box,
    )


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
    liver_zyx: Mask,
    tumour_zyx: Mask,
    taught: Sequence[str],
    voxel_ml: float,
    min_lesion_ml: float,
    choose: Callable[[Mask], Mask] = keep_largest_component,
    outline_zyx: Mask | None = None,
) -> tuple[Mask, Mask]:
    """Keep one liver without holes, which includes its tumours, and drop lesions below `min_lesion_ml`.

    `choose` gives the component that is the liver. Lesions that are left grow into `outline_zyx`, if that is given, as
    far as the liver reaches.

    A structure that was not taught is left out: without tumours the liver stands alone, and without a liver tumours
    stay wherever they are. Returns liver and tumour, bool zyx; empty masks stay empty.
    """
    if STRUCTURES[TUMOUR] not in taught:
        tumour_zyx = np.zeros_like(tumour_zyx)
    if STRUCTURES[LIVER] in taught:
        liver_zyx = fill_holes(choose(liver_zyx | tumour_zyx))
        tumour_zyx = tumour_zyx & liver_zyx
    else:
        liver_zyx = np.zeros_like(liver_zyx)
    return liver_zyx, grown_lesions(tumour_zyx, outline_zyx, liver_zyx, taught, min_lesion_ml / voxel_ml)


def grown_lesions(
    tumour_zyx: Mask, outline_zyx: Mask | None, liver_zyx: Mask, taught: Sequence[str], min_voxels: float
) -> Mask:
    """The lesions of at least `min_voxels`, as far as `outline_zyx` reaches in the liver if that is taught."""
    lesions_zyx = remove_small_components(tumour_zyx, min_voxels)
    if outline_zyx is None or not lesions_zyx.any():
        return lesions_zyx
    within_zyx = outline_zyx & liver_zyx if STRUCTURES[LIVER] in taught else outline_zyx
    return grow_components(lesions_zyx, within_zyx)


def label_file_names(scans: Sequence[Path]) -> list[str]:
    """File names for the label maps of scans: `SCAN_labels.nii.gz`, after the folder's name if several scans share one.

    Raises DataError if two scans would still be written to one file.
    """
    stems = [volume_stem(path) for path in scans]
    shared = {stem for stem, count in Counter(stems).items() if count > 1}
    names = [f"{path.parent.name}_{stem}" if stem in shared else stem for path, stem in zip(scans, stems, strict=True)]
    if clashing := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"several scans would be written to {clashing[0]}_labels.nii.gz: predict them one by one")
    return [f"{name}_labels.nii.gz" for name in names]
