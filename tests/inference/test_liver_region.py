"""Prediction around the liver finds what prediction of the whole scan finds, in fewer windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor, nn
from toy_model import PLAN, toy_spec

import hepar.inference.prediction
from hepar.cases import LIVER, Modality
from hepar.imaging.volumes import Geometry, canonical
from hepar.inference.liver_region import Region, find_liver, follow_liver
from hepar.inference.prediction import Model, Segmentation, segment
from hepar.inference.prepared_scan import PreparedScan
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

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        self.windows += len(image_bcdhw)
        dim_b1111 = image_bcdhw.mean((1, 2, 3, 4), keepdim=True)
        return torch.cat([20 * (image_bcdhw + 0.25), 20 * (image_bcdhw - 0.5)], dim=1) - dim_b1111


def scan(length_x: int = 20) -> sitk.Image:
    """A liver of 12 × 20 × `length_x` voxels with a tumour, or none, in noisy fat; stored in another orientation."""
    rng = np.random.default_rng(0)
    hu_zyx = np.full(SIZE_ZYX, -100, np.int16) + rng.integers(-9, 9, SIZE_ZYX, dtype=np.int16)
    hu_zyx[10:22, 20:40, 12 : 12 + length_x] = LIVER_HU
    hu_zyx[14:18, 26:30, 14 : 14 + min(length_x, 6)] = TUMOUR_HU
    image = sitk.GetImageFromArray(hu_zyx)
    image.SetSpacing((SPACING_MM,) * 3)
    return sitk.DICOMOrient(image, "RAS")


def model(**spec: Any) -> Model:
    changed = {"plan": PLAN.model_copy(update={"spacing_zyx_mm": (SPACING_MM,) * 3}), **spec}
    own = toy_spec(NetworkParams(name="none", config={})).model_copy(update=changed)
    return Model(Counting(), own, torch.device("cpu"))


def both(image: sitk.Image, **settings: Any) -> tuple[Segmentation, Segmentation, int]:
    """Around the liver, of the whole scan, and the windows of the first."""
    counted = model()
    around = segment([counted], image, Modality.CT, PredictionSettings(**settings), around_liver=True)
    windows = counted.network.windows
    return around, segment([model()], image, Modality.CT, PredictionSettings(**settings)), windows


@pytest.mark.parametrize("settings", [{}, {"mirror_axes": (Axis.Z, Axis.X), "overlap": 0.25}, {"variants": 2}])
def test_around_the_liver_masks_and_probabilities_are_those_of_the_whole_scan(settings: dict[str, Any]) -> None:
    around, whole, windows = both(scan(), **settings)
    assert np.array_equal(around.labels_zyx, whole.labels_zyx)
    assert around.lesions[0].centre_lps_mm == pytest.approx(whole.lesions[0].centre_lps_mm)
    assert around.lesions[0].centre_index_zyx == pytest.approx(whole.lesions[0].centre_index_zyx)
    probability_zyx, expected_zyx = around.probability_in(LIVER), whole.probability_in(LIVER)
    assert probability_zyx.shape == around.geometry.size_zyx
    assert np.abs(probability_zyx - expected_zyx)[whole.liver_zyx].max() < 0.05
    if not settings:
        assert windows < 0.6 * ALL_WINDOWS
        assert around.probability_rzyx[0].size < 0.5 * around.liver_zyx.size


@pytest.mark.parametrize("roomy", [True, False])
def test_what_the_coarse_pass_missed_is_found_by_following_the_liver(
    roomy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    corner = (slice(11, 21), slice(22, 36), slice(12, 24))  # of a liver of 40 voxels along x, 107 ml of 600
    whole_box = tuple(slice(0, n) for n in SIZE_ZYX)
    region = Region(corner, np.ones([part.stop - part.start for part in corner], bool))
    start = region.moved(whole_box) if roomy else region  # in a box without room, the box has to grow too
    monkeypatch.setattr(hepar.inference.prediction, "find_liver", lambda *_: start)
    image = scan(length_x=40)
    followed = follow_liver([model()], PreparedScan(canonical(image), Modality.CT, model().spec.plan), SETTINGS, start)
    assert followed is not None  # the whole scan was not needed
    around, whole, _ = both(image)
    assert np.array_equal(around.labels_zyx, whole.labels_zyx)


def test_the_coarse_liver_is_found_on_the_grid_of_the_plan() -> None:
    image = canonical(scan())
    region = find_liver(model(), image, Modality.CT)
    assert region is not None
    found_zyx = region.moved(tuple(slice(0, n) for n in SIZE_ZYX)).mask_zyx
    expected_zyx = sitk.GetArrayFromImage(image) > LIVER_HU / 2
    assert (found_zyx & expected_zyx).sum() > 0.8 * expected_zyx.sum()
    assert Geometry.of(image).size_zyx == SIZE_ZYX


def test_a_scan_without_a_liver_or_of_a_model_that_knows_none_is_predicted_as_a_whole() -> None:
    empty = model()
    assert not segment([empty], scan(length_x=0), Modality.CT, PredictionSettings()).liver_zyx.any()
    assert empty.network.windows >= ALL_WINDOWS
    untaught = model(taught=("tumour",))
    assert segment([untaught], scan(), Modality.CT, PredictionSettings()).tumour_zyx.any()
    assert untaught.network.windows == ALL_WINDOWS


def test_a_window_matters_to_a_voxel_that_it_weighs_for() -> None:
    """Windows of 16 voxels every 8: voxel 20 lies 4.5 and 3.5 from two centres, 23 half a voxel from one."""
    grid = WindowGrid.over((8, 16, 64), (8, 16, 16), 0.5)
    box = (slice(0, 8), slice(0, 16), slice(16, 32))
    for voxel, starts in ((20, [8, 16]), (23, [16])):
        mask_zyx = np.zeros((8, 16, 16), bool)
        mask_zyx[4, 8, voxel - 16] = True
        assert grid.that_matter(mask_zyx, box) == [(0, 0, start) for start in starts]
    assert grid.that_matter(np.zeros((8, 16, 16), bool), box) == []
    assert grid.mirrored([2]).starts_zyx[2] == (48, 40, 32, 24, 16, 8, 0)
