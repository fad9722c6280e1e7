"""The liver's windows find what all windows of a scan find."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor, nn
from toy_model import PLAN, toy_spec

from hepar.cases import LIVER, Modality
from hepar.inference import liver_region
from hepar.inference.prediction import Model, Segmentation, segment
from hepar.inference.settings import Axis, PredictionSettings
from hepar.inference.sliding_window import WindowGrid
from hepar.params import NetworkParams

SIZE_ZYX, SPACING_MM = (32, 64, 64), 4.0  # of the plan too; a window is 8 × 16 × 16
ALL_WINDOWS = 7**3
LIVER_HU, TUMOUR_HU = 100, 250
SETTINGS = PredictionSettings()


class Counting(nn.Module):
    """Liver above 50 HU and tumour above 200 HU, a little less likely in brighter windows; counts windows."""

    def __init__(self) -> None:
        super().__init__()
        self.windows = 0
        self.seen: set[bytes] = set()

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        self.windows += len(image_bcdhw)
        self.seen |= {window.numpy().tobytes() for window in image_bcdhw}
        dim_b1111 = image_bcdhw.mean((1, 2, 3, 4), keepdim=True)
        return torch.cat([20 * (image_bcdhw + 0.25), 20 * (image_bcdhw - 0.5)], dim=1) - dim_b1111


class ShortSighted(Counting):
    """Finds nothing in the outer two voxels of a window's sides."""

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        logits_brdhw = super().forward(image_bcdhw)
        inner_bcdhw = torch.zeros_like(image_bcdhw)
        inner_bcdhw[..., 1:-1, 2:-2, 2:-2] = 1
        return torch.where(inner_bcdhw > 0, logits_brdhw, -50.0)


class Blind(Counting):
    """Finds nothing."""

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        return super().forward(image_bcdhw) * 0 - 1.0


def scan(length_x: int = 20) -> sitk.Image:
    """A liver of 12 × 20 × `length_x` voxels with a tumour, or none, in noisy fat; stored in another orientation."""
    rng = np.random.default_rng(0)
    hu_zyx = np.full(SIZE_ZYX, -100, np.int16) + rng.integers(-9, 9, SIZE_ZYX, dtype=np.int16)
    hu_zyx[10:22, 20:40, 12 : 12 + length_x] = LIVER_HU
    hu_zyx[14:18, 26:30, 14 : 14 + min(length_x, 6)] = TUMOUR_HU
    image = sitk.GetImageFromArray(hu_zyx)
    image.SetSpacing((SPACING_MM,) * 3)
    return sitk.DICOMOrient(image, "RAS")


def model(network: Counting | None = None, **spec: Any) -> Model:
    changed = {"plan": PLAN.model_copy(update={"spacing_zyx_mm": (SPACING_MM,) * 3}), **spec}
    own = toy_spec(NetworkParams(name="none", config={})).model_copy(update=changed)
    return Model(network or Counting(), own, torch.device("cpu"))


def both(image: sitk.Image, network: Counting | None = None, **settings: Any) -> tuple[Segmentation, Segmentation, int]:
    """By the liver's windows, by all windows, and how many windows the first took."""
    counted = model(network)
    told: list[tuple[int, int]] = []
    around = segment(
        [counted], image, Modality.CT, PredictionSettings(**settings), on_window=lambda *count: told.append(count)
    )
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert told[-1] == (len(told), len(told))
    assert all(total >= done for done, total in told)
    if network is None and not settings:
        assert len(told) == len(counted.network.seen)  # none was predicted twice
    return around, segment([model(network)], image, Modality.CT, PredictionSettings(**settings), whole=True), len(told)


@pytest.mark.parametrize("settings", [{}, {"mirror_axes": (Axis.Z, Axis.X), "overlap": 0.25}, {"variants": 2}])
def test_masks_and_probabilities_are_those_of_the_whole_scan(settings: dict[str, Any]) -> None:
    around, whole, windows = both(scan(), **settings)
    assert np.array_equal(around.labels_zyx, whole.labels_zyx)
    assert around.lesions[0].centre_lps_mm == pytest.approx(whole.lesions[0].centre_lps_mm)
    assert around.lesions[0].centre_index_zyx == pytest.approx(whole.lesions[0].centre_index_zyx)
    probability_zyx, expected_zyx = around.probability_in(LIVER), whole.probability_in(LIVER)
    assert probability_zyx.shape == around.geometry.size_zyx
    assert np.abs(probability_zyx - expected_zyx)[whole.liver_zyx].max() < 0.05
    if not settings:
        assert windows < 0.5 * ALL_WINDOWS
        assert around.probability_rzyx[0].size < 0.5 * around.liver_zyx.size


