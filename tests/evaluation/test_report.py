"""The report page: self-contained, reproducible to the byte, worst cases first."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hepar.errors import DataError
from hepar.evaluation.label_pairs import CaseIdentity, LabelPair, SegmentedCase
from hepar.evaluation.outlines import outline_path
from hepar.evaluation.pictures import MAX_PNG_BYTES, encode_png, slice_svg
from hepar.evaluation.report import MAX_PICTURES, worst_first, write_report
from hepar.evaluation.scores import CaseScores, score_case
from hepar.evaluation.short_page import shorten_page
from hepar.evaluation.slices import CaseSlice, pick_slice
from hepar.evaluation.summary import Bootstrap, summarise
from hepar.inference.model_folder import ModelFolder

SHAPE = (4, 24, 30)
SPACING_MM = (3.0, 1.5, 1.5)
EMPTY_ZYX = np.zeros(SHAPE, dtype=bool)


def block(z: int, size: int) -> np.ndarray:
    mask_zyx = EMPTY_ZYX.copy()
    mask_zyx[z, 4 : 4 + size, 6 : 6 + size] = True
    return mask_zyx


LIVER_ZYX = block(1, 16) | block(2, 14)


def segmented(liver: LabelPair, tumour: LabelPair, case_id: str = "x", modality: str = "CT") -> SegmentedCase:
    return SegmentedCase(CaseIdentity(case_id, f"p-{case_id}", modality, "T1", "A"), liver, tumour, SPACING_MM, True)


def scored(
    case_id: str, overlap: int | None, liver_overlap: int = 16, modality: str = "CT"
) -> tuple[CaseScores, CaseSlice]:
    """Scores and slice of a case whose 8-voxel-wide tumour is predicted `overlap` wide (None: unknown)."""
    liver = LabelPair(LIVER_ZYX, block(1, liver_overlap) | block(2, 14))
    tumour = LabelPair(None if overlap is None else block(2, 8), block(2, overlap or 0))
    case = segmented(liver, tumour, case_id, modality)
    image_zyx = np.linspace(-100, 200, EMPTY_ZYX.size).reshape(SHAPE)
    return score_case(case), pick_slice(case, image_zyx, (-45.0, 160.0))


HISTORY = pd.DataFrame(
    [
        (step, split, "loss", 1 / step, modality)
        for step in (1, 2, 3)
        for split, modality in (("train", ""), ("val", "CT"))
    ],
    columns=["step", "split", "metric", "value", "modality"],
)


def write(
    folder: Path,
    cases: list[tuple[CaseScores, CaseSlice]],
    history: pd.DataFrame = HISTORY,
    name: str = "report.html",
    **more_facts: str,
) -> str:
    scores = [score for score, _ in cases]
    bootstrap = Bootstrap(seed=1, resamples=50)
    metrics = summarise(scores, bootstrap.seed, bootstrap.resamples)
    facts = {"cohort": "sha256:12", "git <commit>": "ab&c", **more_facts}
    write_report(folder / name, metrics, scores, [case_slice for _, case_slice in cases], history, facts, bootstrap)
    return (folder / name).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects the addresses that a page would load, and checks that its tags are balanced."""

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


def section(text: str, name: str) -> str:
    """What follows the heading with this id, up to the next heading of its rank."""
    return text.split(f'<h2 id="{name}">')[1].split("<h2")[0]


def figures(text: str, within: str = "slices") -> list[str]:
    """Case ids in the order of the figures of a section."""
    return re.findall(r"<figcaption><b>([^<]+)</b>", section(text, within))


def test_only_the_page_of_a_model_promises_its_lineage(tmp_path: Path) -> None:
    promise = "<code>hepar lineage</code> with the folder of this report"
    assert promise not in write(tmp_path, [])
    assert promise in write(tmp_path, [], **{ModelFolder.KIND: "a" * 64})


def test_the_menu_has_the_headings_and_the_page_says_what_it_is_for(tmp_path: Path) -> None:
    text = write(tmp_path, [scored("a", 8), scored("b", 4), scored("c", 6)])
    links = re.findall(r'<a href="#([^"]+)">([^<]+)</a>', text)
    headings = dict(re.findall(r'<h2 id="([^"]+)">([^<]+)</h2>', text))
    assert {place for place, _ in links} == headings.keys()
    assert [place for place, name in links if not headings[place].startswith(name)] == []
    assert "Research use only. Not for diagnosis or treatment." in text


