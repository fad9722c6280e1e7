"""A prediction is the mean of all members, variants and mirrored scans, and holds only what was taught."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor, nn
from toy_model import toy_spec

from hepar.cases import LIVER, TUMOUR, Modality
from hepar.inference.prediction import Model, predict_probabilities, segment
from hepar.inference.settings import Axis, PredictionSettings
from hepar.inference.sliding_window import Probabilities
from hepar.params import NetworkParams

SIZE_ZYX = (8, 16, 16)  # of the patch of a toy model, whose plan has the spacing of the scan
CERTAIN = 50.0


class Constant(nn.Module):
    """Predicts two probabilities everywhere."""

    def __init__(self, liver: float, tumour: float) -> None:
        super().__init__()
        self.logits_r = torch.logit(torch.tensor([liver, tumour]))

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        return self.logits_r[None, :, None, None, None].expand(len(image_bcdhw), -1, *image_bcdhw.shape[2:])


class Corner(nn.Module):
    """Certain of liver in the first row and column of each slice of a window, and of background elsewhere."""

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        logits_brdhw = torch.full((len(image_bcdhw), 2, *image_bcdhw.shape[2:]), -CERTAIN)
        logits_brdhw[:, LIVER, :, 0, 0] = CERTAIN
        return logits_brdhw


class Voxelwise(nn.Module):
    """Looks at each voxel alone."""

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        return torch.cat([image_bcdhw, -image_bcdhw], dim=1)


class Bright(nn.Module):
    """Predicts 0.9 everywhere in a window whose mean is above 0.05, and 0.3 in others."""

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        probability_b = torch.where(image_bcdhw.mean((1, 2, 3, 4)) > 0.05, 0.9, 0.3)
        logits_b = torch.logit(probability_b)
        return logits_b[:, None, None, None, None].expand(-1, 2, *image_bcdhw.shape[2:])


def models(*networks: nn.Module, **spec: Any) -> list[Model]:
    changed = toy_spec(NetworkParams(name="none", config={})).model_copy(update=spec)
    return [Model(network, changed, torch.device("cpu")) for network in networks]


def scan(amplitude_hu: int = 100) -> sitk.Image:
    """Noise about the middle of the window, 100 HU, of SIZE_ZYX voxels."""
    noise_zyx = np.random.default_rng(0).integers(-amplitude_hu, amplitude_hu, SIZE_ZYX, endpoint=True)
    image = sitk.GetImageFromArray((100 + noise_zyx).astype(np.int16))
    image.SetSpacing((1.0, 1.0, 2.0))
    return image


def predict(ensemble: Sequence[Model], **settings: Any) -> Probabilities:
    predicted = predict_probabilities(ensemble, scan(), Modality.CT, PredictionSettings(**settings))
    assert predicted.grid.size_zyx == SIZE_ZYX
    return predicted.probability_rzyx


def test_the_members_of_an_ensemble_are_averaged() -> None:
    one, other = Constant(0.9, 0.2), Constant(0.2, 0.9)
    assert predict(models(one, other)) == pytest.approx(np.full((2, *SIZE_ZYX), 0.55), abs=1e-5)
    both, alone = (
        segment(models(*members), scan(), Modality.CT, PredictionSettings()) for members in ([one, other], [one])
    )
    assert (both.labels_zyx == 2).all()
    assert (alone.labels_zyx == 1).all()
    (lesion,) = both.lesions
    assert lesion.confidence == pytest.approx(0.55, abs=1e-5)


def test_an_ensemble_says_how_far_its_members_agree_with_their_mean() -> None:
    def agreement(*members: nn.Module, **spec: Any) -> Any:
        return segment(models(*members, **spec), scan(), Modality.CT, PredictionSettings()).agreement

    assert agreement(Constant(0.9, 0.9), Constant(0.2, 0.3)) == {"liver": 0, "tumour": 0}  # the mean finds both
    assert agreement(Constant(0.9, 0.2), Constant(0.8, 0.3)) == {"liver": 1, "tumour": 1}  # nobody finds a tumour
    assert agreement(Constant(0.9, 0.2), Constant(0.8, 0.3), taught=("liver",)) == {"liver": 1}
    assert agreement(Constant(0.9, 0.9)) == {}


def test_mirrored_predictions_are_mirrored_back_and_averaged_over_every_combination_of_axes() -> None:
    along_x, along_both = (
        predict(models(Corner()), mirror_axes=axes)[LIVER, 0] for axes in ([Axis.X], [Axis.Y, Axis.X])
    )
    corners = ([0, 0, -1, -1], [0, -1, 0, -1])
    assert along_x[corners] == pytest.approx([0.5, 0.5, 0, 0])
    assert along_both[corners] == pytest.approx([0.25] * 4)
    assert along_x.sum() == pytest.approx(1)
    assert along_both.sum() == pytest.approx(1)


def test_a_symmetric_network_predicts_the_same_mirrored() -> None:
    mirrored_rzyx = predict(models(Voxelwise()), mirror_axes=list(Axis))
    assert mirrored_rzyx == pytest.approx(predict(models(Voxelwise())), abs=1e-6)


def test_variants_of_size_and_contrast_are_averaged_on_the_grid_of_the_plan() -> None:
    settings = PredictionSettings(variants=3)  # brighter by 0, 0.1 and -0.1
    predicted = predict_probabilities(models(Bright()), scan(1), Modality.CT, settings)
    assert predicted.grid.size_zyx == SIZE_ZYX
    assert predicted.probability_rzyx == pytest.approx(np.full((2, *SIZE_ZYX), (0.3 + 0.9 + 0.3) / 3), abs=1e-5)


def test_the_threshold_is_the_models_own_unless_the_settings_name_one() -> None:
    def found(threshold: float | None, own: float) -> bool:
        ensemble = models(Constant(0.9, 0.55), tumour_threshold=own)
        settings = PredictionSettings(tumour_threshold=threshold)
        return bool(segment(ensemble, scan(), Modality.CT, settings).tumour_zyx.any())

    assert found(None, own=0.5)
    assert not found(None, own=0.6)
    assert found(0.5, own=0.6)
    assert not found(0.6, own=0.5)


class Slope(nn.Module):
    """Certain of liver in the first 14 columns; the tumour's probability falls from 0.61 by 0.04 a column."""

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        x_w = torch.arange(image_bcdhw.shape[4])
        liver_w = torch.where(x_w < 14, CERTAIN, -CERTAIN)
        tumour_w = torch.logit((0.61 - 0.04 * x_w).clamp(min=0.001))
        return torch.stack([liver_w, tumour_w])[None, :, None, None].expand(1, 2, *image_bcdhw.shape[2:4], -1)


