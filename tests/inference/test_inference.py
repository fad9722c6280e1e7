"""Inference: windows over a volume, cleaning, and models on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hepar.cases import Modality
from hepar.errors import ArtifactError, DataError
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.inference.prediction import (
    SPEC,
    WEIGHTS,
    Model,
    ModelSpec,
    clean,
    keep_largest_component,
    load_model,
    mask_names,
    save_model,
    segment,
    sliding_window,
    variant_strength,
    vary,
)
from hepar.networks import build_network
from hepar.params import NetworkParams, Params

CPU = torch.device("cpu")
PLAN = PreprocessingPlan(spacing_zyx_mm=(2.0, 1.0, 1.0), window_hu=(-100.0, 300.0), mr_percentiles=(2.0, 98.0))
Mask = npt.NDArray[np.bool_]


class Echo(nn.Module):
    """Says for each voxel what it sees there: the image for the liver, its negative for the tumour."""

    def __init__(self) -> None:
        super().__init__()
        self.windows = 0

    def forward(self, image: Tensor) -> Tensor:
        self.windows += 1
        return torch.cat([image, -image], dim=1)


class Brightness(nn.Module):
    """Liver above 50 HU and tumour above 200 HU of an image whose window is -100 to 300 HU."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([50 * (image + 0.25), 50 * (image - 0.5)], dim=1)


def random_image(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def sigmoid(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(1 / (1 + np.exp(-values)), np.float32)


def windows(image: npt.NDArray[np.float32], patch: tuple[int, int, int], overlap: float) -> npt.NDArray[np.float32]:
    return sliding_window(Echo(), image, patch, overlap, CPU)


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.integers(2, 11)] * 3), st.tuples(*[st.integers(2, 6)] * 3), st.sampled_from([0.0, 0.25, 0.5, 0.9])
)
def test_windows_of_any_size_give_each_voxel_its_own_probability(
    shape: tuple[int, int, int], patch: tuple[int, int, int], overlap: float
) -> None:
    image = random_image(*shape)
    out = windows(image, patch, overlap)
    assert out.shape == (2, *shape)
    assert out[0] == pytest.approx(sigmoid(image), abs=1e-4)
    assert out[1] == pytest.approx(sigmoid(-image), abs=1e-4)


def test_one_slice_is_segmented_in_a_window_of_several() -> None:
    image = random_image(1, 8, 8)
    assert windows(image, (4, 8, 8), 0.5)[0] == pytest.approx(sigmoid(image), abs=1e-4)


def test_an_image_of_a_windows_size_is_looked_at_once() -> None:
    network = Echo()
    sliding_window(network, random_image(4, 6, 8), (4, 6, 8), 0.5, CPU)
    assert network.windows == 1


def test_windows_of_air_are_not_looked_at_and_hold_nothing() -> None:
    image = np.full((4, 4, 16), -1.0, np.float32)
    image[:, :, 4:8] = random_image(4, 4, 4)
    network = Echo()
    out = sliding_window(network, image, (4, 4, 4), 0.0, CPU)
    assert network.windows == 1
    assert out[:, :, :, 4:8].all()
    assert not out[:, :, :, :4].any()
    assert not out[:, :, :, 8:].any()


def test_an_image_of_nothing_but_air_holds_nothing() -> None:
    network = Echo()
    out = sliding_window(network, np.full((5, 6, 7), -1.0, np.float32), (4, 4, 4), 0.5, CPU)
    assert out.shape == (2, 5, 6, 7)
    assert not out.any()
    assert network.windows == 0


def test_the_middle_of_a_window_counts_more_than_its_border() -> None:
    class Ramp(nn.Module):
        """Certain of liver in the last voxels of a window, certain of none in the others."""

        def forward(self, image: Tensor) -> Tensor:
            logits = torch.full((len(image), 2, *image.shape[2:]), -50.0)
            logits[..., -2:] = 50.0
            return logits

    out = sliding_window(Ramp(), random_image(8, 8, 12), (8, 8, 8), 0.5, CPU)[0, 4, 4]
    # windows begin at 0 and 4; voxel 7 is at the first one's border and in the second one's middle
    assert out[7] < 0.01
    assert out[11] == pytest.approx(1)


def test_variants_come_in_pairs_about_the_image() -> None:
    image = random_image(4, 4, 4)
    mean = image.mean()
    assert vary(image, 0.1) == pytest.approx((image - mean) * 1.1 + mean + 0.1, abs=1e-5)
    assert [variant_strength(variant) for variant in range(5)] == pytest.approx([0, 0.1, -0.1, 0.2, -0.2])


def row(start: int, stop: int, y: int = 2) -> Mask:
    """Voxels start…stop-1 of one row."""
    mask = np.zeros((5, 6, 12), bool)
    mask[2, y, start:stop] = True
    return mask


EMPTY = row(0, 0)


def test_the_largest_component_is_kept() -> None:
    assert np.array_equal(keep_largest_component(row(0, 3) | row(5, 10)), row(5, 10))
    assert np.array_equal(keep_largest_component(row(5, 10)), row(5, 10))


def test_of_two_equal_components_the_first_is_kept_and_of_none_none() -> None:
    assert np.array_equal(keep_largest_component(row(0, 3) | row(5, 8)), row(0, 3))
    assert not keep_largest_component(EMPTY).any()


def test_components_that_touch_at_an_edge_are_two() -> None:
    assert np.array_equal(keep_largest_component(row(0, 3, y=2) | row(3, 5, y=3)), row(0, 3))


