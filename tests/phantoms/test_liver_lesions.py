"""Focal liver lesions: cysts are sharp and homogeneous, focal fat is angular at the capsule, tumours are mottled."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from hepar.imaging.masks import Mask
from hepar.phantoms import liver_lesions, make_phantom
from hepar.phantoms.anatomy import Anatomy, Tissue
from hepar.phantoms.liver_lesions import Parenchyma, draw_look_alikes, draw_tumours
from hepar.phantoms.shapes import Space

SIDE, SPACING_MM = 64, 2.5
LIVER_MM = 70.0  # radius of a spherical liver
INTENSITIES = {Tissue.LIVER: 100.0, Tissue.CYST: 5.0, Tissue.FOCAL_FAT: 75.0}
LOOK_ALIKES = (Tissue.CYST, Tissue.FOCAL_FAT)


def ball_of_liver(vein_mm: float = 0) -> tuple[Anatomy, Parenchyma]:
    """A spherical liver of 100 on a background of 0, with flat veins of 200 every 30 mm, this thick."""
    axis_mm = ((np.arange(SIDE) - (SIDE - 1) / 2) * SPACING_MM).astype(np.float32)
    z, y, x = np.meshgrid(axis_mm, axis_mm, axis_mm, indexing="ij")
    liver_zyx = x**2 + y**2 + z**2 < LIVER_MM**2
    vein_zyx = liver_zyx & (np.abs(z - 30 * np.round(z / 30)) < vein_mm / 2)
    anatomy = Anatomy(
        space=Space(x, y, z, SPACING_MM),
        intensity_of=INTENSITIES.__getitem__,
        intensity_zyx=np.select([vein_zyx, liver_zyx], [200.0, 100.0]).astype(np.float32),
        tissue_zyx=np.select([vein_zyx, liver_zyx], [Tissue.VESSEL, Tissue.LIVER]).astype(np.uint8),
    )
    anatomy.liver_zyx, anatomy.tumour_zyx = liver_zyx, np.zeros_like(liver_zyx)
    return anatomy, Parenchyma.of(liver_zyx, (SPACING_MM,) * 3)


def drawn(seed: int, monkeypatch: pytest.MonkeyPatch, cysts: float, focal_fat: float) -> Anatomy:
    """The liver above with look-alikes of these probabilities."""
    monkeypatch.setattr(liver_lesions, "CYST_SHARE", cysts)
    monkeypatch.setattr(liver_lesions, "FOCAL_FAT_SHARE", focal_fat)
    anatomy, parenchyma = ball_of_liver()
    draw_look_alikes(anatomy, np.random.default_rng(seed), parenchyma)
    return anatomy


def extents_mm(mask_zyx: Mask) -> list[float]:
    return [float(np.ptp(index) + 1) * SPACING_MM for index in np.nonzero(mask_zyx)]


def ball_share(mask_zyx: Mask) -> float:
    """Volume relative to the ball whose diameter is the longest extent: 1 for a ball."""
    return float(mask_zyx.sum()) * SPACING_MM**3 / (np.pi / 6 * max(extents_mm(mask_zyx)) ** 3)


def test_depth_is_the_distance_to_the_nearest_voxel_outside_the_liver() -> None:
    slab_zyx = np.zeros((9, 6, 6), bool)
    slab_zyx[2:7] = True  # reaches the border of the scan along y and x, which is no capsule
    depth_zyx_mm = Parenchyma.of(slab_zyx, (3.0, 1.0, 1.0)).depth_zyx_mm
    assert depth_zyx_mm[:, 0, 5].tolist() == [0, 0, 3, 6, 9, 6, 3, 0, 0]
    assert not Parenchyma.of(np.zeros((4, 4, 4), bool), (1.0, 1.0, 1.0)).depth_zyx_mm.any()


def test_a_box_around_a_voxel_ends_at_the_border_of_the_scan() -> None:
    parenchyma = Parenchyma.of(np.ones((5, 8, 8), bool), (4.0, 1.0, 2.0))
    box, (dz, dy, dx) = parenchyma.around((0, 4, 7), 4.5)
    assert box == (slice(0, 2), slice(0, 8), slice(5, 8))
    assert (dz[:, 0, 0].tolist(), dx[0, 0].tolist()) == ([0, 4], [-4, -2, 0])
    assert dy[0, :, 0].tolist() == [-4, -3, -2, -1, 0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(6))
def test_a_cyst_is_a_sharp_homogeneous_ball_without_a_rim(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy = drawn(seed, monkeypatch, cysts=1, focal_fat=0)
    cyst_zyx = anatomy.tissue_zyx == Tissue.CYST
    assert cyst_zyx.any()
    assert not (cyst_zyx & ~anatomy.liver_zyx).any()
    before_zyx = ball_of_liver()[0].intensity_zyx
    beside_zyx = ~ndimage.binary_dilation(cyst_zyx, iterations=2)
    assert np.array_equal(anatomy.intensity_zyx[beside_zyx], before_zyx[beside_zyx])
    assert np.all(anatomy.intensity_zyx[ndimage.binary_erosion(cyst_zyx)] == INTENSITIES[Tissue.CYST])
    assert anatomy.intensity_zyx.max() == before_zyx.max()
    assert not np.isin(anatomy.tissue_zyx, (Tissue.RIM, Tissue.TUMOUR)).any()
    assert not anatomy.tumour_zyx.any()


def test_a_cyst_alone_has_the_volume_of_a_ball(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for seed in range(12):
        cyst_zyx = drawn(seed, monkeypatch, cysts=1, focal_fat=0).tissue_zyx == Tissue.CYST
        labels_zyx, count = ndimage.label(cyst_zyx)
        large = [number for number in range(1, count + 1) if (labels_zyx == number).sum() > 200]
        shares += [ball_share(labels_zyx == number) for number in large]
    assert len(shares) > 5
    assert np.median(shares) == pytest.approx(0.9, abs=0.1)  # voxels, and radii that differ by up to 8 %


@pytest.mark.parametrize("seed", range(6))
def test_focal_fat_is_angular_and_touches_the_capsule(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy = drawn(seed, monkeypatch, cysts=0, focal_fat=1)
    fat_zyx = anatomy.tissue_zyx == Tissue.FOCAL_FAT
    assert fat_zyx.any()
    assert not (fat_zyx & ~anatomy.liver_zyx).any()
    assert (ndimage.binary_dilation(fat_zyx) & ~anatomy.liver_zyx).any()
    assert ball_share(fat_zyx) < 0.4  # half a ball at the capsule would have 0.5
    assert np.all(anatomy.intensity_zyx[ndimage.binary_erosion(fat_zyx)] == INTENSITIES[Tissue.FOCAL_FAT])
    assert not anatomy.tumour_zyx.any()


@pytest.mark.parametrize("seed", range(6))
def test_veins_cross_focal_fat_unchanged(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liver_lesions, "CYST_SHARE", 0)
    monkeypatch.setattr(liver_lesions, "FOCAL_FAT_SHARE", 1)
    anatomy, parenchyma = ball_of_liver(vein_mm=8)
    before, _ = ball_of_liver(vein_mm=8)
    draw_look_alikes(anatomy, np.random.default_rng(seed), parenchyma)
    vein_zyx = before.tissue_zyx == Tissue.VESSEL
    assert (anatomy.tissue_zyx == Tissue.FOCAL_FAT).any()
    assert np.array_equal(anatomy.tissue_zyx[vein_zyx], before.tissue_zyx[vein_zyx])
    assert np.array_equal(anatomy.intensity_zyx[vein_zyx], before.intensity_zyx[vein_zyx])


def test_look_alikes_have_their_share_of_patients() -> None:
    anatomy, parenchyma = ball_of_liver()
    before_zyx = anatomy.tissue_zyx.copy()
    patients = 300
    seen = dict.fromkeys(LOOK_ALIKES, 0)
    for seed in range(patients):
        anatomy.tissue_zyx = before_zyx.copy()
        draw_look_alikes(anatomy, np.random.default_rng(seed), parenchyma)
        for tissue in LOOK_ALIKES:
            seen[tissue] += bool((anatomy.tissue_zyx == tissue).any())
    assert seen[Tissue.CYST] / patients == pytest.approx(0.25, abs=0.08)  # three standard errors
    assert seen[Tissue.FOCAL_FAT] / patients == pytest.approx(0.2, abs=0.08)


def test_a_liver_that_is_too_thin_has_no_cyst(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liver_lesions, "CYST_SHARE", 1)
    anatomy, _ = ball_of_liver()
    thin_zyx = anatomy.liver_zyx & (np.arange(SIDE) == 30)
    draw_look_alikes(anatomy, np.random.default_rng(1), Parenchyma.of(thin_zyx, (SPACING_MM,) * 3))
    assert not (anatomy.tissue_zyx == Tissue.CYST).any()


def test_the_core_of_a_tumour_is_mottled_around_its_intensity() -> None:
    anatomy, parenchyma = ball_of_liver()
    draw_tumours(anatomy, np.random.default_rng(2), 1, parenchyma, lambda rng: (40.0, None))
    core_n = anatomy.intensity_zyx[ndimage.binary_erosion(anatomy.tumour_zyx, iterations=2)]
    assert core_n.size > 50
    assert core_n.mean() == pytest.approx(40, abs=6)
    assert 2 < core_n.std() < 15  # 0.15 of the contrast of 60 at the nodes, less between them


@pytest.mark.parametrize(("modality", "sequence"), [("CT", "portal-venous"), ("MR", "T2")])
def test_look_alikes_lie_in_the_liver_and_are_no_tumour(modality: str, sequence: str) -> None:
    found = dict.fromkeys(LOOK_ALIKES, 0)
    for seed in range(20):
        phantom = make_phantom(seed, modality, sequence, (30, 44, 44), (8.7, 7.9, 7.9), 0 if seed % 2 else None)
        for tissue in LOOK_ALIKES:
            mask_zyx = phantom.tissue_zyx == tissue
            found[tissue] += bool(mask_zyx.any())
            assert not (mask_zyx & ~phantom.liver_zyx).any()
            assert not (mask_zyx & phantom.tumour_zyx).any()
    assert min(found.values()) >= 1
