"""Measured lesions: volume, confidence and centre, by geometry."""

from __future__ import annotations

import numpy as np
import pytest

from hepar.imaging.volumes import Geometry
from hepar.inference.lesions import measure_lesions

TURNED = Geometry(  # 90 degrees about z: the columns run to the back, the rows to the patient's right
    size_zyx=(4, 5, 6),
    spacing_zyx_mm=(3.0, 2.0, 1.0),
    origin_xyz_mm=(10.0, 20.0, 30.0),
    direction=(0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0),
)


def test_each_component_has_its_volume_highest_probability_and_centre() -> None:
    probability_zyx = np.full(TURNED.size_zyx, 0.1, np.float32)
    probability_zyx[1, 2, 3:5] = 0.6, 0.9
    probability_zyx[3, 0, 0] = 0.7
    first, second = measure_lesions(probability_zyx > 0.5, probability_zyx, TURNED)
    assert (first.volume_ml, second.volume_ml) == pytest.approx((0.012, 0.006))
    assert (first.confidence, second.confidence) == pytest.approx((0.9, 0.7))
    assert first.centre_index_zyx == (1, 2, 3.5)
    assert first.centre_lps_mm == pytest.approx((10 - 2 * 2, 20 + 3.5, 30 + 3))
    assert second.centre_lps_mm == pytest.approx((10, 20, 39))


def test_voxels_that_share_only_an_edge_are_two_lesions() -> None:
    tumour_zyx = np.zeros(TURNED.size_zyx, bool)
    tumour_zyx[0, 0, 0] = tumour_zyx[0, 1, 1] = True
    assert len(measure_lesions(tumour_zyx, tumour_zyx.astype(np.float32), TURNED)) == 2


def test_an_empty_mask_has_no_lesions() -> None:
    empty_zyx = np.zeros(TURNED.size_zyx, bool)
    assert measure_lesions(empty_zyx, empty_zyx.astype(np.float32), TURNED) == ()


def test_a_lesion_is_shown_with_rounded_numbers() -> None:
    tumour_zyx = np.zeros(TURNED.size_zyx, bool)
    tumour_zyx[0, 0, 0:3] = True
    (lesion,) = measure_lesions(tumour_zyx, np.full(TURNED.size_zyx, 2 / 3, np.float32), TURNED)
    shown = {"volume_ml": 0.018, "confidence": 0.667, "centre_index_zyx": [0, 0, 1], "centre_lps_mm": [10, 21, 30]}
    assert lesion.rounded() == shown
