"""Inference: sliding windows, postprocessing, and model folders."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toy_model import toy_spec

from hepar.cases import STRUCTURES, Modality
from hepar.errors import DataError
from hepar.imaging.masks import Mask, keep_largest_component
from hepar.inference.prediction import (
    Model,
    label_file_names,
    postprocess,
    segment,
    variant_strength,
)
from hepar.inference.prepared_scan import change_contrast
from hepar.inference.settings import PredictionSettings
from hepar.inference.sliding_window import WindowGrid, sliding_window
from hepar.params import NetworkParams

CPU = torch.device("cpu")


class Echo(nn.Module):
    """Returns the image as logits of the liver and its negative as logits of the tumour."""

    def __init__(self) -> None:
        super().__init__()
        self.windows = 0

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        self.windows += 1
        return torch.cat([image_bcdhw, -image_bcdhw], dim=1)


class Brightness(nn.Module):
    """Finds liver above 50 HU and tumour above 200 HU, in an image with a window of -100 to 300 HU."""

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        return torch.cat([50 * (image_bcdhw + 0.25), 50 * (image_bcdhw - 0.5)], dim=1)


def random_image(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def sigmoid(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(1 / (1 + np.exp(-values)), np.float32)


def windows(image_zyx: npt.NDArray[np.float32], patch: tuple[int, int, int], overlap: float) -> npt.NDArray[np.float32]:
    return sliding_window(Echo(), image_zyx, patch, overlap, CPU)


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.integers(2, 11)] * 3), st.tuples(*[st.integers(2, 6)] * 3), st.sampled_from([0.0, 0.25, 0.5, 0.9])
)
def test_windows_of_any_size_give_each_voxel_its_probability(
    shape: tuple[int, int, int], patch: tuple[int, int, int], overlap: float
) -> None:
    image_zyx = random_image(*shape)
    probability_rzyx = windows(image_zyx, patch, overlap)
    assert probability_rzyx.shape == (2, *shape)
    assert probability_rzyx[0] == pytest.approx(sigmoid(image_zyx), abs=1e-4)
    assert probability_rzyx[1] == pytest.approx(sigmoid(-image_zyx), abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.integers(2, 23)] * 3), st.tuples(*[st.integers(3, 9)] * 3), st.sampled_from([0.0, 0.25, 0.5, 0.7])
)
def test_windows_lie_and_weigh_as_those_of_monai(
    shape: tuple[int, int, int], patch: tuple[int, int, int], overlap: float
) -> None:
    from monai.inferers import sliding_window_inference

    class Uneven(nn.Module):
        """Depends on the whole window, and on the place in it."""

        def forward(self, image_bcdhw: Tensor) -> Tensor:
            place_w = torch.linspace(-1, 1, image_bcdhw.shape[-1])
            logits_bcdhw = image_bcdhw - image_bcdhw.mean((2, 3, 4), keepdim=True) + place_w
            return torch.cat([logits_bcdhw, -2 * logits_bcdhw], dim=1)

    network, image_zyx = Uneven(), random_image(*shape)
    expected_brzyx = sliding_window_inference(
        torch.from_numpy(image_zyx)[None, None],
        patch,
        1,
        lambda image_bcdhw: network(image_bcdhw).sigmoid(),
        overlap=WindowGrid.over(shape, patch, overlap).overlap_zyx,
        mode="gaussian",
        sigma_scale=0.25,
        padding_mode="replicate",
    )
    found_rzyx = sliding_window(network, image_zyx, patch, overlap, CPU)
    assert found_rzyx == pytest.approx(expected_brzyx[0].numpy(), abs=1e-5)


@given(st.integers(1, 400), st.integers(1, 64), st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.9]))
def test_windows_are_as_few_as_the_overlap_allows_and_nearly_even(size: int, patch: int, overlap: float) -> None:
    starts, *_ = WindowGrid.over((size, 1, 1), (patch, 1, 1), overlap).starts_zyx
    steps = [after - before for before, after in pairwise(starts)]
    if size <= patch:
        assert not steps
        return
    longest = max(1, int(patch * (1 - overlap)))
    assert (starts[0], starts[-1]) == (0, size - patch)
    assert max(steps) <= longest
    assert len(steps) <= math.ceil((size - patch) / longest)
    assert len({*steps[:-1]}) <= 1
    assert 0 < steps[-1] <= steps[0] < steps[-1] + len(steps)


def test_a_single_slice_is_segmented_in_a_thicker_window() -> None:
    image_zyx = random_image(1, 8, 8)
    assert windows(image_zyx, (4, 8, 8), 0.5)[0] == pytest.approx(sigmoid(image_zyx), abs=1e-4)


def test_an_image_of_window_size_takes_one_window() -> None:
    network = Echo()
    sliding_window(network, random_image(4, 6, 8), (4, 6, 8), 0.5, CPU)
    assert network.windows == 1


def test_windows_of_air_are_skipped_with_probability_zero() -> None:
    image_zyx = np.full((4, 4, 16), -1.0, np.float32)
    image_zyx[:, :, 4:8] = random_image(4, 4, 4)
    network = Echo()
    probability_rzyx = sliding_window(network, image_zyx, (4, 4, 4), 0.0, CPU)
    assert network.windows == 1
    assert probability_rzyx[:, :, :, 4:8].all()
    assert not probability_rzyx[:, :, :, :4].any()
    assert not probability_rzyx[:, :, :, 8:].any()


def test_an_image_of_air_only_has_probability_zero() -> None:
    network = Echo()
    probability_rzyx = sliding_window(network, np.full((5, 6, 7), -1.0, np.float32), (4, 4, 4), 0.5, CPU)
    assert probability_rzyx.shape == (2, 5, 6, 7)
    assert not probability_rzyx.any()
    assert network.windows == 0


def test_the_centre_of_a_window_has_more_weight_than_its_border() -> None:
    class Ramp(nn.Module):
        """Certain of liver in the last two voxels of a window, and of background elsewhere."""

        def forward(self, image_bcdhw: Tensor) -> Tensor:
            logits_brdhw = torch.full((len(image_bcdhw), 2, *image_bcdhw.shape[2:]), -50.0)
            logits_brdhw[..., -2:] = 50.0
            return logits_brdhw

    liver_x = sliding_window(Ramp(), random_image(8, 8, 12), (8, 8, 8), 0.5, CPU)[0, 4, 4]
    # windows start at 0 and 4; voxel 7 is 3.5 from the centre of the first and half a voxel from that of the second
    border, centre = (math.exp(-0.5 * (distance / 2) ** 2) for distance in (3.5, 0.5))
    assert liver_x[7] == pytest.approx(border / (border + centre))
    assert liver_x[11] == pytest.approx(1)


def test_test_time_variants_come_in_symmetric_pairs() -> None:
    image_zyx = random_image(4, 4, 4)
    mean = image_zyx.mean()
    assert change_contrast(image_zyx, 1.1, 0.1) == pytest.approx((image_zyx - mean) * 1.1 + mean + 0.1, abs=1e-5)
    assert [variant_strength(variant) for variant in range(5)] == pytest.approx([0, 0.1, -0.1, 0.2, -0.2])


def row(start: int, stop: int, y: int = 2) -> Mask:
    """A mask of voxels start to stop - 1 of one row."""
    mask_zyx = np.zeros((5, 6, 12), bool)
    mask_zyx[2, y, start:stop] = True
    return mask_zyx


EMPTY = row(0, 0)


def test_the_largest_component_is_kept() -> None:
    assert np.array_equal(keep_largest_component(row(0, 3) | row(5, 10)), row(5, 10))
    assert np.array_equal(keep_largest_component(row(5, 10)), row(5, 10))


def test_the_first_of_equal_components_is_kept_and_an_empty_mask_stays_empty() -> None:
    assert np.array_equal(keep_largest_component(row(0, 3) | row(5, 8)), row(0, 3))
    assert not keep_largest_component(EMPTY).any()


def test_components_that_share_only_an_edge_are_separate() -> None:
    assert np.array_equal(keep_largest_component(row(0, 3, y=2) | row(3, 5, y=3)), row(0, 3))


def test_postprocessing_keeps_empty_masks_empty() -> None:
    liver_zyx, tumour_zyx = postprocess(EMPTY, EMPTY, STRUCTURES, voxel_ml=1.0, min_lesion_ml=0.1)
    assert not liver_zyx.any()
    assert not tumour_zyx.any()


def test_the_liver_includes_its_tumours_and_has_no_holes() -> None:
    box_zyx = np.zeros((5, 6, 12), bool)
    box_zyx[1:4, 1:4, 1:6] = True
    hollow_zyx = box_zyx.copy()
    hollow_zyx[2, 2, 3] = False
    liver_zyx, tumour_zyx = postprocess(hollow_zyx, row(5, 7), STRUCTURES, voxel_ml=1.0, min_lesion_ml=0.0)
    assert np.array_equal(liver_zyx, box_zyx | row(5, 7))
    assert np.array_equal(tumour_zyx, row(5, 7))


def test_a_tumour_outside_the_largest_component_is_dropped() -> None:
    liver_zyx, tumour_zyx = postprocess(row(0, 6), row(2, 3) | row(8, 10), STRUCTURES, voxel_ml=1.0, min_lesion_ml=0.0)
    assert np.array_equal(liver_zyx, row(0, 6))
    assert np.array_equal(tumour_zyx, row(2, 3))


def test_lesions_below_the_minimum_volume_become_liver() -> None:
    lesions_zyx = row(1, 2) | row(4, 6) | row(8, 11)
    liver_zyx, tumour_zyx = postprocess(row(0, 12), lesions_zyx, STRUCTURES, voxel_ml=0.5, min_lesion_ml=1.0)
    assert np.array_equal(tumour_zyx, row(4, 6) | row(8, 11))
    assert np.array_equal(liver_zyx, row(0, 12))


def test_lesions_grow_as_far_as_the_liver_reaches_and_none_is_added() -> None:
    lesions_zyx = row(1, 2) | row(5, 7)
    outline_zyx = row(0, 3) | row(4, 12) | row(9, 11, y=4)
    liver_zyx, tumour_zyx = postprocess(
        row(0, 9), lesions_zyx, STRUCTURES, voxel_ml=1.0, min_lesion_ml=2.0, outline_zyx=outline_zyx
    )
    assert np.array_equal(tumour_zyx, row(4, 9))  # the smaller lesion is dropped before it could grow
    assert np.array_equal(liver_zyx, row(0, 9))
    _, tumour_zyx = postprocess(
        row(0, 9), lesions_zyx, ("tumour",), voxel_ml=1.0, min_lesion_ml=0.0, outline_zyx=outline_zyx
    )
    assert np.array_equal(tumour_zyx, row(0, 3) | row(4, 12))


def test_without_a_taught_liver_lesions_stay_wherever_they_are() -> None:
    apart_zyx = row(1, 2) | row(4, 6) | row(0, 12, y=5)
    liver_zyx, tumour_zyx = postprocess(row(0, 7), apart_zyx, ("tumour",), voxel_ml=1.0, min_lesion_ml=2.0)
    assert not liver_zyx.any()
    assert np.array_equal(tumour_zyx, row(4, 6) | row(0, 12, y=5))


def test_without_taught_tumours_the_liver_stands_alone() -> None:
    liver_zyx, tumour_zyx = postprocess(row(0, 5), row(3, 12), ("liver",), voxel_ml=1.0, min_lesion_ml=0.0)
    assert np.array_equal(liver_zyx, row(0, 5))
    assert not tumour_zyx.any()


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SLP"])
def test_a_scan_of_any_orientation_is_segmented_on_its_own_grid(orientation: str) -> None:
    hu_zyx = np.full((6, 12, 14), -100, np.int16)
    hu_zyx[1:5, 2:9, 3:12] = 100
    hu_zyx[2:4, 4:6, 5:8] = 250
    expected_zyx = (hu_zyx >= 100).astype(np.uint8) + (hu_zyx >= 250)
    scan, reference = sitk.GetImageFromArray(hu_zyx), sitk.GetImageFromArray(expected_zyx)
    for image in (scan, reference):
        image.SetSpacing((1.0, 1.0, 2.0))
    model = Model(Brightness(), toy_spec(NetworkParams(name="none", config={})), CPU)
    found = segment([model], sitk.DICOMOrient(scan, orientation), Modality.CT, PredictionSettings(min_lesion_ml=0))
    assert np.array_equal(found.labels_zyx, sitk.GetArrayFromImage(sitk.DICOMOrient(reference, orientation)))
    assert found.liver_ml == pytest.approx(4 * 7 * 9 * 2 / 1000)
    assert found.tumour_ml == pytest.approx(2 * 2 * 3 * 2 / 1000)
    (lesion,) = found.lesions
    assert lesion.volume_ml == found.tumour_ml
    assert lesion.centre_lps_mm == pytest.approx((6, 4.5, 5))  # where it lies in the patient, however stored


def test_scans_of_one_name_are_named_after_their_folder_and_never_share_a_file() -> None:
    paths = [Path("a/image.nii.gz"), Path("b/image.nii.gz"), Path("b/other.nii")]
    assert label_file_names(paths) == ["a_image_labels.nii.gz", "b_image_labels.nii.gz", "other_labels.nii.gz"]
    assert label_file_names([Path("a/b.nrrd"), Path("a/c.v2.MHA")]) == ["b_labels.nii.gz", "c.v2_labels.nii.gz"]
    with pytest.raises(DataError, match=r"several scans would be written to a_image_labels\.nii\.gz"):
        label_file_names([Path("x/a/image.nii"), Path("y/a/image.nii")])


def test_a_model_refuses_a_scan_of_a_modality_that_it_was_not_trained_on() -> None:
    model = Model(Brightness(), toy_spec(NetworkParams(name="toy", config={})), CPU)
    scan = sitk.GetImageFromArray(np.zeros((8, 16, 16), np.float32))
    with pytest.raises(DataError, match=r"^the scan is MR, but the model was trained on CT only$"):
        segment([model], scan, Modality.MR, PredictionSettings())