def test_learning_curves_have_names_for_readers(tmp_path: Path) -> None:
    rows = [(1, "val", name, 0.5, "CT") for name in ("liver_dice", "tumour_dice", "another")]
    drawn = section(write(tmp_path, [scored("a", 8)], pd.DataFrame(rows, columns=HISTORY.columns)), "learning")
    assert ">Liver Dice</text>" in drawn
    assert ">another</text>" in drawn
    assert "_dice" not in drawn


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    text = write(tmp_path, [scored("a", 8), scored("b", 4, modality="MR")])
    page = Page(text)
    assert page.open == []
    assert {"link", "iframe"}.isdisjoint(page.tags)
    assert page.tags.count("script") == 1  # inline, since no address below is that of a script
    assert page.addresses
    assert all(
        address.startswith(("data:image/png;base64,", "data:image/jpeg;base64,", "#")) for address in page.addresses
    )
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_same_input_same_bytes(tmp_path: Path) -> None:
    cases = [scored("a", 8), scored("b", 4)]
    write(tmp_path, cases, name="one.html")
    write(tmp_path, cases, name="two.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_worst_cases_come_first_by_tumour_dice_else_liver_dice(tmp_path: Path) -> None:
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
    unscored = score_case(segmented(LabelPair(None, EMPTY_ZYX), LabelPair(None, EMPTY_ZYX), "z"))
    assert [case.identity.case_id for case in worst_first([unscored, scored("a", 8)[0]])] == ["a", "z"]


def test_of_many_cases_the_worst_are_shown(tmp_path: Path) -> None:
    cases = [scored(f"case-{index:03d}", 8) for index in range(MAX_PICTURES + 4)] + [scored("worst", 1)]
    text = write(tmp_path, cases)
    assert len(figures(text)) == MAX_PICTURES
    assert figures(text)[0] == "worst"
    assert f"The worst {MAX_PICTURES} of {MAX_PICTURES + 5} cases are shown" in text
    assert section(text, "slices").count("case-063") == 1, "a case without a picture is still in the table"


def test_a_page_for_a_small_place_keeps_the_pictures_of_the_worst_cases(tmp_path: Path) -> None:
    """Noise compresses worst, as image and as outline."""
    shape, rng = (24, 128, 128), np.random.default_rng(0)
    noise = [rng.random(shape) > 0.5 for _ in range(4)]
    large = pick_slice(segmented(LabelPair(*noise[:2]), LabelPair(*noise[2:])), rng.random(shape), (0.0, 1.0))
    cases = [scored(f"case-{number:03d}", number % 9, modality=("CT", "MR")[number % 2])[0] for number in range(120)]
    whole = write(tmp_path, [(case, replace(large, case_id=case.identity.case_id)) for case in cases])
    assert len(whole.encode()) > 2_000_000, "there is something to leave out"
    short = shorten_page(whole, 600_000)
    assert 500_000 < len(short.encode()) <= 600_000
    assert Page(short).open == []
    assert figures(short) == figures(whole)
    drawn = ["<svg" in figure for figure in re.findall(r"<figure[^>]*>.*?</figure>", short, re.DOTALL)]
    singles = drawn[-MAX_PICTURES:]
    assert singles == sorted(singles, reverse=True), "the worst cases come first"
    assert 0 < sum(drawn) == sum(singles), "slices that are scrolled through take most room, and go first"
    assert f"{len(drawn) - sum(drawn)} of {len(drawn)} pictures are left out here" in short
    assert shorten_page(whole, len(whole.encode())) == whole


def test_a_shortened_page_never_has_more_than_the_bytes_that_it_may_have() -> None:
    picture = "<figure>\n<svg>{}</svg>\n<figcaption>a case</figcaption></figure>\n".format("x" * 100)
    whole = f"<h1>Report</h1>\n{picture * 50}"
    least = len(shorten_page(whole, 0).encode())
    assert least < len(whole.encode()) / 2
    for max_bytes in range(least, len(whole.encode()) + 1):
        assert len(shorten_page(whole, max_bytes).encode()) <= max_bytes


def test_a_false_positive_in_a_tumour_free_case_is_on_the_page(tmp_path: Path) -> None:
    case = segmented(LabelPair(LIVER_ZYX, LIVER_ZYX), LabelPair(EMPTY_ZYX, block(2, 4)))
    case_slice = pick_slice(case, np.zeros(SHAPE), (0.0, 1.0))
    assert case_slice.index_z == 2
    text = write(tmp_path, [(score_case(case), case_slice)])
    assert "tumour-free, false positive" in text
    assert 'class="tumour prediction"' in text.split("<figure>")[1]


def test_facts_are_escaped(tmp_path: Path) -> None:
    text = write(tmp_path, [scored("a", 8)])
    assert "git &lt;commit&gt;" in text
    assert "ab&amp;c" in text


def test_a_page_without_cases_and_history(tmp_path: Path) -> None:
    text = write(tmp_path, [], history=HISTORY.iloc[:0])
    assert "No cases were scored." in text
    assert "No training history." in text


def test_a_history_read_from_a_file_without_modalities(tmp_path: Path) -> None:
    HISTORY.assign(modality="").to_csv(tmp_path / "history.csv", index=False)
    text = write(tmp_path, [scored("a", 8)], history=pd.read_csv(tmp_path / "history.csv"))
    assert "No training history." not in text


def test_a_history_without_a_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="history lacks the columns split"):
        write(tmp_path, [scored("a", 8)], history=HISTORY.drop(columns="split"))


