"""Which component is the liver: by size, weighed by how its brightness fits livers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor, nn
from toy_model import PLAN, toy_spec

from hepar.cases import Case, Modality
from hepar.evaluation.overlap import dice
from hepar.imaging.masks import Mask
from hepar.inference import prediction
from hepar.inference.liver_choice import choose_liver, component_of, likelihood
from hepar.inference.prediction import Model, segment
from hepar.inference.settings import PredictionSettings
from hepar.params import NetworkParams, Params
from hepar.pseudo_labels.prediction import predict_pseudo_liver

LIVERS = (0.4, 0.2)  # mean and standard deviation of their medians
Image = npt.NDArray[np.float32]


def row(**parts: tuple[int, float]) -> tuple[Mask, Image]:
    """Components along x, one voxel apart, each of some voxels and one brightness."""
    found, image = [False], [0.0]
    for voxels, brightness in parts.values():
        found += [True] * voxels + [False]
        image += [brightness] * voxels + [0.0]
    return np.array([[found]]), np.array([[image]], np.float32)


def chosen(**parts: tuple[int, float]) -> str:
    """The name of the component that is chosen."""
    found_zyx, image_zyx = row(**parts)
    liver_zyx = choose_liver(found_zyx, LIVERS, lambda: image_zyx)
    starts = dict(zip(np.cumsum([1] + [voxels + 1 for voxels, _ in parts.values()])[:-1], parts, strict=True))
    first = int(np.flatnonzero(liver_zyx)[0])
    assert liver_zyx.sum() == parts[starts[first]][0]
    return starts[first]


def not_asked() -> Image:
    raise AssertionError("the image is not needed")


def test_the_lungs_are_no_liver_although_more_of_them_was_found() -> None:
    assert chosen(lungs=(40, -1.0), liver=(20, 0.5)) == "liver"
    assert chosen(liver=(20, 0.5), lungs=(40, -1.0)) == "liver"


def test_of_components_as_bright_as_a_liver_the_largest_is_taken() -> None:
    assert chosen(spleen=(12, 0.5), liver=(20, 0.1)) == "liver"
    assert chosen(one=(20, 0.4), other=(20, 0.4)) == "one"


def test_a_liver_in_an_unusual_light_wins_against_a_small_component() -> None:
    """Fatty, or laden with iron: it counts a fifth, and what is smaller than a fifth of it is not looked at."""
    assert chosen(liver=(100, -1.2), false=(19, 0.4)) == "liver"
    assert chosen(liver=(100, -1.2), false=(25, 0.4)) == "false"


def test_the_image_is_looked_at_only_where_there_is_a_choice() -> None:
    for parts in ({"liver": (100, 0.0)}, {"liver": (100, 0.0), "speck": (19, 0.0)}):
        found_zyx, _ = row(**parts)
        assert choose_liver(found_zyx, LIVERS, not_asked).sum() == component_of(found_zyx, not_asked).sum() == 100
    empty_zyx = np.zeros((1, 1, 4), bool)
    assert not choose_liver(empty_zyx, LIVERS, not_asked).any()
    assert not component_of(empty_zyx, not_asked).any()


def test_without_livers_learned_from_the_largest_is_taken() -> None:
    found_zyx, _ = row(lungs=(40, -1.0), liver=(20, 0.5))
    assert choose_liver(found_zyx, None, not_asked).sum() == 40


def test_a_component_is_found_again_on_another_grid_by_the_voxels_that_it_shares() -> None:
    found_zyx, _ = row(lungs=(40, -1.0), liver=(20, 0.5))
    near_zyx = np.zeros_like(found_zyx)
    near_zyx[..., 40:50] = True  # one voxel of the lungs, eight of the liver
    assert component_of(found_zyx, lambda: near_zyx).sum() == 20
    assert component_of(found_zyx, lambda: np.zeros_like(found_zyx)).sum() == 40


@pytest.mark.parametrize(("deviations", "weight"), [(0.0, 1.0), (3.0, np.exp(-0.5)), (-3.0, np.exp(-0.5)), (9.0, 0.2)])
def test_brightness_is_weighed_by_its_distance_from_that_of_livers(deviations: float, weight: float) -> None:
    assert likelihood(0.4 + deviations * 0.2, LIVERS) == pytest.approx(weight)


class Body(nn.Module):
    """Finds liver in all that is not grey."""

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        found = 100 * (image_bcdhw.abs() - 0.2)
        return torch.cat([found, torch.full_like(found, -100.0)], dim=1)


BRIGHT = (slice(2, -2), slice(2, 10), slice(4, -4))
DARK = (slice(2, -2), slice(16, -2), slice(4, -4))  # larger, and apart
BRIGHT_VOXELS, DARK_VOXELS = 20 * 8 * 32, 20 * 22 * 32  # in a scan of 24 x 40 x 40 voxels
CHOICES = (({Modality.CT: (1.0, 0.1)}, BRIGHT), ({}, DARK))  # by the brightness of livers, where that is known


def two_components(size_zyx: tuple[int, int, int]) -> sitk.Image:
    """A CT of both, on a grid finer than that of the plan."""
    low, high = PLAN.window_hu
    hu_zyx = np.full(size_zyx, (low + high) / 2, np.int16)
    hu_zyx[BRIGHT], hu_zyx[DARK] = high, low
    image = sitk.GetImageFromArray(hu_zyx)
    image.SetSpacing([mm / 1.25 for mm in PLAN.spacing_zyx_mm[::-1]])
    return image


def model(expected: dict[Modality, tuple[float, float]]) -> Model:
    """A model that has learned from livers of this brightness."""
    spec = toy_spec(NetworkParams(name="none", config={})).model_copy(update={"liver_intensity": expected})
    return Model(Body(), spec, torch.device("cpu"))


def dice_with(liver_zyx: Mask, part: tuple[slice, ...]) -> float | None:
    """The Dice of a mask with a part of the scan."""
    true_zyx = np.zeros(liver_zyx.shape, bool)
    true_zyx[part] = True
    return dice(true_zyx, liver_zyx)


@pytest.mark.parametrize(("size_zyx", "is_followed"), [((24, 40, 40), False), ((60, 60, 60), True)])
def test_a_prediction_has_the_liver_and_not_the_larger_component(
    size_zyx: tuple[int, int, int], is_followed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[object] = []
    follow = prediction.follow_liver

    def seen(*arguments: Any) -> Any:
        answers.append(follow(*arguments))
        return answers[-1]

    monkeypatch.setattr(prediction, "follow_liver", seen)
    for expected, part in CHOICES:
        found = segment([model(expected)], two_components(size_zyx), Modality.CT, PredictionSettings())
        assert dice_with(found.liver_zyx, part) == pytest.approx(1, abs=0.1)
        assert (answers[-1] is not None) == is_followed


def test_a_pseudo_liver_is_the_liver_and_not_the_larger_component(case: Case, tiny: Params, tmp_path: Path) -> None:
    scan = replace(case, modality=Modality.CT, image="two.nii.gz", tumour="")
    sitk.WriteImage(two_components((24, 40, 40)), tmp_path / scan.image)
    for expected, part in CHOICES:
        pseudo = predict_pseudo_liver(scan, tmp_path, [model(expected)], tiny.pseudo_label)
        assert dice_with(pseudo.liver_zyx, part) == pytest.approx(1, abs=0.1)
        share = (BRIGHT_VOXELS if part == BRIGHT else DARK_VOXELS) / (BRIGHT_VOXELS + DARK_VOXELS)
        assert pseudo.signals.component_share == pytest.approx(share, abs=0.05)