@pytest.mark.parametrize("room", [liver_region.MAX_ROOM, 0])
def test_what_the_first_pass_missed_is_found_by_following_the_liver(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that sees nothing near the borders of its windows; without room the box has to grow, too."""
    monkeypatch.setattr(liver_region, "MAX_ROOM", room)
    around, whole, windows = both(scan(length_x=40), ShortSighted())
    assert np.array_equal(around.labels_zyx, whole.labels_zyx)
    assert whole.liver_zyx.sum() > 8000  # of 9600 voxels
    assert windows < ALL_WINDOWS


def test_all_that_the_first_pass_finds_is_followed() -> None:
    """The liver, of 4800 voxels, is larger than another organ, but the first pass finds less of it."""
    image = sitk.DICOMOrient(scan(length_x=20), "LPS")
    image[34:46, 34:60, 1:15] = LIVER_HU  # 4368 voxels, 3168 of them away from the borders of the first windows
    around, whole, windows = both(image, ShortSighted())
    assert np.array_equal(around.labels_zyx, whole.labels_zyx)
    assert around.liver_zyx.sum() == pytest.approx(4800, rel=0.05)
    assert windows < ALL_WINDOWS


def test_any_member_may_find_the_liver() -> None:
    blind = model(Blind())
    ensemble = [blind, model(), model()]
    around = segment(ensemble, scan(), Modality.CT, SETTINGS)
    assert len(blind.network.seen) < ALL_WINDOWS / 2
    whole = segment(ensemble, scan(), Modality.CT, SETTINGS, whole=True)
    assert np.array_equal(around.labels_zyx, whole.labels_zyx)
    assert around.agreement == whole.agreement


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
def test_the_first_pass_holds_every_voxel_in_as_few_windows_as_without_overlap(overlap: float) -> None:
    for size in (5, 16, 17, 40, 63, 64, 65):
        grid = WindowGrid.over((8, 16, size), (8, 16, 16), overlap)
        held_x = np.zeros(size, bool)
        for _, _, start in grid.covering().corners:
            held_x[max(start, 0) : start + 16] = True
        assert held_x.all()
        assert set(grid.covering().corners) <= set(grid.corners)
        if overlap == 0.5:
            assert len(grid.covering().corners) == len(WindowGrid.over((8, 16, size), (8, 16, 16), 0.0).corners)


def test_a_scan_without_a_liver_or_of_a_model_that_knows_none_is_predicted_as_a_whole() -> None:
    empty = model()
    assert not segment([empty], scan(length_x=0), Modality.CT, SETTINGS).liver_zyx.any()
    assert len(empty.network.seen) == ALL_WINDOWS
    untaught = model(taught=("tumour",))
    assert segment([untaught], scan(), Modality.CT, SETTINGS).tumour_zyx.any()
    assert len(untaught.network.seen) == untaught.network.windows == ALL_WINDOWS


def test_a_window_matters_to_a_voxel_that_it_weighs_for() -> None:
    """Windows of 16 voxels every 8: along an axis voxel 20 lies 4.5 and 3.5 from two centres, 23 lies 7.5 and 0.5 from
    them, which gives the farther window 15 % of the weights, and 2 % if it is the farther one along two axes."""
    grid = WindowGrid.over((8, 64, 64), (8, 16, 16), 0.5)
    box = (slice(0, 8), slice(16, 32), slice(16, 32))
    for voxel, starts in ((20, [(8, 8), (8, 16), (16, 8), (16, 16)]), (23, [(8, 16), (16, 8), (16, 16)])):
        mask_zyx = np.zeros((8, 16, 16), bool)
        mask_zyx[4, voxel - 16, voxel - 16] = True
        assert grid.that_matter(mask_zyx, box) == [(0, *start) for start in starts]
    assert grid.that_matter(np.zeros((8, 16, 16), bool), box) == []
    assert grid.mirrored([2]).starts_zyx[2] == (48, 40, 32, 24, 16, 8, 0)


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_the_windows_that_matter_are_those_with_a_twentieth_of_the_weights_of_a_voxel(overlap: float) -> None:
    """Against the weights of all windows at every voxel, which are at least 0.001 each, as in the mean of windows."""
    size_zyx, patch_zyx = (10, 21, 14), (4, 8, 6)
    grid = WindowGrid.over(size_zyx, patch_zyx, overlap)
    weights = np.zeros((len(grid.corners), *size_zyx))
    for weight_zyx, corner in zip(weights, grid.corners, strict=True):
        for offset in np.ndindex(patch_zyx):
            sigmas = [(o - (side - 1) / 2) / (side / 4) for o, side in zip(offset, patch_zyx, strict=True)]
            weight_zyx[tuple(np.add(corner, offset))] = max(math.exp(-sum(s * s for s in sigmas) / 2), 0.001)
    shares = weights / weights.sum(axis=0)
    first = (1, 2, 3)
    box = tuple(slice(start, stop) for start, stop in zip(first, size_zyx, strict=True))
    for voxel in np.ndindex(*np.subtract(size_zyx, first)):
        mask_zyx = np.zeros(np.subtract(size_zyx, first), bool)
        mask_zyx[voxel] = True
        share = shares[:, *np.add(voxel, first)]
        assert grid.that_matter(mask_zyx, box) == [grid.corners[index] for index in np.flatnonzero(share >= 0.05)]
    assert len(grid.that_matter(np.ones(np.subtract(size_zyx, first), bool), box)) == len(grid.corners)
