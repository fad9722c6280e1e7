"""Shapes of synthetic lesions: size, reach, margin and satellites."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull

from hepar.training.canvas import Box
from hepar.training.lesion_shapes import DIAMETER_MM, LesionShape, draw_shape, lesion_depth_mm

PLAIN = LesionShape(radius_mm=12.0, roughness=0.0, margin_mm=1.0, lobes=0, satellites=0)


def box(reach_mm: float) -> Box:
    """A box of voxels of 1 mm around a point."""
    n = int(np.ceil(reach_mm))
    z, y, x = np.meshgrid(*[np.arange(-n, n + 1, dtype=np.float32)] * 3, indexing="ij", sparse=True)
    return Box((slice(0, 2 * n + 1),) * 3, (z, y, x))


def test_without_lobes_and_roughness_it_is_an_ellipsoid() -> None:
    """Each semi-axis lies within a quarter of the radius, and so the second moments within those of such balls."""
    for seed in range(10):
        inside_zyx = lesion_depth_mm(PLAIN, box(20), np.random.default_rng(seed)) > 0
        semi_axes_mm = np.sqrt(5 * np.linalg.eigvalsh(np.cov(np.argwhere(inside_zyx).T)))
        assert semi_axes_mm.min() > 12 * 0.72
        assert semi_axes_mm.max() < 12 * 1.28
        assert np.isclose(inside_zyx.sum(), 4 / 3 * np.pi * np.prod(semi_axes_mm), rtol=0.03)


def test_no_surface_lies_beyond_the_reach() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        shape = draw_shape(rng, 1.0, 30.0, 0.5)
        depth_zyx_mm = lesion_depth_mm(shape, box(shape.reach_mm), rng)
        border = np.ones(depth_zyx_mm.shape, bool)
        border[1:-1, 1:-1, 1:-1] = False
        assert (depth_zyx_mm > -shape.margin_mm / 2)[border].mean() < 0.005
        assert (depth_zyx_mm > 0).any()


def test_satellites_lie_apart() -> None:
    shape = LesionShape(radius_mm=12.0, roughness=0.0, margin_mm=1.0, lobes=0, satellites=3)
    counts = [
        ndimage.label(lesion_depth_mm(shape, box(shape.reach_mm), np.random.default_rng(seed)) > 0)[1]
        for seed in range(10)
    ]
    assert max(counts) == 4
    assert min(counts) >= 2


def test_rough_and_lobed_lesions_have_hollows() -> None:
    def solidity(shape: LesionShape) -> float:
        """Volume as a share of that of the convex hull, the mean of some lesions."""
        shares = []
        for seed in range(8):
            inside_n3 = np.argwhere(lesion_depth_mm(shape, box(26), np.random.default_rng(seed)) > 0)
            corners_n3 = (inside_n3[:, None] + np.indices((2, 2, 2)).reshape(3, -1).T).reshape(-1, 3)
            shares.append(len(inside_n3) / ConvexHull(corners_n3).volume)
        return float(np.mean(shares))

    plain = solidity(PLAIN)
    assert plain > 0.85  # of an ellipsoid it is 1, but for the steps of the voxels
    assert solidity(replace(PLAIN, roughness=0.2)) < plain - 0.05
    assert solidity(replace(PLAIN, lobes=4)) < plain - 0.02


def test_drawn_lesions_keep_to_their_bounds() -> None:
    rng = np.random.default_rng(0)
    shapes = [draw_shape(rng, 3.0, 20.0, 0.5) for _ in range(400)]
    assert min(shape.radius_mm for shape in shapes) >= DIAMETER_MM[0] / 2
    assert max(shape.radius_mm for shape in shapes) == 10.0
    assert all(min(3.0, shape.radius_mm) <= shape.margin_mm <= shape.radius_mm for shape in shapes)
    assert all(shape.radius_mm > 6 for shape in shapes if shape.satellites)
    assert 0 < np.mean([shape.satellites > 0 for shape in shapes]) < 0.3
    assert np.mean([shape.radius_mm < np.sqrt(6 * 20) / 2 for shape in shapes]) > 0.25  # small ones are frequent