def test_a_slice_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without scores: b"):
        write(tmp_path, [(scored("a", 8)[0], scored("b", 8)[1])])


def slice_of(tumour_zyx: np.ndarray | None, predicted_tumour_zyx: np.ndarray) -> CaseSlice:
    case = segmented(LabelPair(LIVER_ZYX, LIVER_ZYX), LabelPair(tumour_zyx, predicted_tumour_zyx))
    return pick_slice(case, np.zeros(SHAPE), (0.0, 1.0))


def test_the_slice_has_the_largest_tumour_else_the_largest_liver() -> None:
    assert slice_of(block(2, 3) | block(3, 5), block(0, 9)).index_z == 3
    assert slice_of(None, block(0, 9)).index_z == 0
    assert slice_of(EMPTY_ZYX, EMPTY_ZYX).index_z == 1
    empty = segmented(LabelPair(None, EMPTY_ZYX), LabelPair(None, EMPTY_ZYX))
    assert pick_slice(empty, np.zeros(SHAPE), (0.0, 1.0)).index_z == 2


def test_a_structure_is_where_the_reference_is_unless_that_is_unknown_or_empty() -> None:
    liver_zyx, other_zyx = block(1, 3), block(2, 4)
    assert LabelPair(liver_zyx, other_zyx).likely_zyx is liver_zyx
    assert LabelPair(None, other_zyx).likely_zyx is other_zyx
    assert LabelPair(EMPTY_ZYX, other_zyx).likely_zyx is other_zyx


def test_slice_is_windowed_to_0_and_1() -> None:
    image_zyx = np.zeros(SHAPE)
    image_zyx[1] = np.linspace(-100, 300, 24 * 30).reshape(24, 30)
    case_slice = pick_slice(
        segmented(LabelPair(LIVER_ZYX, LIVER_ZYX), LabelPair(None, EMPTY_ZYX)), image_zyx, (0.0, 200.0)
    )
    shown_yx, raw_yx = case_slice.image_yx, image_zyx[1]
    assert shown_yx.dtype == np.float32
    assert shown_yx.min() == 0
    assert shown_yx.max() == 1
    assert shown_yx[raw_yx == raw_yx.flat[360]] == pytest.approx(raw_yx.flat[360] / 200)


def test_a_wrong_shape_or_window_is_refused_by_case() -> None:
    with pytest.raises(DataError, match="case x: mask is 30×24×3 but the image is 30×24×4"):
        slice_of(EMPTY_ZYX[1:], EMPTY_ZYX)
    with pytest.raises(DataError, match="case x: window"):
        pick_slice(segmented(LabelPair(None, EMPTY_ZYX), LabelPair(None, EMPTY_ZYX)), np.zeros(SHAPE), (1.0, 1.0))


def test_an_unknown_reference_has_no_outline() -> None:
    drawn = slice_svg(slice_of(None, block(1, 4)), distances_known=True)
    assert 'class="tumour reference"' not in drawn
    assert 'class="tumour prediction"' in drawn


def test_the_scale_bar_needs_known_distances() -> None:
    assert "20 mm" in slice_svg(slice_of(None, EMPTY_ZYX), distances_known=True)
    assert " mm" not in slice_svg(slice_of(None, EMPTY_ZYX), distances_known=False)


def test_the_outline_follows_pixel_edges() -> None:
    mask_yx = np.zeros((4, 5), dtype=bool)
    mask_yx[1:3, 1:4] = True
    assert outline_path(mask_yx) == "M1 1h3v2h-3z"


def test_even_noise_gives_a_small_png() -> None:
    noise_yx = np.random.default_rng(0).random((700, 600)).astype(np.float32)
    png = encode_png(noise_yx)
    assert len(png) <= MAX_PNG_BYTES
    with Image.open(io.BytesIO(png)) as image:
        assert image.width / image.height == pytest.approx(600 / 700, rel=0.02)


def test_small_images_keep_their_pixels() -> None:
    ramp_yx = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    with Image.open(io.BytesIO(encode_png(ramp_yx))) as image:
        assert np.asarray(image) == pytest.approx(ramp_yx * 255, abs=0.5)
