"""The page and the lines below the overview: how numbers and warnings are written."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from dicom_files import phantom_voxels, write_series
from predicted import predicted

from hepar.prediction.out_of_distribution import ScanWarning
from hepar.prediction.page import _number, overview_lines, render_page
from hepar.prediction.pictures import ScanPictures
from hepar.prediction.predicted_scan import PredictedScan


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> PredictedScan:
    folder = tmp_path_factory.mktemp("series")
    write_series(folder, phantom_voxels())
    return predicted(folder)


@pytest.mark.parametrize(
    ("count", "line"), [(1, "1 warning: too coarse"), (2, "2 warnings, the first: too coarse"), (0, None)]
)
def test_warnings_are_counted_below_the_overview(scan: PredictedScan, count: int, line: str | None) -> None:
    warning = ScanWarning("spacing", 6.0, 5.0, "mm", "too coarse")
    lines = overview_lines(replace(scan, warnings=(warning,) * count))
    assert lines[2:] == ([line] if line else [])


def test_lesions_of_a_model_that_was_not_taught_tumours_are_not_counted_as_none(scan: PredictedScan) -> None:
    untaught = replace(scan, measured=replace(scan.measured, tumour_ml=None, lesions=()))
    assert overview_lines(untaught)[0].endswith("tumours –, burden –, lesions –")


def test_numbers_have_minus_signs_and_spacings_three_digits(scan: PredictedScan) -> None:
    grid = replace(scan.found.geometry, spacing_zyx_mm=(10.833333, 9.04, 0.70312))
    (lesion,) = scan.measured.lesions
    centred = replace(lesion, found=replace(lesion.found, centre_lps_mm=(-12.4, -0.2, 7.0)))
    shown = replace(scan, found=replace(scan.found, geometry=grid), measured=replace(scan.measured, lesions=(centred,)))
    page = render_page(shown, ScanPictures.of(scan), b"")
    assert "<td>−12, 0, 7</td>" in page
    assert _number(0.04, 1, "%") == "<0.1 %"
    assert [_number(value, 1, "%") for value in (0.06, 0.0, None)] == ["0.1 %", "0.0 %", "–"]
    assert "voxels of 0.703 × 9.04 × 10.8 mm" in page
    assert re.search(r"td \{[^}]*white-space: nowrap", page)
