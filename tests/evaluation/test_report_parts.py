"""The parts of the report's page: outlines, stacks of slices, examples, groups, what was not scored, provenance."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from hepar.cases import Cohort
from hepar.evaluation.confidence_charts import froc_chart, reliability_chart
from hepar.evaluation.examples import pick_examples
from hepar.evaluation.forest_plot import groups_chart
from hepar.evaluation.label_pairs import CaseIdentity, LabelPair, SegmentedCase
from hepar.evaluation.not_scored import MAX_NAMED, list_not_scored
from hepar.evaluation.outlines import outline_path, outline_paths
from hepar.evaluation.pictures import stack_svg
from hepar.evaluation.provenance import trace
from hepar.evaluation.report_folder import Report
from hepar.evaluation.scores import CaseScores, score_case
from hepar.evaluation.slices import pick_slice
from hepar.evaluation.stacks import MAX_SLICES, MAX_STACK_BYTES, ROLES, SliceStack
from hepar.evaluation.subgroups import MetricInGroups, metrics_in_groups
from hepar.evaluation.summary import Bootstrap
from hepar.inference.model_folder import ModelFolder

BOOTSTRAP = Bootstrap(seed=1, resamples=100)


def filled(path: str, shape: tuple[int, int]) -> np.ndarray:
    """The pixels inside the loops of a path, by the even-odd rule."""
    inside_yx = np.zeros(shape, dtype=bool)
    for start, loop in re.findall(r"M(\d+ \d+)((?:[hv]-?\d+)+)z", path):
        x, y = map(int, start.split())
        for axis, length in re.findall(r"([hv])(-?\d+)", loop):
            if axis == "h":
                x += int(length)
            else:
                inside_yx[min(y, y + int(length)) : max(y, y + int(length)), x:] ^= True
                y += int(length)
        # z draws the line back to the start, which is vertical
        y_start = int(start.split()[1])
        inside_yx[min(y, y_start) : max(y, y_start), x:] ^= True
    return inside_yx


@pytest.mark.parametrize("seed", range(8))
def test_an_outline_encloses_its_mask_and_nothing_else(seed: int) -> None:
    mask_yx = np.random.default_rng(seed).random((13, 17)) > 0.4
    assert np.array_equal(filled(outline_path(mask_yx), mask_yx.shape), mask_yx)


def test_outlines_of_pixels_that_touch_at_a_corner_and_of_a_hole() -> None:
    assert outline_path(np.array([[True, False], [False, True]])) == "M0 0h1v1h-1zM1 1h1v1h-1z"
    ring_yx = np.ones((3, 3), dtype=bool)
    ring_yx[1, 1] = False
    assert outline_path(ring_yx).count("z") == 2
    assert outline_path(np.zeros((3, 3), dtype=bool)) == ""


def test_outlines_with_too_many_corners_become_coarser() -> None:
    blocks_yx = np.kron(np.indices((8, 8)).sum(axis=0) % 2, np.ones((4, 4), int)).astype(bool)  # 32 squares of 4 pixels
    assert outline_paths([blocks_yx], max_corners=128) == [outline_path(blocks_yx)]
    (coarse,) = outline_paths([blocks_yx], max_corners=127)
    assert coarse == "M0 0h32v32h-32z"
    noise_yx = np.random.default_rng(0).random((300, 300)) > 0.5
    assert len("".join(outline_paths([noise_yx] * 4, max_corners=2000))) <= 8 * 2000


def scan(tumour_z: int | None, slices: int = 12, liver: bool = True, size: int = 40) -> SegmentedCase:
    """A case with a liver in all slices but the two at each end, and a tumour in one of them that is missed."""
    shape = (slices, size, size)
    liver_zyx, tumour_zyx = np.zeros(shape, bool), np.zeros(shape, bool)
    liver_zyx[2 : slices - 2, 12:28, 12:28] = liver
    if tumour_z is not None:
        tumour_zyx[tumour_z, 14:20, 14:20] = True
    identity = CaseIdentity("x", "p", "CT", "", "A")
    return SegmentedCase(
        identity, LabelPair(None, liver_zyx), LabelPair(tumour_zyx, np.zeros(shape, bool)), (5.0, 2.0, 2.0), True
    )


def stack_of(case: SegmentedCase) -> SliceStack:
    shape = case.tumour.prediction_zyx.shape
    image_zyx = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    return pick_slice(case, image_zyx, (-2.0, 2.0)).stack


def test_a_stack_holds_the_slices_of_the_masks_and_one_more_at_each_end() -> None:
    stack = stack_of(scan(tumour_z=4))
    assert stack.indices_z == tuple(range(1, 11))
    assert stack.indices_z[stack.key] == 4
    assert stack.size_yx == (36, 36)  # 16 pixels and 20 mm around them
    masks_nkyx = stack.masks()
    assert masks_nkyx.sum(axis=(2, 3))[stack.key].tolist() == [0, 256, 36, 0]
    assert ROLES[2] == ("tumour", "reference")
    assert np.argwhere(masks_nkyx[stack.key, 2])[0].tolist() == [14 - 2, 14 - 2]


def test_a_stack_without_masks_is_the_whole_scan() -> None:
    stack = stack_of(scan(None, liver=False))
    assert (stack.indices_z, stack.key) == (tuple(range(12)), 6)
    assert stack.size_yx == (40, 40)


def test_a_long_scan_is_thinned_but_keeps_its_key_slice() -> None:
    for tumour_z in (77, 78, 200):
        stack = stack_of(scan(tumour_z, slices=300))
        assert len(stack.indices_z) <= MAX_SLICES
        assert stack.indices_z[stack.key] == tumour_z
        assert (stack.indices_z[0], stack.indices_z[-1]) == (1, 298)


def test_even_noise_gives_a_small_stack() -> None:
    stack = stack_of(scan(None, slices=40, liver=False, size=400))
    assert 0.5 * MAX_STACK_BYTES < sum(map(len, stack.jpegs)) <= MAX_STACK_BYTES
    with Image.open(io.BytesIO(stack.jpegs[0])) as image:
        assert (image.mode, image.width) == ("L", image.height)


def test_a_drawn_stack_shows_its_key_slice_first() -> None:
    drawn = stack_svg('a"<b>', stack_of(scan(tumour_z=4)), distances_known=True)
    groups = re.findall(r'<g class="(slice[^"]*)" data-z="(\d+)">(.*?)(?=<g class="s)', drawn)
    assert [name for name, _, _ in groups].count("slice current") == 1
    (current,) = (content for name, index_z, content in groups if name == "slice current" and index_z == "4")
    assert 'class="tumour reference"' in current
    assert 'class="liver reference"' not in drawn, "it is unknown"
    assert drawn.count('class="tumour reference"') == 1
    assert 'aria-label="Slices of a&#34;&lt;b&gt;"' in drawn


def strip(voxels: int, row: int = 0) -> np.ndarray:
    mask_zyx = np.zeros((1, 8, 60), dtype=bool)
    mask_zyx[0, row, :voxels] = True
    return mask_zyx


def scored(
    case_id: str,
    liver: int | None = 40,
    tumour: int | None = 20,
    modality: str = "CT",
    source: str = "A",
    sequence: str = "",
) -> CaseScores:
    """A case of 40 voxels of liver and 20 of tumour, by how many are predicted; None: the reference is unknown."""
    return score_case(
        SegmentedCase(
            CaseIdentity(case_id, f"p-{case_id}", modality, sequence, source),
            LabelPair(None if liver is None else strip(40), strip(liver or 0)),
            LabelPair(None if tumour is None else strip(20, row=4), strip(tumour or 0, row=4)),
            (1.0, 1.0, 1.0),
            True,
        )
    )


def places(scores: list[CaseScores]) -> list[tuple[str, str, str]]:
    return [(example.place, example.structure, example.case.identity.case_id) for example in pick_examples(scores)]


def test_worst_median_and_best_of_each_modality() -> None:
    scores = [scored(f"c{tumour}", tumour=tumour) for tumour in (20, 3, 11, 7)]
    scores += [scored("mr", tumour=5, modality="MR")]
    assert places(scores) == [
        ("worst", "tumour", "c3"),
        ("median", "tumour", "c7"),
        ("best", "tumour", "c20"),
        ("only case", "tumour", "mr"),
    ]


def test_cases_are_ranked_by_liver_if_few_have_a_tumour() -> None:
    scores = [scored(f"c{liver}", liver=liver, tumour=None) for liver in (40, 30, 20)] + [scored("t", liver=35)]
    assert places(scores) == [("worst", "liver", "c20"), ("median", "liver", "c30"), ("best", "liver", "c40")]
    assert places([scored("a"), scored("b", tumour=2)]) == [("worst", "tumour", "b"), ("best", "tumour", "a")]
    assert places([scored("nothing", liver=None, tumour=None)]) == []


def groups_of(metrics: list[MetricInGroups], title: str) -> dict[str, tuple[float | None, int]]:
    (found,) = (metric for metric in metrics if metric.title == title)
    return {group.label: (group.estimate.value, group.estimate.patients) for group in found.groups}


def test_groups_are_modalities_sources_sequences_and_sizes() -> None:
    scores = [
        scored("a", source="A", sequence="T1", modality="MR"),
        scored("b", source="B", sequence="T1", modality="MR", tumour=0),
        scored("c", source="B", sequence="", modality="MR", liver=20, tumour=None),
        scored("d", modality="CT", liver=None),
    ]
    metrics = metrics_in_groups(scores, BOOTSTRAP)
    assert groups_of(metrics, "Liver Dice") == {
        "MR, all": (pytest.approx((2 + 2 / 3) / 3), 3),
        "MR · A": (1, 1),
        "MR · B": (pytest.approx((1 + 2 / 3) / 2), 2),
        "MR · no sequence given": (pytest.approx(2 / 3), 1),
        "MR · T1": (1, 2),
    }
    # 20 voxels of 1 mm³ are a lesion of 3.4 mm
    assert groups_of(metrics, "Lesion recall, any overlap") == {
        "CT, all": (1, 1),
        "CT · lesions <10 mm": (1, 1),
        "MR, all": (0.5, 2),
        "MR · A": (1, 1),
        "MR · B": (0, 1),
        "MR · T1": (0.5, 2),
        "MR · lesions <10 mm": (0.5, 2),
    }
    assert groups_of(metrics, "Tumour Dice")["MR, all"] == (0.5, 2)
    drawn = groups_chart(metrics)
    assert drawn is not None
    assert "MR · no sequence given  (1)" in drawn


def test_groups_without_a_metric_are_left_out() -> None:
    assert metrics_in_groups([scored("a", liver=None, tumour=None)], BOOTSTRAP) == []
    assert groups_chart([]) is None


def test_what_was_not_scored_is_named_with_its_reason() -> None:
    free = score_case(
        SegmentedCase(
            CaseIdentity("free", "p", "CT", "", "A"),
            LabelPair(strip(40), strip(0)),
            LabelPair(strip(0), strip(0)),
            (1.0, 1.0, 1.0),
            distances_known=False,
        )
    )
    rows = list_not_scored([scored("b", liver=None), scored("a", liver=None, tumour=None), free], {})
    assert [(row.what, row.cases) for row in rows] == [
        ("Everything about the liver", ("a", "b")),
        ("Everything about tumours and lesions", ("a",)),
        ("Volumes, distances and lesion sizes", ("free",)),
        ("Tumour Dice", ("free",)),
        ("Tumour burden", ("free",)),
    ]
    assert rows[0].why == "the reference liver is unknown"
    assert list_not_scored([scored("a")], {}) == []


def test_livers_that_are_missing_from_the_reference_are_named() -> None:
    """Without a liver in the prediction either there is no Dice, with one it is 0."""

    def case(name: str, predicted: int) -> CaseScores:
        pairs = LabelPair(strip(0), strip(predicted)), LabelPair(None, strip(0))
        return score_case(SegmentedCase(CaseIdentity(name, name, "CT", "", "A"), *pairs, (1.0, 1.0, 1.0), True))

    rows = list_not_scored([case("neither", 0), case("wrong", 5), scored("right", tumour=None)], {})
    assert [(row.what, row.cases) for row in rows if row.what.startswith("Liver Dice")] == [
        ("Liver Dice", ("neither",)),
        ("Liver Dice above 0", ("wrong",)),
    ]


def test_a_structure_that_was_left_out_is_no_unknown_reference() -> None:
    facts = {Report.NOT_SCORED: "liver: not taught to the model"}
    (row,) = list_not_scored([scored("a", liver=None)], facts)
    assert (row.what, row.why, row.cases) == ("Everything about the liver", "not taught to the model", ())


def test_of_many_names_some_are_given() -> None:
    one = scored("c", liver=None)
    many = [replace(one, identity=replace(one.identity, case_id=f"c{n:03d}")) for n in range(MAX_NAMED + 3)]
    (row,) = list_not_scored(many, {})
    assert row.named.endswith(f"c{MAX_NAMED - 1:03d} and 3 more")


def test_provenance_goes_from_the_cohort_to_the_scores() -> None:
    sha256 = "0123456789abcdef" * 4
    facts = {
        Report.COMMIT: "abc",
        Report.TEST_SET: sha256,
        Cohort.KIND: sha256,
        Report.SOURCES: "lits (CC0): 2",
        ModelFolder.POOL: "",
        "mirror_axes": "",
        Report.NOT_SCORED: "liver: not taught",
        "note": "mine",
    }
    steps = trace(facts)
    assert [step.title for step in steps] == ["Cohort", "Training pool", "Predictions", "Scores", "Other"]
    assert [(fact.name, fact.shown) for step in steps for fact in step.facts] == [
        ("cohort", "0123456789ab…"),
        ("test sources", "lits (CC0): 2"),
        ("pool", "not known"),
        ("mirror axes", "none"),
        ("test set", "0123456789ab…"),
        ("git commit", "abc"),
        ("note", "mine"),
    ]
    assert steps[0].facts[0].full == sha256
    assert trace({}) == []


def confident(lesions: int, bins: list[dict[str, float]]) -> dict[str, dict[str, object]]:
    def estimate(value: float) -> dict[str, object]:
        return {"value": value, "ci95": [value - 0.1, value], "n": 4}

    curve = {"confidence": [0.9, 0.5], "false_positives_per_case": [0.0, 1.5], "sensitivity": [0.5, 0.75]}
    froc = {
        "sensitivity": {rate: estimate(0.5 if float(rate) < 1.5 else 0.75) for rate in ("0.5", "1", "2", "4")},
        "mean": estimate(0.6),
        "curve": curve,
        "lesions": lesions,
        "candidates": 9,
        "n": 4,
    }
    calibration = {"ece": estimate(0.1), "bins": bins}
    return {"tumour": {"froc": froc, "reliability": {"voxels": calibration, "lesions": calibration}}}


BINS = [
    {"low": 0.0, "high": 0.5, "count": 9000, "mean_probability": 0.02, "fraction_positive": 0.01},
    {"low": 0.5, "high": 1.0, "count": 30, "mean_probability": 0.8, "fraction_positive": 0.6},
]
NO_BINS = [dict.fromkeys(("low", "high", "count"), 0) | {"mean_probability": None, "fraction_positive": None}]


def test_curves_of_confidence_are_drawn_for_modalities_that_have_them() -> None:
    metrics = {"CT": confident(8, BINS), "MR": confident(0, NO_BINS)}
    froc, reliability = froc_chart(metrics), reliability_chart(metrics)
    assert froc is not None
    assert reliability is not None
    assert "CT (lesions: 8, cases: 4)" in froc
    assert "MR (" not in froc
    assert ">Voxels</text>" in reliability
    assert ">Lesion candidates</text>" in reliability
    assert (">CT</text>" in reliability, ">MR</text>" in reliability) == (True, False)


def test_without_confidences_no_curve_is_drawn() -> None:
    for metrics in ({}, {"MR": confident(0, NO_BINS)}, {"MR": confident(0, [])}):
        assert froc_chart(metrics) is None
        assert reliability_chart(metrics) is None