def test_nothing_stays_nothing_when_it_is_cleaned() -> None:
    liver, tumour = clean(EMPTY, EMPTY, voxel_ml=1.0, min_lesion_ml=0.1)
    assert not liver.any()
    assert not tumour.any()


def test_the_liver_holds_its_tumours_and_has_no_holes() -> None:
    box = np.zeros((5, 6, 12), bool)
    box[1:4, 1:4, 1:6] = True
    hollow = box.copy()
    hollow[2, 2, 3] = False
    liver, tumour = clean(hollow, row(5, 7), voxel_ml=1.0, min_lesion_ml=0.0)
    assert np.array_equal(liver, box | row(5, 7))
    assert np.array_equal(tumour, row(5, 7))


def test_a_tumour_away_from_the_liver_goes_with_the_component_that_it_belongs_to() -> None:
    liver, tumour = clean(row(0, 6), row(2, 3) | row(8, 10), voxel_ml=1.0, min_lesion_ml=0.0)
    assert np.array_equal(liver, row(0, 6))
    assert np.array_equal(tumour, row(2, 3))


def test_lesions_below_the_least_volume_are_dropped_and_stay_liver() -> None:
    liver, tumour = clean(row(0, 12), row(1, 2) | row(4, 6) | row(8, 11), voxel_ml=0.5, min_lesion_ml=1.0)
    assert np.array_equal(tumour, row(4, 6) | row(8, 11))
    assert np.array_equal(liver, row(0, 12))


def spec_of(network: NetworkParams) -> ModelSpec:
    return ModelSpec(
        network=network, plan=PLAN, patch_zyx=(8, 16, 16), modalities=(Modality.CT,), origin={"cohort": "c0"}
    )


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SLP"])
def test_a_scan_is_segmented_on_its_own_grid_whatever_its_orientation(orientation: str) -> None:
    hu = np.full((6, 12, 14), -100, np.int16)
    hu[1:5, 2:9, 3:12] = 100
    hu[2:4, 4:6, 5:8] = 250
    expected = (hu >= 100).astype(np.uint8) + (hu >= 250)
    scan, truth = sitk.GetImageFromArray(hu), sitk.GetImageFromArray(expected)
    for image in (scan, truth):
        image.SetSpacing((1.0, 1.0, 2.0))
    model = Model(Brightness(), spec_of(NetworkParams(name="none", config={})), CPU)
    found = segment(model, sitk.DICOMOrient(scan, orientation), Modality.CT, 0.5, 0.0)
    assert np.array_equal(found.labels, sitk.GetArrayFromImage(sitk.DICOMOrient(truth, orientation)))
    assert found.liver_ml == pytest.approx(4 * 7 * 9 * 2 / 1000)
    assert found.tumour_ml == pytest.approx(2 * 2 * 3 * 2 / 1000)


def test_a_model_is_read_back_as_it_was_written(tmp_path: Path, tiny: Params) -> None:
    network = build_network(tiny.network.name, tiny.network.config, tiny.train_universal.training.patch_zyx)
    save_model(tmp_path, network.state_dict(), spec_of(tiny.network))
    model = load_model(tmp_path, CPU)
    assert model.spec == spec_of(tiny.network)
    assert not model.network.training
    image = torch.from_numpy(random_image(1, 1, 16, 32, 32))
    with torch.no_grad():
        assert torch.allclose(model.network(image), network.eval()(image), atol=1e-5)


@pytest.mark.parametrize("missing", [SPEC, WEIGHTS])
def test_a_folder_that_lacks_a_part_holds_no_model(tmp_path: Path, tiny: Params, missing: str) -> None:
    network = build_network(tiny.network.name, tiny.network.config, tiny.train_universal.training.patch_zyx)
    save_model(tmp_path, network.state_dict(), spec_of(tiny.network))
    (tmp_path / missing).unlink()
    with pytest.raises(ArtifactError, match="holds no model"):
        load_model(tmp_path, CPU)


@pytest.mark.parametrize("damaged", [SPEC, WEIGHTS])
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_model_whose_file_was_cut_off_is_damaged(tmp_path: Path, tiny: Params, damaged: str, kept: float) -> None:
    network = build_network(tiny.network.name, tiny.network.config, tiny.train_universal.training.patch_zyx)
    save_model(tmp_path, network.state_dict(), spec_of(tiny.network))
    whole = (tmp_path / damaged).read_bytes()
    (tmp_path / damaged).write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ArtifactError, match="holds a damaged model"):
        load_model(tmp_path, CPU)


def test_the_weights_of_another_network_are_a_damaged_model(tmp_path: Path, tiny: Params) -> None:
    network = build_network(tiny.network.name, tiny.network.config, tiny.train_universal.training.patch_zyx)
    weights = network.state_dict()
    weights.popitem()
    save_model(tmp_path, weights, spec_of(tiny.network))
    with pytest.raises(ArtifactError, match="holds a damaged model"):
        load_model(tmp_path, CPU)


def test_scans_of_one_name_get_the_name_of_their_folder_and_never_share_a_file() -> None:
    paths = [Path("a/image.nii.gz"), Path("b/image.nii.gz"), Path("b/other.nii")]
    assert mask_names(paths) == ["a_image_labels.nii.gz", "b_image_labels.nii.gz", "other_labels.nii.gz"]
    with pytest.raises(DataError, match=r"several scans would be written to a_image_labels\.nii\.gz"):
        mask_names([Path("x/a/image.nii"), Path("y/a/image.nii")])
