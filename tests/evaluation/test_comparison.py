"""Comparison of tables of scores: groups, metrics by hand, corrections, and how it is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from score_csv import scores_csv

from hepar.errors import DataError, ParamsError
from hepar.evaluation.breakdown import Breakdown
from hepar.evaluation.comparison import DEFAULT_METRICS, METRICS, ComparedMetric, Comparison, compare_tables
from hepar.evaluation.comparison_table import comparison_table
from hepar.evaluation.forest_plot import write_forest_plot
from hepar.evaluation.paired import holm
from hepar.evaluation.score_table import ScoreTable, parse_scores
from hepar.evaluation.summary import Bootstrap

BOOTSTRAP = Bootstrap(1, 400)
GAINS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07)


def table(name: str, *rows: dict[str, Any]) -> ScoreTable:
    return parse_scores(scores_csv(rows), name)


def lesions(prefix: str, found: int, missed: int, false: int) -> dict[str, int]:
    return {
        f"lesion_{prefix}_true_positives": found,
        f"lesion_{prefix}_false_negatives": missed,
        f"lesion_{prefix}_false_positives": false,
    }


def livers(name: str, gains: tuple[float, ...], **common: Any) -> ScoreTable:
    rows = [{"case_id": f"c{n}", "liver_dice": 0.8 + gain, **common} for n, gain in enumerate(gains)]
    return table(name, *rows)


def by_name(comparison: Comparison) -> dict[tuple[str, str], ComparedMetric]:
    return {(row.group, row.metric.name): row for row in comparison.rows}


BEFORE, AFTER = livers("before", (0.0,) * 7), livers("after", GAINS)


def test_seven_gains_by_hand() -> None:
    (row,) = compare_tables([BEFORE, AFTER], DEFAULT_METRICS, (), BOOTSTRAP).rows
    assert (row.group, row.metric.name) == ("CT", "liver Dice")
    assert (row.result.first, row.result.second) == pytest.approx((0.8, 0.84))
    assert row.result.difference.value == pytest.approx(0.04)
    assert row.result.p == pytest.approx(2 / 2**7)
    assert row.p_holm == row.result.p  # the only test
    assert row.result.effect == 1
    assert (row.result.difference.n, row.result.difference.patients) == (7, 7)


def test_scores_of_one_side_are_left_out_of_that_metric() -> None:
    first = table("x", {"case_id": "a", "liver_dice": 0.5}, {"case_id": "b", "liver_dice": 0.7})
    second = table("y", {"case_id": "a", "liver_dice": 0.9}, {"case_id": "b", "liver_dice": None})
    (row,) = compare_tables([first, second], DEFAULT_METRICS, (), BOOTSTRAP).rows
    assert (row.result.first, row.result.second, row.result.difference.n) == (0.5, 0.9, 1)


def test_lesion_metrics_are_pooled_and_a_false_lesion_counts_where_the_other_has_none() -> None:
    first = table("x", {"case_id": "a", **lesions("iou>0", 1, 3, 1)}, {"case_id": "free", **lesions("iou>0", 0, 0, 2)})
    second = table("y", {"case_id": "a", **lesions("iou>0", 3, 1, 0)}, {"case_id": "free", **lesions("iou>0", 0, 0, 0)})
    rows = by_name(compare_tables([first, second], ("lesion recall", "lesion F1", "false lesions"), (), BOOTSTRAP))
    recall, f1, false = (rows["CT", name].result for name in ("lesion recall", "lesion F1", "false lesions"))
    assert (recall.first, recall.second, recall.difference.n) == (0.25, 0.75, 1)
    assert (f1.first, f1.second) == pytest.approx((2 / (2 + 3 + 1 + 2), 6 / (6 + 1)))
    assert (f1.difference.n, f1.tested) == (2, 1)  # without a mistake the second has no F1 of its own
    assert (false.first, false.second, false.difference.n) == (1.5, 0, 2)


def test_groups_are_modalities_and_sources_where_there_are_several() -> None:
    rows = [
        {"case_id": name, "modality": modality, "source": source, "liver_dice": 0.5}
        for name, modality, source in (("a", "CT", "A"), ("b", "CT", "B"), ("m", "MR", "A"))
    ]
    one, other = table("x", *rows), table("y", *rows)
    everything = compare_tables([one, other], ("liver Dice",), tuple(Breakdown), BOOTSTRAP)
    assert [row.group for row in everything.rows] == ["CT", "CT · A", "CT · B", "MR"]
    plain = compare_tables([one, other], ("liver Dice",), (Breakdown.MODALITY,), BOOTSTRAP)
    assert [row.group for row in plain.rows] == ["CT", "MR"]


def test_recall_by_size_where_both_tables_have_it() -> None:
    large = lesions("iou>0_>20 mm", 1, 0, 0)
    small = {"case_id": "a", **large, **lesions("iou>0", 2, 1, 0), **lesions("iou>0_<10 mm", 1, 1, 0)}
    better = small | lesions("iou>0", 3, 0, 0) | lesions("iou>0_<10 mm", 2, 0, 0)
    old = {"case_id": "a", **lesions("iou>0", 2, 1, 0)}
    rows = by_name(
        compare_tables([table("x", small), table("y", better)], ("lesion recall",), tuple(Breakdown), BOOTSTRAP)
    )
    result = rows["CT", "lesion recall, <10 mm"].result
    assert (result.first, result.second) == (0.5, 1)
    older = compare_tables([table("x", small), table("y", old)], ("lesion recall",), tuple(Breakdown), BOOTSTRAP)
    assert [row.metric.name for row in older.rows] == ["lesion recall"]
    assert older.lacking["y"] == tuple(f"lesion recall, {size}" for size in ("<10 mm", "10-20 mm", ">20 mm"))
    assert "lacks their columns: lesion recall, <10 mm, " in comparison_table(older)
    assert len(compare_tables([table("x", small), table("y", better)], ("lesion recall",), (), BOOTSTRAP).rows) == 1


def test_a_size_that_all_lesions_have_is_no_row_of_its_own() -> None:
    """In CT all lesions are small; MR has a large one beside."""
    small = {"case_id": "a", **lesions("iou>0", 1, 1, 0), **lesions("iou>0_<10 mm", 1, 1, 0)}
    both = {"case_id": "m", "modality": "MR", **lesions("iou>0", 2, 1, 0), **lesions("iou>0_<10 mm", 1, 1, 0)}
    tables = [table(name, small, both) for name in ("x", "y")]
    rows = compare_tables(tables, ("lesion recall",), (Breakdown.SIZE,), BOOTSTRAP).rows
    assert [(row.group, row.metric.name) for row in rows] == [
        ("CT", "lesion recall"),
        ("MR", "lesion recall"),
        ("MR", "lesion recall, <10 mm"),
    ]


def test_rows_of_too_few_patients_are_no_part_of_holms_family() -> None:
    few = tuple(-gain for gain in GAINS[:5])
    comparison = compare_tables([BEFORE, AFTER, livers("few", few)], DEFAULT_METRICS, (), BOOTSTRAP)
    assert comparison.family == 1
    assert [row.p_holm for row in comparison.rows] == [pytest.approx(2 / 2**7), None]
    text = comparison_table(comparison)
    assert "| 0.062 | – | −1.00 | 5 (!) | 5 |" in text
    assert "the number of tests of at least 6 patients, 1." in text


def test_the_burden_error_is_compared_by_its_size() -> None:
    one, other = table("x", {"case_id": "a", "burden_error": -0.3}), table("y", {"case_id": "a", "burden_error": 0.1})
    (row,) = compare_tables([one, other], ("tumour burden error",), (), BOOTSTRAP).rows
    assert (row.result.first, row.result.second) == (0.3, 0.1)


def test_the_first_is_compared_with_all_others_in_one_family() -> None:
    third = livers("third", tuple(-gain for gain in GAINS[:6]))
    comparison = compare_tables([BEFORE, AFTER, third], DEFAULT_METRICS, (), BOOTSTRAP)
    assert [(row.versus, row.result.difference.n) for row in comparison.rows] == [("after", 7), ("third", 6)]
    raw = [row.result.p for row in comparison.rows if row.result.p is not None]
    assert raw == pytest.approx([2 / 2**7, 2 / 2**6])
    assert [row.p_holm for row in comparison.rows] == holm(raw) == pytest.approx([2 * 2 / 2**7, 2 / 2**6])
    assert comparison.cases["third"].only_first == ("c6",)
    text = comparison_table(comparison)
    assert "### after − before" in text
    assert "### third − before" in text
    assert "Not compared, since only before has them: 1 (c6)." in text
    assert "the number of tests of at least 6 patients, 2." in text


def test_unknown_metrics_and_equal_names_are_refused() -> None:
    with pytest.raises(ParamsError, match="metric 'dice' is unknown: choose from liver Dice, "):
        compare_tables([BEFORE, AFTER], ("dice",), (), BOOTSTRAP)
    with pytest.raises(DataError, match="before is given twice"):
        compare_tables([BEFORE, BEFORE], DEFAULT_METRICS, (), BOOTSTRAP)
    assert set(DEFAULT_METRICS) < {metric.name for metric in METRICS}


def test_the_table_marks_rows_of_too_few_patients() -> None:
    lines = comparison_table(compare_tables([BEFORE, AFTER], DEFAULT_METRICS, (), BOOTSTRAP)).splitlines()
    assert lines[4].startswith("| CT | liver Dice ↑ | 0.800 | 0.840 | +0.040 | 0.0")
    assert lines[4].endswith("| 0.016 | 0.016 | +1.00 | 7 | 7 |")
    assert not any("Too few patients" in line for line in lines)
    few = comparison_table(
        compare_tables([livers("a|b", (0.0,) * 5), livers("b", GAINS[:5])], DEFAULT_METRICS, (), BOOTSTRAP)
    )
    assert "| 5 (!) | 5 |" in few
    assert "(!) Too few patients in 1 of 1 rows: with fewer than 6 patients an interval means nothing" in few
    assert r"### b − a\|b" in few


def test_one_patient_has_neither_interval_nor_p() -> None:
    (line,) = [
        line
        for line in comparison_table(
            compare_tables([livers("x", (0.0,)), livers("y", (0.1,))], DEFAULT_METRICS, (), BOOTSTRAP)
        ).splitlines()
        if line.startswith("| CT")
    ]
    assert line == "| CT | liver Dice ↑ | 0.800 | 0.900 | +0.100 | – | – | – | +1.00 | 1 (!) | 1 |"


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("/tmp/runs/a/report", "/tmp/runs/b/report"), ("a", "b")),
        (("runs/a", "runs/a/report"), ("a", "a/report")),
        (("runs/a", "models:/m@champion", "runs/b"), ("a", "models:/m@champion", "b")),
        (("runs/a", "models:/m/1"), ("runs/a", "models:/m/1")),
        ((".", "scores"), (".", "scores")),
    ],
)
def test_columns_are_named_by_what_distinguishes_the_paths(names: tuple[str, ...], labels: tuple[str, ...]) -> None:
    comparison = compare_tables([livers(name, GAINS) for name in names], DEFAULT_METRICS, (), BOOTSTRAP)
    assert tuple(comparison.labels.values()) == labels
    text = comparison_table(comparison)
    assert f"| group | metric | {labels[0]} | {labels[1]} | difference |" in text
    assert f"### {names[1]} − {names[0]}" in text


def test_a_comparison_without_rows_says_so_and_has_a_figure(tmp_path: Path) -> None:
    one, other = table("x", {"case_id": "a", "liver_dice": None}), table("y", {"case_id": "a", "liver_dice": 1})
    comparison = compare_tables([one, other], ("liver Dice",), (), BOOTSTRAP)
    assert comparison.rows == ()
    text = comparison_table(comparison)
    assert "none of the metrics has a value in both tables" in text
    assert "|" not in text
    write_forest_plot(comparison, tmp_path / "empty.png")
    with Image.open(tmp_path / "empty.png") as picture:
        assert picture.format == "PNG"


def test_everything_is_in_the_json() -> None:
    shorter = livers("after", GAINS[:5])
    found = json.loads(json.dumps(compare_tables([BEFORE, shorter], DEFAULT_METRICS, (), BOOTSTRAP).as_json()))
    (comparison,) = found["comparisons"]
    assert (found["first"], comparison["second"]) == ("before", "after")
    assert comparison["only_first"] == ["c5", "c6"]
    (metric,) = comparison["metrics"]
    assert metric["difference"] == pytest.approx(0.03)
    assert metric["too_few_patients"] is True
    assert (metric["p_wilcoxon"], metric["p_holm"]) == (pytest.approx(2 / 2**5), None)


@pytest.mark.parametrize("suffix", [".svg", ".png", ".SVG"])
def test_a_forest_plot_is_drawn_and_reproducible(tmp_path: Path, suffix: str) -> None:
    mm = [{"case_id": f"c{n}", "liver_dice": 0.8, "liver_hd95_mm": 4.0 + n} for n in range(7)]
    comparison = compare_tables(
        [table("$x$", *mm), livers("y", GAINS, liver_hd95_mm=3.0)], DEFAULT_METRICS, (), BOOTSTRAP
    )
    for name in ("one", "two"):
        write_forest_plot(comparison, tmp_path / f"{name}{suffix}")
    drawn = (tmp_path / f"one{suffix}").read_bytes()
    assert drawn == (tmp_path / f"two{suffix}").read_bytes()
    if suffix.lower() == ".svg":
        text = drawn.decode()
        assert "y − $x$, with 95 % interval</text>" in text
        assert "CT liver HD95, mm ↓  (7)" in text
        assert "difference, mm" in text
        assert "hollow" not in text


def test_a_figure_of_another_format_is_refused(tmp_path: Path) -> None:
    comparison = compare_tables([BEFORE, AFTER], DEFAULT_METRICS, (), BOOTSTRAP)
    with pytest.raises(ParamsError, match=r"plot\.pdf but its name must end in \.svg or \.png"):
        write_forest_plot(comparison, tmp_path / "plot.pdf")
    assert list(tmp_path.iterdir()) == []
