"""The report: complete in itself, reproducible to the byte, worst cases first."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hepar.errors import DataError
from hepar.evaluation import CaseSlice, pick_slice, score_case, summarise, write_report
from hepar.evaluation.pictures import MAX_PNG_BYTES, encode_png, outline_path, slice_svg
from hepar.evaluation.report import MAX_PICTURES, worst_first

SHAPE = (4, 24, 30)
SPACING_MM = (3.0, 1.5, 1.5)
NONE = np.zeros(SHAPE, dtype=bool)


def block(z: int, size: int) -> np.ndarray:
    mask = NONE.copy()
    mask[z, 4 : 4 + size, 6 : 6 + size] = True
    return mask


LIVER = block(1, 16) | block(2, 14)


def scored(case_id: str, overlap: int | None, liver_overlap: int = 16, modality: str = "CT") -> tuple:
    """Scores and slice of a case whose 8-voxel-wide tumour is predicted ``overlap`` wide (None: unknown)."""
    tumour = None if overlap is None else block(2, 8)
    arguments = (LIVER, tumour, block(1, liver_overlap) | block(2, 14), block(2, overlap or 0))
    scores = score_case(case_id, f"p-{case_id}", modality, "T1", "A", *arguments, SPACING_MM, True)
    image = np.linspace(-100, 200, NONE.size).reshape(SHAPE)
    return scores, pick_slice(case_id, image, *arguments, SPACING_MM, (-45.0, 160.0))


HISTORY = pd.DataFrame(
    [
        (step, split, "loss", 1 / step, modality)
        for step in (1, 2, 3)
        for split, modality in (("train", ""), ("val", "CT"))
    ],
    columns=["step", "split", "metric", "value", "modality"],
)


def write(folder: Path, cases: list[tuple], history: pd.DataFrame = HISTORY, name: str = "report.html") -> str:
    scores = [score for score, _ in cases]
    metrics = summarise(scores, seed=1, resamples=50)
    facts = {"cohort": "sha256:12", "git <commit>": "ab&c"}
    write_report(folder / name, metrics, scores, [picture for _, picture in cases], history, facts)
    return (folder / name).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects every address that a page would load, and whether its tags are balanced."""

    VOID = frozenset({"meta", "input", "br", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in {"src", "href", "xlink:href", "data"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def figures(text: str) -> list[str]:
    """Case ids in the order of the pictures."""
    return re.findall(r"<figcaption><b>([^<]+)</b>", text)


def test_page_needs_nothing_else(tmp_path: Path) -> None:
    text = write(tmp_path, [scored("a", 8), scored("b", 4, modality="MR")])
    page = Page(text)
    assert page.open == []
    assert {"script", "link", "iframe"}.isdisjoint(page.tags)
    assert page.addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_same_input_same_bytes(tmp_path: Path) -> None:
    cases = [scored("a", 8), scored("b", 4)]
    write(tmp_path, cases, name="one.html")
    write(tmp_path, cases, name="two.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_worst_first_by_tumour_dice_else_liver_dice(tmp_path: Path) -> None:
    cases = [
        scored("good", 8),
        scored("no-tumour-label", None, liver_overlap=4),
        scored("bad", 2),
        scored("missed", 0),
    ]
    no_tumour_label = cases[1][0]
    assert cases[2][0].tumour.dice < no_tumour_label.liver.dice < 1
    assert figures(write(tmp_path, cases)) == ["missed", "bad", "no-tumour-label", "good"]


def test_cases_without_any_dice_come_last() -> None:
    unscored = score_case("z", "p", "CT", "", "A", None, None, NONE, NONE, SPACING_MM, True)
    assert [case.case_id for case in worst_first([unscored, scored("a", 8)[0]])] == ["a", "z"]


def test_many_cases_show_the_worst_and_say_so(tmp_path: Path) -> None:
    cases = [scored(f"case-{index:03d}", 8) for index in range(MAX_PICTURES + 4)] + [scored("worst", 1)]
    text = write(tmp_path, cases)
    assert len(figures(text)) == MAX_PICTURES
    assert figures(text)[0] == "worst"
    assert f"The worst {MAX_PICTURES} of {MAX_PICTURES + 5} cases are shown" in text
    assert text.count("case-063") == 1, "a case without a picture still stands in the table"


def test_a_false_positive_in_a_tumour_free_case_is_on_the_page(tmp_path: Path) -> None:
    scores = score_case("free", "p", "CT", "", "A", LIVER, NONE, LIVER, block(2, 4), SPACING_MM, True)
    picture = pick_slice("free", np.zeros(SHAPE), LIVER, NONE, LIVER, block(2, 4), SPACING_MM, (0.0, 1.0))
    assert picture.index_z == 2
    text = write(tmp_path, [(scores, picture)])
    assert "tumour-free, false positive" in text
    assert 'class="tumour prediction"' in text.split("<figure>")[1]


def test_facts_are_escaped(tmp_path: Path) -> None:
    text = write(tmp_path, [scored("a", 8)])
    assert "git &lt;commit&gt;" in text
    assert "ab&amp;c" in text


def test_nothing_scored_and_no_history(tmp_path: Path) -> None:
    text = write(tmp_path, [], history=HISTORY.iloc[:0])
    assert "No case was scored." in text
    assert "No history was recorded." in text


def test_a_history_read_from_a_file_without_modalities(tmp_path: Path) -> None:
    HISTORY.assign(modality="").to_csv(tmp_path / "history.csv", index=False)
    text = write(tmp_path, [scored("a", 8)], history=pd.read_csv(tmp_path / "history.csv"))
    assert "No history was recorded." not in text


def test_a_history_without_a_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="history lacks the columns split"):
        write(tmp_path, [scored("a", 8)], history=HISTORY.drop(columns="split"))


def test_a_slice_of_a_case_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without scores: b"):
        write(tmp_path, [(scored("a", 8)[0], scored("b", 8)[1])])


def slice_of(tumour: np.ndarray | None, predicted_tumour: np.ndarray, liver: np.ndarray | None = LIVER) -> CaseSlice:
    return pick_slice("x", np.zeros(SHAPE), liver, tumour, LIVER, predicted_tumour, SPACING_MM, (0.0, 1.0))


def test_slice_with_the_largest_tumour_else_the_largest_liver() -> None:
    assert slice_of(block(2, 3) | block(3, 5), block(0, 9)).index_z == 3
    assert slice_of(None, block(0, 9)).index_z == 0
    assert slice_of(NONE, NONE).index_z == 1
    nothing = pick_slice("x", np.zeros(SHAPE), None, None, NONE, NONE, SPACING_MM, (0.0, 1.0))
    assert nothing.index_z == 2


def test_slice_is_windowed_to_0_and_1() -> None:
    image = np.zeros(SHAPE)
    image[1] = np.linspace(-100, 300, 24 * 30).reshape(24, 30)
    picture = pick_slice("x", image, LIVER, None, LIVER, NONE, SPACING_MM, (0.0, 200.0))
    assert picture.image_yx.dtype == np.float32
    assert picture.image_yx.min() == 0
    assert picture.image_yx.max() == 1
    assert picture.image_yx[image[1] == image[1].flat[360]] == pytest.approx(image[1].flat[360] / 200)


def test_slice_of_other_shape_or_window_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="case x: mask is 3x24x30 but the image is 4x24x30"):
        slice_of(NONE[1:], NONE)
    with pytest.raises(DataError, match="case x: window"):
        pick_slice("x", np.zeros(SHAPE), None, None, NONE, NONE, SPACING_MM, (1.0, 1.0))


def test_unknown_reference_is_not_outlined() -> None:
    drawn = slice_svg(slice_of(None, block(1, 4)), distances_known=True)
    assert 'class="tumour reference"' not in drawn
    assert 'class="tumour prediction"' in drawn


def test_scale_bar_only_where_millimetres_are_known() -> None:
    assert "20 mm" in slice_svg(slice_of(None, NONE), distances_known=True)
    assert " mm" not in slice_svg(slice_of(None, NONE), distances_known=False)


def test_outline_runs_along_the_edges_of_the_pixels() -> None:
    mask = np.zeros((4, 5), dtype=bool)
    mask[1:3, 1:4] = True
    parts = set(re.findall(r"M[^M]+", outline_path(mask)))
    assert parts == {"M1 1h3", "M1 3h3", "M1 1v2", "M4 1v2"}


def test_pictures_stay_small_even_of_noise() -> None:
    noise = np.random.default_rng(0).random((700, 600)).astype(np.float32)
    png = encode_png(noise)
    assert len(png) <= MAX_PNG_BYTES
    with Image.open(io.BytesIO(png)) as image:
        assert image.width / image.height == pytest.approx(600 / 700, rel=0.02)


def test_small_pictures_keep_their_pixels() -> None:
    steps = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    with Image.open(io.BytesIO(encode_png(steps))) as image:
        assert np.asarray(image) == pytest.approx(steps * 255, abs=0.5)
