"""What of a scan gets into a page: its place, its intensities, and no more voxels than allowed."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from full_disk import SmallDisk

from hepar.cases import Modality
from hepar.errors import DiskFull
from hepar.imaging.volumes import Geometry, to_array, to_image
from hepar.viewer.reduced_scan import ReducedScan, reduce_scan

GRID = Geometry((20, 60, 80), (5.0, 1.0, 1.0), (-30.0, 12.5, 200.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
BOX = (slice(8, 12), slice(25, 35), slice(40, 52))


def scan(values_zyx: np.ndarray, modality: Modality = Modality.CT, max_voxels: int = 10**6) -> ReducedScan:
    """A box of liver, in which one of 2×2×2 voxels is tumour."""
    liver_zyx, tumour_zyx = np.zeros(GRID.size_zyx, bool), np.zeros(GRID.size_zyx, bool)
    liver_zyx[BOX], tumour_zyx[9:11, 30:32, 45:47] = True, True
    masks = {"liver": liver_zyx, "tumour": tumour_zyx}
    return reduce_scan(to_image(values_zyx, GRID), modality, masks, max_voxels)


def opened(content: bytes, folder: Path) -> sitk.Image:
    (folder / "volume.nii").write_bytes(gzip.decompress(content))
    return sitk.ReadImage(str(folder / "volume.nii"))


def test_it_lies_where_the_scan_does_with_its_hounsfield_units(tmp_path: Path) -> None:
    values_zyx = np.random.default_rng(3).integers(-300, 500, GRID.size_zyx).astype(np.int16)
    reduced = scan(values_zyx)
    image, tumour = opened(reduced.image, tmp_path), opened(reduced.masks["tumour"], tmp_path)
    assert image.GetSpacing() == GRID.spacing_zyx_mm[::-1]
    assert image.GetSize() < GRID.size_zyx[::-1]  # cropped
    place = GRID.to_lps_mm((9, 30, 45))
    for z, y, x in np.ndindex(2, 2, 2):
        index = image.TransformPhysicalPointToIndex(tuple(np.add(place, (x, y, 5 * z))))
        assert image[index] == pytest.approx(np.clip(values_zyx[9 + z, 30 + y, 45 + x], -200, 310), abs=1.01)
        assert tumour[index] == 1
    assert to_array(tumour).sum() == 8
    first, last = image.TransformIndexToPhysicalPoint((0, 0, 0)), GRID.to_lps_mm((8, 25, 40))
    assert all(near <= far - 20 for near, far in zip(first, last, strict=True))  # 20 mm around the liver
    assert reduced.reduced == (
        "Reduced for this page: cropped to 20 mm around the masks; −200 to 310 HU in steps of 2 HU."
    )


def test_fine_axes_are_coarsened_until_it_fits_and_thick_slices_stay(tmp_path: Path) -> None:
    whole, part = scan(np.zeros(GRID.size_zyx, np.int16)), scan(np.zeros(GRID.size_zyx, np.int16), max_voxels=5000)
    image, full = opened(part.image, tmp_path), opened(whole.image, tmp_path)
    assert 4000 < image.GetNumberOfPixels() <= 5000
    dx, dy, dz = image.GetSpacing()
    assert dx == dy > 1
    assert dz == 5
    extents = [np.array(one.GetSize()) * one.GetSpacing() for one in (image, full)]
    assert extents[0] == pytest.approx(extents[1], abs=dx)
    liver = opened(part.masks["liver"], tmp_path)
    z, y, x = np.argwhere(to_array(liver)).mean(axis=0)
    centre_lps_mm = liver.TransformContinuousIndexToPhysicalPoint((x, y, z))
    assert centre_lps_mm == pytest.approx(GRID.to_lps_mm((9.5, 29.5, 45.5)), abs=dx / 2)
    assert f"voxels of {dx:.3g} × {dx:.3g} × 5 mm instead of 1 × 1 × 5 mm" in part.reduced


def test_an_mr_keeps_its_range_and_without_masks_all_of_the_scan_is_shown(tmp_path: Path) -> None:
    values_zyx = np.linspace(10, 4090, np.prod(GRID.size_zyx), dtype=np.float32).reshape(GRID.size_zyx)
    empty = {"liver": np.zeros(GRID.size_zyx, bool)}
    reduced = reduce_scan(to_image(values_zyx, GRID), Modality.MR, empty)
    image = opened(reduced.image, tmp_path)
    assert image.GetSize() == GRID.size_zyx[::-1]
    assert to_array(image) == pytest.approx(values_zyx, abs=9)  # half of a 256th, and the brightest thousandth
    assert "cropped" not in reduced.reduced
    constant = reduce_scan(to_image(np.full(GRID.size_zyx, 7.0, np.float32), GRID), Modality.MR, empty)
    assert (to_array(opened(constant.image, tmp_path)) == 7).all()


def test_a_full_disk_ends_it_instead_of_leaving_voxels_out(tmp_path: Path) -> None:
    noise_zyx = np.random.default_rng(1).integers(-300, 500, GRID.size_zyx).astype(np.int16)
    with SmallDisk(tmp_path, mounted=False).room(4), pytest.raises(DiskFull):
        scan(noise_zyx)
