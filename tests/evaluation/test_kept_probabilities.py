"""Probabilities that a report keeps: their values, and where they lie in the patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hepar.cases import LIVER, STRUCTURES, TUMOUR
from hepar.evaluation.kept_probabilities import MARGIN_MM, keep_probabilities, write_probabilities
from hepar.evaluation.label_pairs import CaseIdentity, LabelPair, SegmentedCase, TumourProbability
from hepar.evaluation.report_folder import Report
from hepar.imaging.volumes import Geometry, read_image, to_array
from hepar.inference.prediction import Segmentation

GRID = Geometry((20, 60, 60), (5.0, 1.0, 1.0), (-30.0, 40.0, 7.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


def predicted(taught: tuple[str, ...]) -> tuple[SegmentedCase, Segmentation]:
    """A liver in the middle of the scan, which the reference has a little lower; probabilities are those of a ramp."""
    liver_zyx, reference_zyx, tumour_zyx = (np.zeros(GRID.size_zyx, bool) for _ in range(3))
    liver_zyx[8:12, 20:40, 20:40] = reference_zyx[6:9, 20:40, 20:40] = tumour_zyx[9, 30, 30] = True
    ramp_rzyx = np.linspace(0, 1, 2 * liver_zyx.size, dtype=np.float32).reshape(2, *GRID.size_zyx)
    case = SegmentedCase(
        CaseIdentity("a", "p", "CT", "", "s"),
        LabelPair(reference_zyx, liver_zyx),
        LabelPair(None, tumour_zyx),
        GRID.spacing_zyx_mm,
        True,
        TumourProbability(ramp_rzyx[TUMOUR], STRUCTURES[LIVER] in taught, 1),
    )
    return case, Segmentation(liver_zyx, tumour_zyx, ramp_rzyx, GRID, taught, 0.0)


def test_the_box_of_both_livers_is_kept_with_a_margin_in_its_place(tmp_path: Path) -> None:
    case, segmentation = predicted(STRUCTURES)
    write_probabilities(keep_probabilities(case, segmentation), Report(tmp_path), "a")
    for structure, name in enumerate(STRUCTURES):
        image = read_image(Report(tmp_path).probability("a", name))
        kept = Geometry.of(image)
        corner_zyx = tuple(
            np.rint((np.array(kept.origin_xyz_mm[::-1]) - GRID.origin_xyz_mm[::-1]) / GRID.spacing_zyx_mm)
        )
        beyond_z, beyond_y = MARGIN_MM / 5 + 1, MARGIN_MM + 1
        assert corner_zyx == (6 - beyond_z, 20 - beyond_y, 20 - beyond_y)
        assert kept.size_zyx == (12 - 6 + 2 * beyond_z, 20 + 2 * beyond_y, 20 + 2 * beyond_y)
        part = tuple(slice(int(n), int(n) + size) for n, size in zip(corner_zyx, kept.size_zyx, strict=True))
        exact_zyx = segmentation.probability_rzyx[structure][part]
        assert np.abs(to_array(image) / 255 - exact_zyx).max() <= 0.5 / 255 + 1e-6


def test_what_a_model_was_not_taught_is_not_kept_and_without_livers_all_of_the_scan_is(tmp_path: Path) -> None:
    write_probabilities(keep_probabilities(*predicted(("tumour",))), Report(tmp_path), "a")
    assert not Report(tmp_path).probability("a", "liver").exists()
    assert Geometry.of(read_image(Report(tmp_path).probability("a", "tumour"))).size_zyx == GRID.size_zyx


def test_probability_1_is_255(tmp_path: Path) -> None:
    case, segmentation = predicted(STRUCTURES)
    segmentation.probability_rzyx[LIVER] = 1
    assert keep_probabilities(case, segmentation).values_zyx["liver"].min() == 255


@pytest.mark.parametrize("taught", [STRUCTURES, ("tumour",)])
def test_a_report_of_a_model_keeps_probabilities_of_what_it_was_taught(taught: tuple[str, ...]) -> None:
    assert tuple(keep_probabilities(*predicted(taught)).values_zyx) == taught
