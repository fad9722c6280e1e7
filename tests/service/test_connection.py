"""The page of the service in a browser that loses the connection, or that has no WebGL 2."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from chromium import open_page
from playwright.sync_api import Page, Route, expect
from served_jobs import served_jobs

from hepar.service.jobs import Job, Jobs, JobState
from hepar.service.limits import ServiceLimits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TOKEN = "a-token-of-the-tests"
PATIENCE_MS = 60_000
TRYING = re.compile("trying again")
FIRST_WAIT_SECONDS = 0.7
SCAN: dict[str, Any] = {
    "number": 1,
    "files": ["measurements.json", "overview.png"],
    "problem": "",
    "measurements": {
        "scan": {
            **{"name": "ct", "modality": "CT", "modality_from": "the header"},
            **{"size_xyz": [24, 20, 12], "spacing_xyz_mm": [1.0, 1.0, 3.0]},
        },
        "measurements": {"liver_ml": 1480.0, "tumour_ml": 12.5, "burden_percent": 0.8},
        "warnings": [{"message": "The liver is cut off."}],
        "lesions": [
            {
                **{"number": 1, "volume_ml": 12.5, "longest_diameter_mm": 31.0, "perpendicular_diameter_mm": 22.0},
                **{"confidence": 0.9, "centre_lps_mm": [0.0, 0.0, 0.0]},
            }
        ],
    },
}
FAULTS: dict[str, Callable[[Route], None]] = {
    "no network": lambda route: route.abort(),
    "busy": lambda route: route.fulfill(status=503, content_type="text/plain", body="Service Unavailable"),
    "proxy": lambda route: route.fulfill(status=502, content_type="text/html", body="<h1>Bad Gateway</h1>"),
    "login": lambda route: route.fulfill(status=200, content_type="text/html", body="<form>Log in</form>"),
    "error": lambda route: route.fulfill(status=500, json={"error": "a bug"}),
}


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path, replace(ServiceLimits(), free_bytes=0))


@pytest.fixture
def address(jobs: Jobs) -> Iterator[str]:
    with served_jobs(jobs, TOKEN) as served:
        yield served


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    """A page that is closed before the service ends, which waits for connections."""
    with open_page() as opened:
        yield opened


def running(jobs: Jobs) -> Job:
    job = jobs.reserve(0)
    jobs.submit(job)
    assert jobs.take() is job
    job.step = "reading"
    return job


def expect_results(page: Page) -> None:
    expect(page.locator("#facts")).to_contain_text("1480 ml", timeout=PATIENCE_MS)
    expect(page.locator("#facts")).to_contain_text("CT, from the header")
    expect(page.locator("#warnings")).to_have_text("The liver is cut off.")
    expect(page.locator("#lesions tbody tr")).to_have_count(1)
    expect(page.locator("#downloads a")).to_have_text(["Everything (zip)", "Measurements", "Overview"])


def test_a_lost_connection_is_tried_again_and_the_address_keeps_the_job(page: Page, address: str, jobs: Jobs) -> None:
    job = running(jobs)
    page.goto(f"{address}/?token={TOKEN}#{job.id}")
    step = page.locator("#step")
    expect(step).to_have_text("reading…", timeout=PATIENCE_MS)
    for name, fault in FAULTS.items():
        page.route("**/api/**", fault)
        expect(step).to_have_text(TRYING, timeout=PATIENCE_MS)
        assert page.url.endswith(f"#{job.id}"), name
        page.unroute("**/api/**")
        expect(step).to_have_text("reading…", timeout=PATIENCE_MS)
    page.route("**/api/**", FAULTS["proxy"])
    page.reload()  # which finds the job again once there is a connection
    expect(step).to_have_text(TRYING, timeout=PATIENCE_MS)
    jobs.finish(job, JobState.DONE, scans=(SCAN,))
    page.unroute("**/api/**")
    expect_results(page)
    assert page.url.endswith(f"#{job.id}")
    expect(page.locator("#no-planes")).to_contain_text("The scan cannot be displayed", timeout=PATIENCE_MS)  # no image
    expect(page.locator("#view")).to_be_hidden()


def test_a_lost_connection_is_tried_ever_less_often(page: Page, address: str, jobs: Jobs) -> None:
    job, times = running(jobs), []

    def note(route: Route) -> None:
        times.append(time.monotonic())
        route.abort()

    page.route("**/api/jobs/*", note)
    page.goto(f"{address}/?token={TOKEN}#{job.id}")
    while len(times) < 4:
        page.wait_for_timeout(100)
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert all(wait > 0.9 * FIRST_WAIT_SECONDS * 2**index for index, wait in enumerate(waits[:3])), waits
    page.locator("#cancel").click()
    expect(page.locator("#drop")).to_be_visible()
    assert "#" not in page.url


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_job_that_is_not_there_leads_to_the_start(page: Page, address: str, jobs: Jobs, status: int) -> None:
    job = running(jobs)
    page.goto(f"{address}/?token={TOKEN}#{job.id}")
    expect(page.locator("#step")).to_have_text("reading…", timeout=PATIENCE_MS)
    page.route("**/api/jobs/*", lambda route: route.fulfill(status=status, json={"error": "it is not there"}))
    expect(page.locator("#error")).to_have_text("it is not there", timeout=PATIENCE_MS)
    expect(page.locator("#drop")).to_be_visible()
    assert "#" not in page.url


def test_without_webgl_2_all_but_the_planes_is_shown(page: Page, address: str, jobs: Jobs) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    job = running(jobs)
    jobs.finish(job, JobState.DONE, scans=(SCAN,))
    page.goto(f"{address}/?token={TOKEN}#{job.id}")
    expect_results(page)
    expect(page.locator("#no-planes")).to_contain_text("no WebGL 2")
    for hidden in ("#view", "#controls", "#hint", "#drop"):
        expect(page.locator(hidden)).to_be_hidden()
    page.locator("#lesions tbody tr").click()
    page.keyboard.press("n")
    page.keyboard.press("ArrowUp")
    assert page.url.endswith(f"#{job.id}")
    assert page.inner_text("#error") == ""
    assert errors == []
