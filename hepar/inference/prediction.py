"""A trained model with all that it needs to read a scan, and how it segments one.

A model folder holds `model.json` (network, plan, patch, where it comes from) and `weights.pt` (a state dict, no
pickled code); `members/` may hold further weights of the same network, which an ensemble takes. Legend: r the two
structures liver and tumour.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from hepar.cases import LIVER, STRUCTURES, TUMOUR, Modality
from hepar.errors import ArtifactError, DataError, ParamsError
from hepar.imaging.masks import Mask, fill_holes, keep_largest_component, remove_small_components
from hepar.imaging.preprocessing import PreprocessingPlan, preprocess_image
from hepar.imaging.volumes import Geometry, canonical, resample, to_array, to_image
from hepar.networks import build_network
from hepar.params import NetworkParams, SizeZYX
from hepar.runtime.artifacts import write_json

SPEC, WEIGHTS, MEMBERS = "model.json", "weights.pt", "members"
WINDOWS_AT_ONCE = 4
Probabilities = npt.NDArray[np.float32]


class ModelSpec(BaseModel):
    """What a model is, beside its weights. `origin` names what it was made from by hash.

    `liver_intensity` is known of a liver teacher: mean and standard deviation, over the manual livers that it learned
    from, of the median value of the prepared image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: NetworkParams
    plan: PreprocessingPlan
    patch_zyx: SizeZYX
    modalities: tuple[Modality, ...]
    liver_intensity: tuple[float, float] | None = None
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


def save_model(
    folder: Path, weights: Mapping[str, Tensor], spec: ModelSpec, members: Sequence[Mapping[str, Tensor]] = ()
) -> None:
    """Write a model, with further members of its ensemble, into an existing folder."""
    write_json(folder / SPEC, spec.model_dump(mode="json"))
    _save_weights(weights, folder / WEIGHTS)
    for number, member in enumerate(members, start=1):
        add_member(folder, member, number)


def add_member(folder: Path, weights: Mapping[str, Tensor], number: int) -> None:
    """Write the weights of a further member of a model's ensemble; numbers start at 1."""
    (folder / MEMBERS).mkdir(exist_ok=True)
    _save_weights(weights, folder / MEMBERS / f"{number}.pt")


def _save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    torch.save({name: value.detach().cpu().contiguous() for name, value in weights.items()}, path)


def load_model(folder: Path, device: torch.device) -> Model:
    """Read a model. Raises ArtifactError where the folder holds none."""
    return _load(folder, WEIGHTS, device)


def load_ensemble(folder: Path, device: torch.device) -> list[Model]:
    """Read a model and the further members of its ensemble. Raises ArtifactError where the folder holds none."""
    names = sorted((path.name for path in (folder / MEMBERS).glob("*.pt")), key=lambda name: int(name.split(".")[0]))
    return [_load(folder, name, device) for name in (WEIGHTS, *(f"{MEMBERS}/{name}" for name in names))]


def read_spec(folder: Path) -> ModelSpec:
    """The description of a model folder. Raises ArtifactError where the folder holds none."""
    if not (folder / SPEC).is_file():
        raise ArtifactError(f"{folder} holds no model: {SPEC} is missing")
    try:
        return ModelSpec.model_validate(json.loads((folder / SPEC).read_text()))
    except ValueError as error:
        raise ArtifactError(f"{folder} holds a damaged model: {' '.join(str(error).split())}") from None


def _load(folder: Path, name: str, device: torch.device) -> Model:
    spec = read_spec(folder)
    if not (folder / name).is_file():
        raise ArtifactError(f"{folder} holds no model: {name} is missing")
    try:
        network = build_network(spec.network.name, spec.network.config, spec.patch_zyx)
        network.load_state_dict(load_weights(folder, name))
    except (RuntimeError, ParamsError) as error:
        raise ArtifactError(f"{folder} holds a damaged model: {' '.join(str(error).split())}") from None
    network.to(device, memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload]
    return Model(network, spec, device)


