"""`hepar serve` and its page in a real browser: upload, results, lesions, downloads, refusals, deletion and the end."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import LOADING_MS, open_page
from conftest import BIN, environment
from dicom_files import phantom_voxels, write_series
from PIL import Image
from playwright.sync_api import Page, expect
from toy_model import constant_weights, write_model

from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.params import Params

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def address(tiny: Params, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address that `hepar serve` prints; its model finds liver and tumour everywhere."""
    folder = tmp_path_factory.mktemp("serve")
    plan = PreprocessingPlan(spacing_zyx_mm=(3.0, 1.0, 1.0), window_hu=(-100.0, 300.0), mr_percentiles=(2.0, 98.0))
    write_model(folder / "model", tiny, constant_weights(tiny, 0.9, 0.9), plan=plan, patch_zyx=(16, 16, 16))
    (folder / "tmp").mkdir()
    command = [str(BIN / "hepar"), "serve", "--model", "model", "--whole"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, text=True, env=environment(TMPDIR=str(folder / "tmp"))
    ) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().removeprefix("Open ").split()[0]
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=120) == 0
            assert list((folder / "tmp").iterdir()) == []  # no upload and no result is left
        finally:
            server.kill()


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    with open_page() as opened:
        yield opened


def zipped(paths: list[Path], target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in paths:
            archive.write(path, f"GRIMALDI PERPETUA/{path.name}")
    return target


def test_a_scan_is_uploaded_predicted_looked_at_downloaded_and_deleted(
    page: Page, address: str, tmp_path: Path
) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url) if "127.0.0.1" not in request.url else None)
    page.goto(address)
    expect(page.locator("#accepts")).to_contain_text("a zip of DICOM")
    assert "token" not in page.url  # not left in the address bar
    assert "Research use only" in page.inner_text("header")

    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8b\x08\x00 no gzip")
    page.set_input_files("#file", str(tmp_path / "broken.nii.gz"))
    expect(page.locator("#error")).to_contain_text("the upload", timeout=LOADING_MS)
    expect(page.locator("#drop")).to_be_visible()

    slices = write_series(tmp_path / "ct", phantom_voxels())
    page.set_input_files("#file", str(zipped(slices, tmp_path / "study.zip")))
    expect(page.locator("#view")).to_have_attribute("data-shown", re.compile("/1$"), timeout=2 * LOADING_MS)
    assert page.inner_text("#error") == ""
    assert page.evaluate("job.scans[0].measurements.made_by.whole")  # as the service was told
    assert page.evaluate("[job.percent, job.windows > 0, job.windows_done === job.windows]") == [100, True, True]
    lit = np.asarray(Image.open(io.BytesIO(page.locator("#view").screenshot())).convert("L"))
    assert len(np.unique(lit)) > 20  # a scan is shown
    rows = page.locator("#lesions tbody tr")
    expect(rows).to_have_count(1)
    page.evaluate("planes.goTo([0, 0, 0])")
    rows.first.click()
    assert page.evaluate("planes.voxel") == pytest.approx([12, 10, 6], abs=1)  # the middle of 24 × 20 × 12 voxels
    page.keyboard.press("PageUp")
    page.keyboard.press("2")
    assert page.evaluate("[planes.voxel[2], planes.window.low]") in ([6, -20], [7, -20])
    page.locator("#show-tumour").uncheck()
    assert page.evaluate("planes.layers.map((layer) => [layer.name, layer.visible])") == [
        ["liver", True],
        ["tumour", False],
    ]

    names = [link.inner_text() for link in page.locator("#downloads a").all()]
    assert {"Everything (zip)", "DICOM-SEG", "DICOM SR", "Liver mask", "Page"} <= set(names)
    with page.expect_download() as waited:
        page.get_by_text("Everything (zip)").click()
    with zipfile.ZipFile(waited.value.path()) as archive:
        assert any(name.endswith("/segmentation.dcm") for name in archive.namelist())
        assert not any("GRIMALDI" in name for name in archive.namelist())

    job = page.url.partition("#")[2]
    page.goto(f"{address.partition('?')[0]}api/jobs/{job}/scans/1/page.html")  # with its own viewer, in a sandbox
    expect(page.locator("#view")).to_have_attribute("data-shown", re.compile("ct"), timeout=LOADING_MS)
    assert page.evaluate("fetch('/api/service').then(() => 'reached', () => 'refused')") == "refused"
    page.goto(f"{address.partition('?')[0]}#{job}")
    expect(page.locator("#view")).to_have_attribute("data-shown", f"{job}/1", timeout=LOADING_MS)
    page.reload()
    expect(page.locator("#view")).to_have_attribute("data-shown", f"{job}/1", timeout=LOADING_MS)
    page.locator("#delete").click()
    expect(page.locator("#drop")).to_be_visible()
    assert page.request.get(f"{address.partition('?')[0]}api/jobs/{job}").status == 404
    assert errors == []
    assert outside == []
