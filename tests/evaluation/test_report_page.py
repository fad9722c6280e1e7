"""The report's page in a real browser: nothing is loaded, slices scroll, it fits a phone, and works without scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chromium import open_chromium
from playwright.sync_api import Browser, Locator, Page, expect

from hepar.evaluation.label_pairs import CaseIdentity, LabelPair, SegmentedCase, TumourProbability
from hepar.evaluation.report import write_report
from hepar.evaluation.scores import score_case
from hepar.evaluation.slices import pick_slice
from hepar.evaluation.summary import Bootstrap, summarise

pytestmark = pytest.mark.timeout(120)
SHAPE = (14, 40, 48)
BOOTSTRAP = Bootstrap(seed=1, resamples=50)
SOURCES, UNKNOWN = ("a & b", "other"), 3  # the number of the case whose tumour is unknown
SECTIONS = [
    *("metrics", "not-scored", "groups", "confidence", "cases"),
    *("agreement", "examples", "slices", "learning", "provenance"),
]
KEY = 6  # the slice with the largest tumour, the sixth of those from 1 to 12


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of four CT and two MR cases of two sources, with names that a page must escape; a tumour is unknown."""
    scored = []
    for number, modality in enumerate(("CT", "CT", "CT", "CT", "MR", "MR")):
        liver_zyx, tumour_zyx, found_zyx = (np.zeros(SHAPE, dtype=bool) for _ in range(3))
        liver_zyx[2:12, 8:32, 8:40] = True
        tumour_zyx[5:8, 14:20, 14:22] = True
        tumour_zyx[KEY, 14:24, 14:26] = True
        found_zyx[5:8, 14:20, 14 : 16 + 2 * number] = True
        probability_zyx = np.where(found_zyx, np.float32(0.9 - 0.1 * number), np.float32(0.1))
        case = SegmentedCase(
            CaseIdentity(f"case <{number}>", f"p{number}", modality, "T1" * (modality == "MR"), SOURCES[number % 2]),
            LabelPair(liver_zyx, liver_zyx),
            LabelPair(None if number == UNKNOWN else tumour_zyx, found_zyx),
            (5.0, 2.0, 2.0),
            True,
            TumourProbability(probability_zyx, inside_liver=True, min_lesion_voxels=0.0),
        )
        image_zyx = np.random.default_rng(number).normal(size=SHAPE).astype(np.float32)
        scored.append((score_case(case), pick_slice(case, image_zyx, (-2.0, 2.0))))
    scores = [case for case, _ in scored]
    metrics = summarise(scores, BOOTSTRAP.seed, BOOTSTRAP.resamples)
    history = pd.DataFrame([{"step": 1, "split": "val", "metric": "loss", "value": 0.5, "modality": "CT"}])
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path, metrics, scores, [shown for _, shown in scored], history, {"git commit": "f" * 40}, BOOTSTRAP)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The page at the width of a desktop; fails if it logs, throws or asks for anything outside itself."""
    opened = browser.new_page(viewport={"width": 1400, "height": 900})
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on(
        "request", lambda request: wrong.append(request.url) if request.url[:5] not in {"file:", "data:"} else None
    )
    opened.goto(report.as_uri())
    yield opened
    opened.close()
    assert wrong == []


def figure(page: Page) -> Locator:
    return page.locator("figure.stack").first


def shown(figure: Locator) -> list[str | None]:
    """The indices of the slices that can be seen."""
    return [one.get_attribute("data-z") for one in figure.locator("g.slice").all() if one.is_visible()]


def turn_wheel(figure: Locator, after_scrolling: bool) -> bool:
    """Turn the wheel by one notch towards the feet over the picture; tells whether the picture keeps it.

    Both events come in one turn of the event loop, so that no time passes between them.
    """
    return bool(
        figure.locator("svg").evaluate(
            """(svg, afterScrolling) => {
              if (afterScrolling) window.dispatchEvent(new Event("scroll"));
              const wheel = new WheelEvent("wheel", { deltaY: 100, cancelable: true, bubbles: true });
              svg.dispatchEvent(wheel);
              return wheel.defaultPrevented;
            }""",
            after_scrolling,
        )
    )


def test_slices_are_scrolled_by_slider_keys_and_wheel(page: Page) -> None:
    first, other = figure(page), page.locator("figure.stack").nth(1)
    place = first.locator("output")
    assert shown(first) == [str(KEY)]
    expect(place).to_have_text("slice 6 (6 of 12)")

    first.locator("svg").click()
    for key, index_z in (("ArrowRight", 7), ("Home", 1), ("End", 12)):
        page.keyboard.press(key)
        expect(place).to_have_text(f"slice {index_z} ({index_z} of 12)")
        assert shown(first) == [str(index_z)]

    before = page.evaluate("scrollY")
    page.mouse.wheel(0, 100)
    expect(place).to_have_text("slice 11 (11 of 12)")
    for _ in range(2):
        page.mouse.wheel(0, -100)
        expect(place).to_have_text("slice 12 (12 of 12)")
    assert shown(first) == ["12"]
    assert page.evaluate("scrollY") == before, "the page stays where it is while slices scroll"
    assert first.locator("input").get_attribute("aria-valuetext") == "slice 12 (12 of 12)"
    assert shown(other) == [str(KEY)]


def test_a_wheel_that_scrolls_the_page_is_not_caught_by_a_picture(page: Page) -> None:
    first = figure(page)
    assert not turn_wheel(first, after_scrolling=True)
    assert shown(first) == [str(KEY)]
    page.wait_for_timeout(400)
    assert turn_wheel(first, after_scrolling=False)
    assert shown(first) == [str(KEY - 1)]
    first.locator("svg").click()
    assert turn_wheel(first, after_scrolling=True), "a picture that was chosen keeps the wheel"
    page.keyboard.press("Home")
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(400)
    assert not turn_wheel(first, after_scrolling=False), "beyond the last slice the page goes on"


def test_outlines_can_be_switched_off(page: Page) -> None:
    outlines = figure(page).locator("g.slice.current path.tumour.reference")
    assert outlines.is_visible()
    page.locator("#show-reference").uncheck()
    assert not outlines.is_visible()
    assert figure(page).locator("g.slice.current path.tumour.prediction").is_visible()


@pytest.mark.parametrize("width", [1400, 420])
def test_the_page_fits_and_everything_in_it_has_a_name(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for role in ("img", "slider"):
        pictures = page.get_by_role(role)  # those a screen reader finds
        names = [pictures.nth(n).get_attribute("aria-label") for n in range(pictures.count())]
        assert names
        assert all(names)
    assert [heading.get_attribute("id") for heading in page.locator("h2").all()] == SECTIONS
    links = [link.get_attribute("href") or "" for link in page.locator("nav a").all()]
    assert set(links) <= {f"#{name}" for name in SECTIONS}
    assert len(set(links)) == len(links) >= len(SECTIONS) - 1


def test_each_section_shows_what_it_is_about(page: Page) -> None:
    """Free-response and reliability curves, groups by source, the worst case of both modalities, what has no score."""
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    charts = {name: page.locator(f"h2#{name} ~ div.scroll svg").first for name in ("groups", "confidence", "agreement")}
    for chart in charts.values():
        box = chart.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) > 100
    assert all(source in charts["groups"].inner_html() for source in ("a &amp; b", "other"))
    assert f"case <{UNKNOWN}>" in page.locator("table.unscored").inner_text()
    text = page.locator("body").inner_text()
    assert "Sensitivity, average precision and calibration error as numbers" in text
    ranked = [group.locator("figure").count() for group in page.locator("h2#examples ~ div.stacks").all()]
    assert ranked[:2] == [3, 2], "worst, median and best in CT, worst and best of the two in MR"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(page: Page, scheme: str) -> None:
    """WCAG 2.1 AA: a contrast of 4.5 for text, 3 for the marks of charts."""
    page.emulate_media(color_scheme=scheme)
    contrasts = page.evaluate(
        """() => {
          const style = getComputedStyle(document.documentElement);
          const luminance = (name) => {
            const hex = style.getPropertyValue(name).trim();
            const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
              .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const contrast = (one, other) => {
            const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
            return (high + 0.05) / (low + 0.05);
          };
          return {
            text: [['--ink', '--page'], ['--muted', '--page'], ['--muted', '--panel'], ['--link', '--page'],
                   ['--warn', '--warn-back']].map(([one, other]) => contrast(one, other)),
            marks: ['--ct', '--mr', '--muted'].map((name) => contrast(name, '--page')),
          };
        }"""
    )
    assert min(contrasts["text"]) >= 4.5
    assert min(contrasts["marks"]) >= 3


def test_without_scripts_the_key_slice_is_a_still_picture(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert shown(figure(page)) == [str(KEY)]
    assert not figure(page).locator("input").is_visible()
    assert "case <0>" in figure(page).inner_text()
    context.close()


def test_on_paper_there_are_no_controls_and_no_dark_mode(page: Page) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert not figure(page).locator("input").is_visible()
    assert shown(figure(page)) == [str(KEY)]