def test_a_lesion_reaches_beyond_where_it_is_found_but_not_beyond_the_liver() -> None:
    def columns(threshold: float) -> int:
        settings = PredictionSettings(tumour_threshold=threshold, min_lesion_ml=0)
        found_x = segment(models(Slope()), scan(), Modality.CT, settings, whole=True).tumour_zyx.any((0, 1))
        count = int(found_x.sum())
        assert found_x[:count].all()
        return count

    assert columns(0.5) == 8  # 0.61 to 0.33, above 0.3
    assert columns(0.4) == 10  # to 0.25, above 0.24
    assert columns(0.1) == 14  # the liver ends at 0.09, above 0.06
    assert columns(0.65) == 0


def test_a_structure_that_was_not_taught_is_left_out_and_its_volume_is_unknown() -> None:
    def segmented(*taught: str) -> Any:
        return segment(models(Constant(0.9, 0.9), taught=taught), scan(), Modality.CT, PredictionSettings())

    no_liver, no_tumour = segmented("tumour"), segmented("liver")
    assert not no_liver.liver_zyx.any()
    assert (no_liver.labels_zyx == TUMOUR + 1).all()
    assert no_liver.liver_ml is None
    assert no_liver.tumour_ml == pytest.approx(8 * 16 * 16 * 0.002)
    assert (no_tumour.labels_zyx == LIVER + 1).all()
    assert (no_tumour.tumour_ml, no_tumour.lesions) == (None, ())
