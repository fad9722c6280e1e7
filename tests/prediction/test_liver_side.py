"""The side of the Cantlie plane: livers whose planes can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hepar.imaging.volumes import Geometry
from hepar.prediction.liver_side import LiverHalves, Side, UprightPlane

STRAIGHT, MIRRORED = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


def halves(direction: tuple[float, ...] = STRAIGHT, columns: int = 200) -> LiverHalves | None:
    """Of a liver 1 mm wide a column and 2 mm high; its first voxel lies at the origin."""
    grid = Geometry((2, 4, columns), (2.0, 0.001, 1.0), (0.0, 0.0, 0.0), direction)
    return LiverHalves.of(np.ones(grid.size_zyx, bool), grid)


def test_sixty_five_percent_lie_right_of_the_usual_plane_at_its_usual_turn() -> None:
    found = halves()
    assert found is not None
    assert found.distance_mm((0.65 * 199, 0.0, 1.0)) == pytest.approx(0.0, abs=0.1)
    assert found.distance_mm((0.65 * 199 - 10, 0.0, 1.0)) == pytest.approx(-10 * np.cos(np.deg2rad(20)), abs=0.1)
    # 100 mm to the front, the plane lies 36.4 mm farther right
    assert found.distance_mm((0.65 * 199 - 100 * np.tan(np.deg2rad(20)), -100.0, 50.0)) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize(
    ("share", "side"), [(0.50, Side.RIGHT), (0.52, Side.UNCLEAR), (0.78, Side.UNCLEAR), (0.80, Side.LEFT)]
)
def test_a_side_is_given_only_where_all_plausible_planes_agree(share: float, side: Side) -> None:
    found = halves()
    assert found is not None
    assert found.side((share * 199, 0.0, 0.0)) == side


def test_sides_are_those_of_the_patient_in_a_mirrored_grid() -> None:
    found = halves(MIRRORED)
    assert found is not None
    assert (found.side((-180.0, 0.0, 0.0)), found.side((-20.0, 0.0, 0.0))) == (Side.RIGHT, Side.LEFT)


def test_an_empty_liver_has_no_halves() -> None:
    grid = Geometry((2, 4, 4), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), STRAIGHT)
    assert LiverHalves.of(np.zeros(grid.size_zyx, bool), grid) is None


def test_a_plane_measures_distances_to_the_left() -> None:
    assert UprightPlane(np.array([1.0, 0.0, 0.0]), 5.0).distance_mm((8.0, 1.0, 2.0)) == 3.0
