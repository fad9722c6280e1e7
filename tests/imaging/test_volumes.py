"""Volumes: orientation, grids and resampling, on voxels that can be followed by hand."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from full_disk import SmallDisk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hepar.errors import DataError
from hepar.imaging.volumes import (
    WRITABLE_SUFFIXES,
    Geometry,
    canonical,
    grid_difference,
    read_image,
    resample,
    resample_mask,
    to_array,
    to_image,
    write_image,
)

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
ORIENTATIONS = ("LPS", "RAS", "LAS", "RPI", "SLP", "PIR", "AIL")
VOXELS = arrays(np.int16, (3, 4, 5), elements=st.integers(-1000, 1000))
FLIPS = st.tuples(st.booleans(), st.booleans(), st.booleans())
QUICK = settings(max_examples=20, deadline=None)


def grid(size: tuple[int, int, int], spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Geometry:
    return Geometry(size, spacing, (0.0, 0.0, 0.0), IDENTITY)


def flipped(array_zyx: npt.NDArray[np.generic], flips_xyz: tuple[bool, bool, bool]) -> sitk.Image:
    """An array as a volume stored with some axes reversed, without moving its voxels in the patient."""
    image = to_image(array_zyx, Geometry(array_zyx.shape, (3.0, 2.0, 1.0), (10.0, -20.0, 30.0), IDENTITY))  # type: ignore[arg-type]
    return sitk.Flip(image, list(flips_xyz), False)


def test_geometry_names_axes_z_y_x_and_positions_x_y_z() -> None:
    image = sitk.Image(5, 4, 3, sitk.sitkInt16)
    image.SetSpacing((0.5, 0.6, 2.0))
    image.SetOrigin((1.0, 2.0, 3.0))
    geometry = Geometry.of(image)
    assert geometry == Geometry((3, 4, 5), (2.0, 0.6, 0.5), (1.0, 2.0, 3.0), IDENTITY)
    assert geometry.voxel_ml == pytest.approx(0.6e-3)  # 0.6 mm³


def test_an_index_has_the_place_that_simpleitk_gives_it_also_in_a_part() -> None:
    turned = Geometry((4, 5, 6), (3.0, 2.0, 1.0), (10.0, 20.0, 30.0), (0.0, -0.8, 0.6, 1.0, 0.0, 0.0, 0.0, 0.6, 0.8))
    image = to_image(np.zeros(turned.size_zyx, np.uint8), turned)
    assert turned.to_lps_mm((3, 1, 2)) == pytest.approx(image.TransformIndexToPhysicalPoint((2, 1, 3)))
    part = turned.cropped((slice(1, 3), slice(2, None), slice(4, 99)))
    assert part == Geometry((2, 3, 2), turned.spacing_zyx_mm, turned.to_lps_mm((1, 2, 4)), turned.direction)


def test_an_array_becomes_a_volume_and_back() -> None:
    array_zyx = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    geometry = Geometry((2, 3, 4), (3.0, 2.0, 1.0), (5.0, 6.0, 7.0), (0, 1, 0, 1, 0, 0, 0, 0, -1))
    image = to_image(array_zyx, geometry)
    assert Geometry.of(image) == geometry
    assert image.GetPixel(3, 2, 1) == array_zyx[1, 2, 3]
    assert to_array(image).tolist() == array_zyx.tolist()
    assert to_array(to_image(array_zyx > 3, geometry)).dtype == np.uint8


def test_canonical_flips_a_volume_back() -> None:
    array_zyx = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    stored = sitk.DICOMOrient(to_image(array_zyx, grid((2, 3, 4))), "RAI")
    assert to_array(stored).tolist() != array_zyx.tolist()
    assert to_array(canonical(stored)).tolist() == array_zyx.tolist()


@QUICK
@given(VOXELS, st.sampled_from(ORIENTATIONS))
def test_canonical_undoes_every_orientation(array_zyx: npt.NDArray[np.int16], orientation: str) -> None:
    image = to_image(array_zyx, Geometry((3, 4, 5), (3.0, 2.0, 1.0), (10.0, -20.0, 30.0), IDENTITY))
    back = canonical(sitk.DICOMOrient(image, orientation))
    assert Geometry.of(back).agrees_with(Geometry.of(image))
    assert to_array(back).tolist() == array_zyx.tolist()


@QUICK
@given(VOXELS, FLIPS)
def test_resampling_undoes_flips(array_zyx: npt.NDArray[np.int16], flips_xyz: tuple[bool, bool, bool]) -> None:
    target = Geometry.of(flipped(array_zyx, (False, False, False)))
    assert np.allclose(to_array(resample(flipped(array_zyx, flips_xyz), target)), array_zyx, atol=1e-2)


@QUICK
@given(arrays(np.bool_, (3, 4, 5)), FLIPS)
def test_a_mask_survives_resampling_to_a_flipped_grid_and_back(
    mask_zyx: npt.NDArray[np.bool_], flips_xyz: tuple[bool, bool, bool]
) -> None:
    original = flipped(mask_zyx, (False, False, False))
    resampled_zyx = resample_mask(original, Geometry.of(flipped(mask_zyx, flips_xyz)))
    stored = to_image(resampled_zyx, Geometry.of(flipped(mask_zyx, flips_xyz)))
    assert (resample_mask(stored, Geometry.of(original)) == mask_zyx).all()


@pytest.mark.parametrize(("volume_ml", "least_dice"), [(0.1, 0.45), (0.3, 0.7), (1.0, 0.8)])
def test_a_small_lesion_survives_a_coarse_grid_and_back(volume_ml: float, least_dice: float) -> None:
    fine = Geometry((48, 60, 60), (1.0, 0.8, 0.8), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    coarse = fine.with_spacing((4.0, 3.0, 3.0))
    positions_mm = [np.arange(n) * mm for n, mm in zip(fine.size_zyx, fine.spacing_zyx_mm, strict=True)]
    radius_mm = (3 * volume_ml * 1000 / (4 * np.pi)) ** (1 / 3)
    rng, dice, kept = np.random.default_rng(3), [], []
    for _ in range(40):
        centre_mm = 24 + rng.uniform(-2, 2, 3)  # anywhere between the centres of the coarse voxels
        offsets_mm = np.ix_(*[axis - at for axis, at in zip(positions_mm, centre_mm, strict=True)])
        lesion_zyx = sum(offset**2 for offset in offsets_mm) <= radius_mm**2
        coarse_zyx = resample_mask(to_image(lesion_zyx, fine), coarse)
        back_zyx = resample_mask(to_image(coarse_zyx, coarse), fine)
        dice.append(2 * (back_zyx & lesion_zyx).sum() / (back_zyx.sum() + lesion_zyx.sum()))
        kept.append(coarse_zyx.sum() * coarse.voxel_ml / volume_ml)
    assert min(kept) > 0
    assert np.mean(kept) == pytest.approx(1, abs=0.1)  # neither shrunk nor swollen
    assert np.mean(dice) > least_dice


def test_an_empty_mask_stays_empty_on_a_coarser_grid() -> None:
    empty = to_image(np.zeros((8, 8, 8), bool), grid((8, 8, 8)))
    assert not resample_mask(empty, Geometry.of(empty).with_spacing((3.0, 2.0, 2.0))).any()


@QUICK
@given(st.floats(0.5, 4.0), st.integers(8, 12))
def test_resampling_keeps_a_constant_volume_constant(spacing: float, size: int) -> None:
    image = to_image(np.full((size, size, size), 7.0, np.float32), grid((size, size, size)))
    resampled_zyx = to_array(resample(image, Geometry.of(image).with_spacing((spacing, 1.0, spacing))))
    assert np.allclose(resampled_zyx, 7.0, atol=1e-4)


def test_a_grid_of_another_spacing_covers_the_same_extent() -> None:
    # 4 voxels of 1 mm reach from -0.5 to 3.5 mm, and so do two of 2 mm, whose centres are at 0.5 and 2.5 mm
    coarse = grid((4, 6, 3)).with_spacing((2.0, 3.0, 1.0))
    assert coarse.size_zyx == (2, 2, 3)
    assert coarse.origin_xyz_mm == (0.0, 1.0, 0.5)


def test_a_grid_of_another_spacing_keeps_its_direction() -> None:
    backwards = Geometry((4, 4, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    assert backwards.with_spacing((2.0, 2.0, 2.0)).origin_xyz_mm == (-0.5, -0.5, 0.5)


def test_a_single_slice_is_never_lost() -> None:
    assert grid((1, 4, 4)).with_spacing((10.0, 1.0, 1.0)).size_zyx == (1, 4, 4)


def test_resampling_interpolates_linearly_and_extends_the_border() -> None:
    image = to_image(np.array([[[0.0, 10.0]]], np.float32), grid((1, 1, 2)))
    fine = Geometry((1, 1, 7), (1.0, 1.0, 0.5), (-1.0, 0.0, 0.0), IDENTITY)
    assert to_array(resample(image, fine)).ravel().tolist() == [0, 0, 0, 5, 10, 10, 10]


def test_resampling_to_the_same_grid_keeps_the_voxels() -> None:
    array_zyx = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = to_image(array_zyx, grid((3, 4, 5)))
    resampled_zyx = to_array(resample(image, Geometry.of(image)))
    assert resampled_zyx.dtype == np.float32
    assert resampled_zyx.tolist() == array_zyx.tolist()


def test_downsampling_does_not_alias() -> None:
    z, y, x = np.indices((16, 16, 16))
    image = to_image(((z + y + x) % 2).astype(np.float32), grid((16, 16, 16)))
    coarse = Geometry((4, 4, 4), (4.0, 4.0, 4.0), (2.0, 2.0, 2.0), IDENTITY)  # each centre is a voxel of value 0
    inner_zyx = to_array(resample(image, coarse))[1:-1, 1:-1, 1:-1]
    assert np.allclose(inner_zyx, 0.5, atol=0.1)


def test_grids_agree_up_to_rounding_in_headers() -> None:
    own = grid((3, 4, 5))
    assert own.agrees_with(Geometry((3, 4, 5), (1.0, 1.0, 1.0001), (0.0, 0.005, 0.0), IDENTITY))
    assert not own.agrees_with(Geometry((3, 4, 5), (1.0, 1.0, 1.0), (0.0, 0.5, 0.0), IDENTITY))
    assert not own.agrees_with(Geometry((3, 4, 5), (1.0, 1.0, 1.1), (0.0, 0.0, 0.0), IDENTITY))
    assert not own.agrees_with(Geometry((3, 4, 6), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY))
    assert not own.agrees_with(Geometry((3, 4, 5), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1)))


@pytest.mark.parametrize(
    ("direction", "own", "others"),
    [
        ((-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0), " in orientation RAS", " in orientation LPS"),
        (
            (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0),
            " with direction cosines (0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1)",
            " with direction cosines (1, 0, 0, 0, 1, 0, 0, 0, 1)",
        ),
        (IDENTITY, "", ""),
    ],
)
def test_grids_that_differ_in_their_axes_are_told_apart(direction: tuple[float, ...], own: str, others: str) -> None:
    mask, image = Geometry((3, 4, 5), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), direction), grid((3, 4, 5))
    assert grid_difference(mask, image) == (
        f"the mask has 5×4×3 voxels, spacing 2 1 1 mm zyx and origin 0 0 0 mm xyz{own}, but the image has 5×4×3 voxels,"
        f" spacing 1 1 1 mm zyx and origin 0 0 0 mm xyz{others}"
    )


def test_a_written_volume_reads_back(tmp_path: Path) -> None:
    image = flipped(np.arange(60, dtype=np.int16).reshape(3, 4, 5), (True, False, True))
    write_image(image, tmp_path / "deep" / "image.nii.gz")
    back = read_image(tmp_path / "deep" / "image.nii.gz")
    assert Geometry.of(back).agrees_with(Geometry.of(image))
    assert to_array(back).tolist() == to_array(image).tolist()


def test_a_file_that_is_not_one_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_image(tmp_path / "none.nii.gz")
    (tmp_path / "text.nii.gz").write_text("no volume")
    with pytest.raises(DataError, match=r"text\.nii\.gz cannot be read: "):
        read_image(tmp_path / "text.nii.gz")
    write_image(sitk.Image([5, 4, 3, 2], sitk.sitkInt16), tmp_path / "series.nii.gz")
    with pytest.raises(DataError, match="has size 5×4×3×2 but must be a single 3-D volume"):
        read_image(tmp_path / "series.nii.gz")


def test_a_four_dimensional_file_of_one_volume_is_read(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Image([5, 4, 3, 1], sitk.sitkInt16), str(tmp_path / "one.nii.gz"))
    assert read_image(tmp_path / "one.nii.gz").GetSize() == (5, 4, 3)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("lost", [1, 500])
def test_a_truncated_volume_is_refused(name: str, lost: int, tmp_path: Path) -> None:
    noise_zyx = np.random.default_rng(1).integers(-1000, 1000, (12, 20, 30)).astype(np.int16)
    write_image(
        to_image(
            noise_zyx,
            Geometry((12, 20, 30), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)),
        ),
        tmp_path / name,
    )
    assert np.array_equal(to_array(read_image(tmp_path / name)), noise_zyx)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) - lost])
    with pytest.raises(DataError, match=r"is truncated: it ends after \d+ of \d+ bytes|cannot be read"):
        read_image(tmp_path / name)


def test_a_gzip_file_of_several_members_is_read(tmp_path: Path) -> None:
    write_image(
        to_image(
            np.ones((4, 5, 6), np.int16),
            Geometry((4, 5, 6), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)),
        ),
        tmp_path / "a.nii",
    )
    plain = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(plain[:400]) + gzip.compress(plain[400:]))
    assert to_array(read_image(tmp_path / "a.nii.gz")).all()


@pytest.mark.parametrize("suffix", WRITABLE_SUFFIXES)
@pytest.mark.parametrize("voxels", [np.uint8, np.int16, np.float32])
def test_a_volume_on_a_full_disk_is_refused_with_path_and_reason(
    suffix: str, voxels: type[np.generic], disk: SmallDisk
) -> None:
    noise_zyx = np.random.default_rng(1).integers(0, 250, (40, 50, 60)).astype(voxels)
    volume, path, failed = to_image(noise_zyx, grid((40, 50, 60))), disk.folder / f"scan{suffix}", 0
    for kib in (0, 4, 30, 60, 90):
        if error := disk.outcome(kib, lambda: write_image(volume, path)):
            failed += 1
            assert error.startswith(f"{path} cannot be written: ")
            assert disk.left_behind() == []
    assert failed > 2


def test_a_volume_that_the_writer_cut_short_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(image: sitk.Image, path: str, **options: object) -> None:
        write(image, path, **options)
        os.truncate(path, Path(path).stat().st_size // 2)

    write = sitk.WriteImage
    monkeypatch.setattr(sitk, "WriteImage", write_half)
    noise_zyx = np.random.default_rng(1).integers(0, 250, (12, 20, 30))
    for voxels in (np.uint8, np.int16):
        with pytest.raises(DataError, match=r"scan\.nii\.gz cannot be written: "):
            write_image(to_image(noise_zyx.astype(voxels), grid((12, 20, 30))), tmp_path / "scan.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_a_mask_whose_voxels_were_written_wrong_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = sitk.WriteImage
    monkeypatch.setattr(sitk, "WriteImage", lambda image, path, **options: write(image * 0, path, **options))
    mask_zyx = np.zeros((4, 5, 6), np.uint8)
    mask_zyx[1, 2, 3] = 1
    with pytest.raises(DataError, match=r"mask\.nii\.gz cannot be written: what was written has other voxels$"):
        write_image(to_image(mask_zyx, grid((4, 5, 6))), tmp_path / "mask.nii.gz")
    assert list(tmp_path.iterdir()) == []
