"""What painted lesions and organs share."""

from __future__ import annotations

import numpy as np

from hepar.imaging.painting import random_field


def test_a_random_field_passes_through_its_nodes_and_keeps_the_order_of_axes() -> None:
    nodes_zyx = np.random.default_rng(3).standard_normal((4, 4, 4))
    assert np.allclose(random_field(np.random.default_rng(3), 4, (4, 4, 4)), nodes_zyx, atol=1e-6)
    wide_zyx = random_field(np.random.default_rng(3), 4, (4, 12, 20))
    assert wide_zyx.shape == (4, 12, 20)
    assert np.allclose(wide_zyx[:, 1::3, 2::5], nodes_zyx, atol=1e-6)


def test_a_random_field_is_smooth_and_stays_between_its_nodes() -> None:
    field_zyx = random_field(np.random.default_rng(0), 3, (60, 60, 60))
    nodes_zyx = np.random.default_rng(0).standard_normal((3, 3, 3))
    assert field_zyx.dtype == np.float32
    assert field_zyx.min() >= nodes_zyx.min() - 1e-6
    assert field_zyx.max() <= nodes_zyx.max() + 1e-6
    largest_step = 1.5 * np.ptp(nodes_zyx) / 20  # of a cubic step over 20 voxels
    assert all(np.abs(np.diff(field_zyx, axis=axis)).max() <= largest_step for axis in range(3))
