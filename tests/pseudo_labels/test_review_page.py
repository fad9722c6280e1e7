"""The review page in a real browser: open, accept, reject, upload a corrected mask, and reload."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from chromium import LOADING_MS, open_page
from conftest import BIN, environment
from PIL import Image
from playwright.sync_api import Page, expect

from hepar.pseudo_labels.folder import PseudoLabels
from hepar.pseudo_labels.reviews import Reviews

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def run(by_kfp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("review")
    for name in ("cohort", "pseudo"):
        shutil.copytree(by_kfp / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    """The address that `hepar review` prints."""
    command = [str(BIN / "hepar"), "review", "pseudo", "--who", "an expert"]
    with subprocess.Popen(
        command,
        cwd=run,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().removeprefix("Open ").split()[0]
        server.send_signal(signal.SIGINT)
        try:
            assert server.wait(timeout=30) == 0
        finally:
            server.kill()


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    with open_page() as opened:
        yield opened


def shown(page: Page, case_id: str) -> None:
    """Wait until the page shows the volume of a case."""
    expect(page.locator("#view")).to_have_attribute("data-shown", case_id, timeout=LOADING_MS)
    expect(page.locator("#message")).to_have_text("")


def decisions(run: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (run / "reviews" / Reviews.LOG).read_text().splitlines()]


def test_a_reviewer_works_through_the_queue_and_decisions_survive_a_reload(
    page: Page, address: str, run: Path, tmp_path: Path
) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    aborted = "net::ERR_ABORTED"  # by the reload below
    page.on("requestfailed", lambda request: errors.append(request.url) if request.failure != aborted else None)
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url) if "127.0.0.1" not in request.url else None)

    page.goto(address)
    page.wait_for_selector("#cases button")
    queue = [button.get_attribute("data-case") or "" for button in page.locator("#cases button").all()]
    assert len(queue) == 2
    shown(page, queue[0])
    assert "token" not in page.url  # not left in the address bar
    lit = np.asarray(Image.open(io.BytesIO(page.locator("#view").screenshot())).convert("L"))
    top, left = lit.shape[0] // 2, lit.shape[1] // 2
    for plane in (lit[:top, :left], lit[:top, left:], lit[top:, :left]):
        assert len(np.unique(plane)) > 20  # each of the three planes shows the volume
    assert page.locator("#get-image").get_attribute("href") == f"files/{queue[0]}/image.nii.gz"

    page.keyboard.press("a")
    shown(page, queue[1])  # the next case
    assert (decisions(run)[0]["case_id"], decisions(run)[0]["decision"]) == (queue[0], "accept")
    page.locator("#reject").click()
    shown(page, queue[0])  # no case is left: starts again at the top
    assert (decisions(run)[1]["case_id"], decisions(run)[1]["decision"]) == (queue[1], "reject")

    image = sitk.ReadImage(str(PseudoLabels(run / "pseudo").liver(queue[0])))
    array = sitk.GetArrayFromImage(image)
    array[3:8, 3:12, 3:12] = 1
    corrected = sitk.GetImageFromArray(array)
    corrected.CopyInformation(image)
    sitk.WriteImage(corrected[:-1], str(tmp_path / "small.nii.gz"))
    sitk.WriteImage(corrected, str(tmp_path / "corrected.nii.gz"))
    page.set_input_files("#upload", str(tmp_path / "small.nii.gz"))
    expect(page.locator("#message")).to_contain_text(f"case {queue[0]}: the mask is ")
    assert len(decisions(run)) == 2
    page.set_input_files("#upload", str(tmp_path / "corrected.nii.gz"))
    expect(page.locator("#verdict")).to_contain_text("corrected by an expert")
    assert decisions(run)[2]["decision"] == "correct"

    page.reload()
    page.wait_for_selector("#cases button")
    for case_id, outcome in zip(queue, ("corrected", "rejected"), strict=True):
        expect(page.locator(f'#cases button[data-case="{case_id}"] .done')).to_have_text(f"{outcome} by an expert")
    page.locator(f'#cases button[data-case="{queue[0]}"]').click()
    shown(page, queue[0])
    voxels = page.evaluate("planes.masks.get('liver').img.reduce((sum, value) => sum + (value > 0), 0)")
    assert voxels == int(array.sum())  # the page shows the corrected mask
    page.keyboard.press("m")
    assert not page.locator("#show-liver").is_checked()
    page.keyboard.press("n")
    expect(page.locator("#view")).not_to_have_attribute("data-shown", queue[0], timeout=LOADING_MS)
    assert errors == []
    assert outside == []


def point(page: Page, voxel: list[int]) -> tuple[float, float]:
    """Where a voxel lies on the screen, in the axial plane, through which the crosshair is moved."""
    page.evaluate("(voxel) => planes.goTo(voxel)", voxel)
    box = page.locator("#view").bounding_box()
    assert box is not None
    axial = "viewer.screenSlices.find((plane) => plane.axCorSag === 0).leftTopWidthHeight"
    left, top, width, height = page.evaluate(f"[...{axial}].map((at) => at / viewer.uiData.dpr)")
    columns, rows = page.evaluate("planes.sizes")[:2]
    x, y = (voxel[0] + 0.5) / columns, (voxel[1] + 0.5) / rows  # to the right, and to the front, of the patient
    return box["x"] + left + (1 - x) * width, box["y"] + top + (1 - y) * height  # whose right is on the left


def test_a_reviewer_draws_a_correction_with_mouse_and_keys(page: Page, address: str, run: Path) -> None:
    page.goto(address)
    page.wait_for_selector("#cases button")
    case_id = page.locator("#cases button").last.get_attribute("data-case") or ""
    page.locator("#cases button").last.click()
    shown(page, case_id)
    uncertain = page.evaluate("[...planes.masks.get('uncertain').img2RAS()]")
    columns, rows, slices = page.evaluate("planes.sizes")
    by_slice = np.array(uncertain).reshape(slices, rows, columns).sum(axis=(1, 2))
    assert by_slice[page.evaluate("planes.voxel[2]")] == by_slice.max()  # where most is in doubt

    kept = np.array(page.evaluate("[...planes.masks.get('liver').img2RAS()]")).reshape(slices, rows, columns)
    page.keyboard.press("d")
    expect(page.locator("#drawing")).to_be_visible()
    page.keyboard.press("n")  # no case is left while a drawing is open
    expect(page.locator("#message")).to_contain_text("Save the drawing (S) or discard it (Esc) first")
    for _ in range(5):
        page.keyboard.press("[")
    assert page.evaluate("pen.size") == 1
    drawn, z = "[...viewer.drawBitmap]", 3
    x, y = point(page, [4, 4, z])
    page.mouse.click(x, y)
    after = np.array(page.evaluate(drawn)).reshape(slices, rows, columns)
    assert after[z, 4, 4] == 1
    assert np.argwhere(after != kept).tolist() in ([[z, 4, 4]], [])
    page.keyboard.press("e")
    page.mouse.click(*point(page, [4, 4, z]))
    assert np.array(page.evaluate(drawn)).reshape(slices, rows, columns)[z, 4, 4] == 0
    page.keyboard.press("z")
    assert np.array(page.evaluate(drawn)).reshape(slices, rows, columns)[z, 4, 4] == 1

    page.keyboard.press("g")
    before = np.array(page.evaluate(drawn)).reshape(slices, rows, columns)
    middle = np.array(before.shape) // 2
    start = min(np.argwhere(before == 0).tolist(), key=lambda at: np.abs(at - middle).sum())  # where nothing is drawn
    page.mouse.click(*point(page, start[::-1]))
    grown = np.array(page.evaluate(drawn)).reshape(slices, rows, columns)
    assert grown[tuple(start)] == 1
    assert (grown >= before).all()
    wanted = page.evaluate(drawn)
    page.keyboard.press("s")
    expect(page.locator("#verdict")).to_contain_text("corrected by an expert")
    expect(page.locator("#drawing")).to_be_hidden()
    saved = decisions(run)[-1]
    assert (saved["case_id"], saved["decision"]) == (case_id, "correct")
    mask = sitk.DICOMOrient(
        sitk.ReadImage(str(run / "reviews" / Reviews.MASKS / f"{saved['mask_sha256']}.nii.gz")), "RAS"
    )
    assert np.array_equal(sitk.GetArrayFromImage(mask).ravel(), wanted)
