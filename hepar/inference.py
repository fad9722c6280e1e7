"""A trained model with all that it needs to read a scan, and how it segments one.

A model folder holds `model.json` (network, plan, patch, where it comes from) and `weights.pt` (a state dict, no
pickled code). Legend: r the two structures liver and tumour.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from monai.inferers.utils import sliding_window_inference
from pydantic import BaseModel, ConfigDict
from scipy import ndimage
from torch import Tensor, nn

from hepar.artifacts import write_json
from hepar.cases import Modality
from hepar.errors import ArtifactError
from hepar.networks import build_network
from hepar.params import NetworkParams, SizeZYX
from hepar.pool import Mask, fill_holes
from hepar.preparation import Plan, prepare_image
from hepar.training.losses import LIVER, TUMOUR
from hepar.volumes import Geometry, canonical, resample, to_array, to_image

SPEC, WEIGHTS = "model.json", "weights.pt"
Probabilities = npt.NDArray[np.float32]


class ModelSpec(BaseModel):
    """What a model is, beside its weights. `origin` names what it was made from by hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: NetworkParams
    plan: Plan
    patch_zyx: SizeZYX
    modalities: tuple[Modality, ...]
    origin: dict[str, str]


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode, and its description."""

    network: nn.Module
    spec: ModelSpec
    device: torch.device


@dataclass(frozen=True)
class Segmentation:
    """Masks on the scan's own grid, bool zyx; `liver` is the whole liver, tumour included."""

    liver: Mask
    tumour: Mask
    voxel_ml: float

    @property
    def labels(self) -> npt.NDArray[np.uint8]:
        """One map: 0 background, 1 liver, 2 tumour."""
        return np.asarray(self.liver.astype(np.uint8) + self.tumour)

    @property
    def liver_ml(self) -> float:
        return float(self.liver.sum() * self.voxel_ml)

    @property
    def tumour_ml(self) -> float:
        return float(self.tumour.sum() * self.voxel_ml)


def save_model(folder: Path, weights: Mapping[str, Tensor], spec: ModelSpec) -> None:
    """Write a model into an existing folder."""
    torch.save({name: value.detach().cpu().contiguous() for name, value in weights.items()}, folder / WEIGHTS)
    write_json(folder / SPEC, spec.model_dump(mode="json"))


def load_model(folder: Path, device: torch.device) -> Model:
    """Read a model. Raises ArtifactError where the folder holds none."""
    if not (folder / SPEC).is_file() or not (folder / WEIGHTS).is_file():
        raise ArtifactError(f"{folder} holds no model: {SPEC} or {WEIGHTS} is missing")
    spec = ModelSpec.model_validate(json.loads((folder / SPEC).read_text()))
    network = build_network(spec.network.name, spec.network.config)
    network.load_state_dict(load_weights(folder))
    network.to(device, memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload]
    return Model(network, spec, device)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The state dict of a model folder, on the CPU."""
    weights: dict[str, Tensor] = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
    return weights


@torch.inference_mode()
def sliding_window(
    network: nn.Module, image_zyx: npt.NDArray[np.float32], patch_zyx: SizeZYX, overlap: float, device: torch.device
) -> Probabilities:
    """Probabilities r zyx of a prepared image, by Gaussian-weighted overlapping windows."""
    image_bcdhw = torch.from_numpy(image_zyx[None, None]).to(device)

    def window(patch_bcdhw: Tensor) -> Tensor:
        output = network(patch_bcdhw.contiguous(memory_format=torch.channels_last_3d))
        logits: Tensor = output[0] if isinstance(output, list) else output
        return logits.float().sigmoid()

    probabilities = sliding_window_inference(
        image_bcdhw,
        patch_zyx,
        sw_batch_size=1,
        predictor=window,
        overlap=overlap,
        mode="gaussian",
        padding_mode="replicate",
    )
    assert isinstance(probabilities, Tensor)
    return np.asarray(probabilities[0].cpu().numpy(), np.float32)


def predict_probabilities(
    model: Model, image: sitk.Image, modality: Modality, overlap: float, variant: int = 0
) -> tuple[Probabilities, Geometry]:
    """Probabilities r zyx on the plan's grid of a canonical scan.

    `variant` 0 is the plain prediction; others see the image in another contrast and, by turns, mirrored along an axis,
    and are mirrored back.
    """
    image_zyx, geometry = prepare_image(image, modality, model.spec.plan)
    probabilities = sliding_window(
        model.network, vary(image_zyx, variant), model.spec.patch_zyx, overlap, model.device
    )
    return probabilities, geometry


def vary(image_zyx: npt.NDArray[np.float32], variant: int) -> npt.NDArray[np.float32]:
    """The image as test-time variant number `variant` sees it: contrast and brightness changed, grid as it was."""
    if variant == 0:
        return image_zyx
    strength = 0.1 * ((variant + 1) // 2) * (1 if variant % 2 else -1)
    mean = image_zyx.mean()
    return np.asarray((image_zyx - mean) * (1 + strength) + mean + strength, np.float32)


def to_grid(probability_zyx: Probabilities, geometry: Geometry, target: Geometry) -> Probabilities:
    """A probability map on another grid in the same patient."""
    return np.asarray(to_array(resample(to_image(probability_zyx, geometry), target)), np.float32)


def segment(
    model: Model, image: sitk.Image, modality: Modality, overlap: float, min_lesion_ml: float
) -> Segmentation:
    """Liver and tumour of a scan in any orientation, on its own grid."""
    probabilities, geometry = predict_probabilities(model, canonical(image), modality, overlap)
    own = Geometry.of(image)
    liver = to_grid(probabilities[LIVER], geometry, own) > 0.5
    tumour = to_grid(probabilities[TUMOUR], geometry, own) > 0.5
    liver, tumour = clean(liver, tumour, own.voxel_ml, min_lesion_ml)
    return Segmentation(liver, tumour, own.voxel_ml)


def clean(liver: Mask, tumour: Mask, voxel_ml: float, min_lesion_ml: float) -> tuple[Mask, Mask]:
    """One liver without holes that holds its tumours; tumour components below `min_lesion_ml` are dropped."""
    liver = fill_holes(keep_largest_component(liver | tumour))
    tumour = tumour & liver
    labels, count = ndimage.label(tumour)
    if count and min_lesion_ml > 0:
        large = np.bincount(labels.ravel()) * voxel_ml >= min_lesion_ml
        large[0] = False
        tumour = large[labels]
    return liver, tumour


def keep_largest_component(mask: Mask) -> Mask:
    """The largest face-connected component; an empty mask stays empty, of two equals the first is taken."""
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    sizes: npt.NDArray[Any] = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == int(sizes.argmax()))