def load_weights(folder: Path, name: str = WEIGHTS) -> dict[str, Tensor]:
    """A state dict of a model folder, on the CPU. Raises ArtifactError where the file is damaged."""
    try:
        weights: dict[str, Tensor] = torch.load(folder / name, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtifactError(f"{folder} holds a damaged model: {name}: {first}") from None
    return weights


@torch.inference_mode()
def sliding_window(
    network: nn.Module, image_zyx: npt.NDArray[np.float32], patch_zyx: SizeZYX, overlap: float, device: torch.device
) -> Probabilities:
    """Probabilities r zyx of a prepared image: overlapping windows, averaged with Gaussian weights.

    An image smaller than a window is padded by its border. Windows without any contrast, such as air, are not looked
    at and get probability 0.
    """
    padded, inner = _pad_to(image_zyx, patch_zyx)
    weight_zyx = torch.from_numpy(_gaussian(patch_zyx)).to(device)
    image = torch.from_numpy(padded).to(device)
    total_zyx = torch.zeros(padded.shape, device=device)
    total_rzyx: Tensor | None = None
    waiting: list[tuple[slice, ...]] = []
    for corner in itertools.product(*(_starts(n, p, overlap) for n, p in zip(padded.shape, patch_zyx, strict=True))):
        window = tuple(slice(start, start + p) for start, p in zip(corner, patch_zyx, strict=True))
        total_zyx[window] += weight_zyx
        if image[window].min() < image[window].max():
            waiting.append(window)
    for windows in (waiting[i : i + WINDOWS_AT_ONCE] for i in range(0, len(waiting), WINDOWS_AT_ONCE)):
        # one window alone would go the slow way: torch hands small batches of one to its own convolution
        patches = torch.stack([image[window] for window in (windows * 2 if len(windows) == 1 else windows)])
        output = network(patches[:, None].contiguous(memory_format=torch.channels_last_3d))
        logits_brdhw: Tensor = output[0] if isinstance(output, list) else output
        if total_rzyx is None:
            total_rzyx = torch.zeros((logits_brdhw.shape[1], *padded.shape), device=device)
        for window, logits_rdhw in zip(windows, logits_brdhw, strict=False):
            total_rzyx[(slice(None), *window)] += logits_rdhw.float().sigmoid() * weight_zyx
    if total_rzyx is None:
        return np.zeros((len(STRUCTURES), *image_zyx.shape), np.float32)
    return np.asarray((total_rzyx / total_zyx)[(slice(None), *inner)].cpu().numpy())


def _pad_to(
    image_zyx: npt.NDArray[np.float32], patch_zyx: SizeZYX
) -> tuple[npt.NDArray[np.float32], tuple[slice, ...]]:
    """The image, at least as large as a patch, and where in it the original lies."""
    missing = [max(0, p - n) for n, p in zip(image_zyx.shape, patch_zyx, strict=True)]
    pad = [(m // 2, m - m // 2) for m in missing]
    inner = tuple(slice(before, before + n) for (before, _), n in zip(pad, image_zyx.shape, strict=True))
    return np.pad(image_zyx, pad, mode="edge"), inner


def _starts(size: int, patch: int, overlap: float) -> list[int]:
    """Where windows begin along an axis: evenly spread, the first at 0, the last at the end."""
    count = 1 + math.ceil((size - patch) / (patch * (1 - overlap)))
    return [round(i * (size - patch) / max(count - 1, 1)) for i in range(count)]


def _gaussian(patch_zyx: SizeZYX) -> npt.NDArray[np.float32]:
    """Weights of a window's voxels: 1 in the middle, a Gaussian of an eighth of each side, never 0."""
    axes = [np.exp(-0.5 * ((np.arange(p) - (p - 1) / 2) / (p / 8)) ** 2) for p in patch_zyx]
    return np.asarray(np.maximum(np.einsum("i,j,k->ijk", *axes), 1e-3), np.float32)


def predict_probabilities(
    model: Model, image: sitk.Image, modality: Modality, overlap: float, variant: int = 0
) -> tuple[Probabilities, Geometry]:
    """Probabilities r zyx on the plan's grid of a canonical scan.

    `variant` 0 is the plain prediction; others see the image larger or smaller, in another contrast and brightness.
    Their grid is their own.
    """
    strength = variant_strength(variant)
    z, y, x = (mm * (1 + strength) for mm in model.spec.plan.spacing_zyx_mm)
    plan = model.spec.plan.model_copy(update={"spacing_zyx_mm": (z, y, x)}) if variant else model.spec.plan
    image_zyx, geometry = preprocess_image(image, modality, plan)
    seen_zyx = vary(image_zyx, strength) if variant else image_zyx
    probabilities = sliding_window(model.network, seen_zyx, model.spec.patch_zyx, overlap, model.device)
    return probabilities, geometry


def variant_strength(variant: int) -> float:
    """By how much a test-time variant changes size, contrast and brightness: 0, 0.1, -0.1, 0.2, -0.2, …"""
    return 0.1 * ((variant + 1) // 2) * (1 if variant % 2 else -1)


def vary(image_zyx: npt.NDArray[np.float32], strength: float) -> npt.NDArray[np.float32]:
    """The image in another contrast and brightness."""
    mean = image_zyx.mean()
    return np.asarray((image_zyx - mean) * (1 + strength) + mean + strength, np.float32)


def to_grid(probability_zyx: Probabilities, geometry: Geometry, target: Geometry) -> Probabilities:
    """A probability map on another grid in the same patient."""
    return np.asarray(to_array(resample(to_image(probability_zyx, geometry), target)), np.float32)


def segment(model: Model, image: sitk.Image, modality: Modality, overlap: float, min_lesion_ml: float) -> Segmentation:
    """Liver and tumour of a scan in any orientation, on its own grid."""
    probabilities, geometry = predict_probabilities(model, canonical(image), modality, overlap)
    own = Geometry.of(image)
    liver = to_grid(probabilities[LIVER], geometry, own) > 0.5
    tumour = to_grid(probabilities[TUMOUR], geometry, own) > 0.5
    liver, tumour = clean(liver, tumour, own.voxel_ml, min_lesion_ml)
    return Segmentation(liver, tumour, own.voxel_ml)


def mask_names(paths: Sequence[Path]) -> list[str]:
    """A file name for the labels of each scan: its own, behind that of its folder where several have it.

    Raises DataError where two scans would share one.
    """
    stems = [path.name.removesuffix(".gz").removesuffix(".nii") for path in paths]
    shared = {stem for stem, count in Counter(stems).items() if count > 1}
    names = [f"{path.parent.name}_{stem}" if stem in shared else stem for path, stem in zip(paths, stems, strict=True)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"several scans would be written to {twice[0]}_labels.nii.gz: predict them one by one")
    return [f"{name}_labels.nii.gz" for name in names]


def clean(liver: Mask, tumour: Mask, voxel_ml: float, min_lesion_ml: float) -> tuple[Mask, Mask]:
    """One liver without holes that holds its tumours; tumour components below `min_lesion_ml` are dropped."""
    liver = fill_holes(keep_largest_component(liver | tumour))
    return liver, remove_small_components(tumour & liver, min_lesion_ml / voxel_ml)
