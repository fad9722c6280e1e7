"""The page, in a browser from a file too, and the lines below the overview: how numbers and warnings are written."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from chromium import LOADING_MS, open_chromium
from dicom_files import phantom_voxels, write_series
from playwright.sync_api import expect
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


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_page_on_a_disk_has_the_viewer_and_without_scripts_the_picture(scan: PredictedScan, tmp_path: Path) -> None:
    pictures = ScanPictures.of(scan)
    (tmp_path / "page.html").write_text(render_page(scan, pictures, pictures.overview(["a line"])))
    with open_chromium() as browser:
        page = browser.new_page()
        seen: list[str] = []
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("console", lambda said: seen.append(said.text) if said.type == "error" else None)
        page.on("request", lambda request: seen.append(request.url.split(":")[0]))
        page.goto((tmp_path / "page.html").as_uri())
        expect(page.locator("#view")).to_have_attribute("data-shown", scan.scan.name, timeout=LOADING_MS)
        expect(page.locator(".without-viewer")).to_be_hidden()
        assert page.locator(".windows button").all_inner_texts() == ["abdomen 1", "liver 2"]  # no lung in what is kept
        place = page.locator(".place")
        page.locator("#view").focus()
        for _ in range(4):
            page.keyboard.press("PageUp")
        before = place.inner_text()
        page.locator("tr[data-lps]").click()
        x, y, z = (int(found) for found in re.findall(r"[xyz] (\d+)", place.inner_text()))
        lesion_zyx = scan.measured.lesions[0].found.centre_index_zyx
        rows, columns = scan.found.geometry.size_zyx[1:]
        expected = (
            columns - 1 - lesion_zyx[2],
            rows - 1 - lesion_zyx[1],
            lesion_zyx[0],
        )  # they count to the right, front and head
        assert (x, y, z) == pytest.approx(expected, abs=1)
        assert place.inner_text() != before
        assert ": 300 " in place.inner_text()  # HU of the lesion
        assert set(seen) <= {"file", "data", "blob"}, seen

        plain = browser.new_context(java_script_enabled=False).new_page()
        plain.goto((tmp_path / "page.html").as_uri())
        expect(plain.locator("#embedded")).to_be_hidden()
        expect(plain.locator(".without-viewer img")).to_be_visible()
