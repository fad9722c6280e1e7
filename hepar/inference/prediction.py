"""A trained model, and how it segments a scan. Legend: r the two structures liver and tumour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from torch import nn

from hepar.cases import LIVER, TUMOUR, Modality
from hepar.errors import ArtifactError, DataError, ParamsError, one_line
from hepar.imaging.masks import Mask, fill_holes, keep_largest_component, remove_small_components
from hepar.imaging.preprocessing import preprocess_image
from hepar.imaging.volumes import Geometry, canonical, resample, to_array, to_image
from hepar.inference.model_folder import ModelFolder, ModelSpec
from hepar.inference.sliding_window import Probabilities, sliding_window
from hepar.networks import build_network


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode, and its spec."""

    network: nn.Module
    spec: ModelSpec
    device: torch.device


@dataclass(frozen=True)
class Segmentation:
    """Masks on the scan's own grid, bool zyx. `liver_zyx` is the whole liver, tumour included."""

    liver_zyx: Mask
    tumour_zyx: Mask
    voxel_ml: float

    @property
    def labels_zyx(self) -> npt.NDArray[np.uint8]:
        """One label map, uint8 zyx: 0 background, 1 liver, 2 tumour."""
        return np.asarray(self.liver_zyx.astype(np.uint8) + self.tumour_zyx)

    @property
    def liver_ml(self) -> float:
        """Volume of the whole liver; 0 if nothing was found."""
        return float(self.liver_zyx.sum() * self.voxel_ml)

    @property
    def tumour_ml(self) -> float:
        """Volume of all tumours; 0 if nothing was found."""
        return float(self.tumour_zyx.sum() * self.voxel_ml)


def load_model(folder: Path, device: torch.device) -> Model:
    """Read a model. Raises ArtifactError if the folder is not a model or is damaged."""
    return _load(ModelFolder(folder), ModelFolder.WEIGHTS, device)


def load_ensemble(folder: Path, device: torch.device) -> list[Model]:
    """Read a model and the further members of its ensemble. Raises ArtifactError as `load_model` does."""
    stored = ModelFolder(folder)
    return [_load(stored, name, device) for name in stored.weight_files()]


def _load(stored: ModelFolder, name: str, device: torch.device) -> Model:
    spec = stored.load_spec()
    weights = stored.load_weights(name)
    try:
        network = build_network(spec.network.name, spec.network.config, spec.patch_zyx)
        network.load_state_dict(weights)
    except (RuntimeError, ParamsError) as error:
        raise ArtifactError(f"{stored.folder / name} is damaged: {one_line(error)}") from None
    network.to(device, memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload]
    return Model(network, spec, device)


def predict_probabilities(
    model: Model, image: sitk.Image, modality: Modality, overlap: float, variant: int = 0
) -> tuple[Probabilities, Geometry]:
    """Predict a canonical scan: probabilities, float32 rzyx, and the grid of their voxels.

    `variant` 0 is the plain prediction on the plan's spacing. Higher variants are test-time augmentations of scale,
    contrast and brightness, each on a grid of its own.
    """
    strength = variant_strength(variant)
    z, y, x = (mm * (1 + strength) for mm in model.spec.plan.spacing_zyx_mm)
    plan = model.spec.plan.model_copy(update={"spacing_zyx_mm": (z, y, x)}) if variant else model.spec.plan
    image_zyx, geometry = preprocess_image(image, modality, plan)
    input_zyx = change_contrast(image_zyx, 1 + strength, strength) if variant else image_zyx
    probability_rzyx = sliding_window(model.network, input_zyx, model.spec.patch_zyx, overlap, model.device)
    return probability_rzyx, geometry


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


def segment(model: Model, image: sitk.Image, modality: Modality, overlap: float, min_lesion_ml: float) -> Segmentation:
    """Segment liver and tumour of a scan in any orientation, on its own grid."""
    probability_rzyx, geometry = predict_probabilities(model, canonical(image), modality, overlap)
    own = Geometry.of(image)
    liver_zyx = resample_probability(probability_rzyx[LIVER], geometry, own) > 0.5
    tumour_zyx = resample_probability(probability_rzyx[TUMOUR], geometry, own) > 0.5
    return Segmentation(*postprocess(liver_zyx, tumour_zyx, own.voxel_ml, min_lesion_ml), own.voxel_ml)


def postprocess(liver_zyx: Mask, tumour_zyx: Mask, voxel_ml: float, min_lesion_ml: float) -> tuple[Mask, Mask]:
    """Keep one liver without holes, which includes its tumours, and drop lesions below `min_lesion_ml`.

    Returns liver and tumour, bool zyx; two empty masks stay empty.
    """
    liver_zyx = fill_holes(keep_largest_component(liver_zyx | tumour_zyx))
    return liver_zyx, remove_small_components(tumour_zyx & liver_zyx, min_lesion_ml / voxel_ml)


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
