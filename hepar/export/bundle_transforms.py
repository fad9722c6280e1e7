"""What hepar does to a scan before and after its network, as MONAI transforms.

An exported bundle carries a copy of this file, so it needs MONAI, scipy and nothing of hepar but that copy.
Arrays run z, y, x with a channel axis before.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data.utils import affine_to_spacing
from monai.transforms import MapTransform
from scipy import ndimage

from hepar.imaging.intensities import scale_ct, scale_mr

ALIASING_SIGMA, LEAST_SIGMA = 0.4, 0.2  # as in hepar's resampling


class SmoothBeforeSpacingd(MapTransform):  # type: ignore[misc]
    """Smooths a scan along the axes on which `pixdim` is coarser, against aliasing; MONAI's Spacingd does not."""

    def __init__(self, keys: Any, pixdim: Sequence[float]) -> None:
        super().__init__(keys)
        self.pixdim = pixdim

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        for key in self.key_iterator(changed):
            image_1zyx = changed[key]
            smooth_1zyx = image_1zyx.numpy().astype(np.float32)
            for axis, (new, old) in enumerate(zip(self.pixdim, affine_to_spacing(image_1zyx.affine), strict=True)):
                sigma = max(0.0, (new / float(old)) ** 2 - 1) ** 0.5 * ALIASING_SIGMA
                if sigma > LEAST_SIGMA and smooth_1zyx.shape[axis + 1] >= 4:
                    smooth_1zyx = ndimage.gaussian_filter1d(smooth_1zyx, sigma, axis + 1, mode="nearest")
            changed[key] = image_1zyx.new_tensor(smooth_1zyx)
            changed[key].copy_meta_from(image_1zyx)
        return changed


class ScaleIntensitiesd(MapTransform):  # type: ignore[misc]
    """Scales a whole resampled CT or MR to the intensities that the network was trained on."""

    def __init__(
        self, keys: Any, modality: str, window_hu: Sequence[float], mr_percentiles: Sequence[float], mr_scale: str
    ) -> None:
        super().__init__(keys)
        if modality not in ("CT", "MR"):
            raise ValueError(f"modality is {modality!r} but must be CT or MR")
        self.modality, self.window_hu = modality, window_hu
        self.mr_percentiles, self.mr_scale = mr_percentiles, mr_scale

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        for key in self.key_iterator(changed):
            image_zyx = changed[key].numpy()[0].astype(np.float32)
            scaled_zyx = (
                scale_ct(image_zyx, self.window_hu)
                if self.modality == "CT"
                else scale_mr(image_zyx, self.mr_percentiles, self.mr_scale)
            )
            scaled_1zyx = changed[key].new_tensor(scaled_zyx[None])
            scaled_1zyx.copy_meta_from(changed[key])
            changed[key] = scaled_1zyx
        return changed


class LabelMapd(MapTransform):  # type: ignore[misc]
    """Makes labels of the probabilities of liver and tumour: 0 background, 1 liver, 2 tumour.

    Keeps the largest component of liver and tumour together, fills its holes, and drops small lesions. A lesion exceeds
    `tumour_threshold` somewhere, and reaches in the liver as far as `outline_threshold` is exceeded. Both structures
    must be ones that the model was taught, or they are left out.
    """

    def __init__(
        self,
        keys: Any,
        tumour_threshold: float,
        outline_threshold: float,
        min_lesion_ml: float,
        taught: Sequence[str] = ("liver", "tumour"),
    ) -> None:
        super().__init__(keys)
        self.tumour_threshold, self.outline_threshold = tumour_threshold, outline_threshold
        self.min_lesion_ml, self.taught = min_lesion_ml, taught

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        for key in self.key_iterator(changed):
            probability_rzyx = changed[key].cpu().numpy()
            voxel_ml = abs(float(np.linalg.det(np.asarray(changed[key].affine)[:3, :3]))) / 1000
            labels_1zyx = changed[key].new_tensor(self._labels(probability_rzyx, voxel_ml)[None])
            labels_1zyx.copy_meta_from(changed[key])
            changed[key] = labels_1zyx
        return changed

    def _labels(self, probability_rzyx: Any, voxel_ml: float) -> Any:
        tumour_zyx = (probability_rzyx[1] > self.tumour_threshold) & ("tumour" in self.taught)
        liver_zyx = np.zeros_like(tumour_zyx)
        if "liver" in self.taught:
            parts_zyx, count = ndimage.label((probability_rzyx[0] > 0.5) | tumour_zyx)
            if count:
                liver_zyx = ndimage.binary_fill_holes(parts_zyx == 1 + np.bincount(parts_zyx.ravel())[1:].argmax())
            tumour_zyx = tumour_zyx & liver_zyx
        lesions_zyx, _ = ndimage.label(tumour_zyx)
        large = np.bincount(lesions_zyx.ravel()) * voxel_ml >= self.min_lesion_ml
        large[0] = False
        kept_zyx = large[lesions_zyx]
        outline_zyx = (probability_rzyx[1] > self.outline_threshold) & (liver_zyx if "liver" in self.taught else True)
        grown_zyx, _ = ndimage.label(kept_zyx | outline_zyx)
        return np.where(np.isin(grown_zyx, grown_zyx[kept_zyx]), 2, liver_zyx).astype(np.uint8)


def run(
    scans: Iterable[Mapping[Hashable, Any]],
    network: Callable[[torch.Tensor], torch.Tensor],
    inferer: Callable[..., torch.Tensor],
    postprocessing: Callable[[Mapping[Hashable, Any]], Any],
    device: torch.device,
) -> None:
    """Predict preprocessed scans, `image` of a dict, and postprocess each as `pred`."""
    with torch.inference_mode():
        for scan in scans:
            probability_brzyx = inferer(scan["image"][None].to(device), network)
            postprocessing({**scan, "pred": probability_brzyx[0].cpu()})
