"""A comparison as text in Markdown. Numbers are rounded here, as in the tables of the report."""

from __future__ import annotations

from collections.abc import Sequence

from hepar.evaluation.comparison import IOU_ABOVE, ComparedMetric, Comparison, Metric
from hepar.evaluation.paired import EFFECT, MIN_PATIENTS
from hepar.evaluation.tables import UNDEFINED, interval, number

MAX_NAMED = 50
TOO_FEW = "(!)"
NO_ROWS = "Nothing can be compared: none of the metrics has a value in both tables."
_DIGITS = {"": 3, "mm": 2, "ml": 2, "per case": 2}


def comparison_table(comparison: Comparison) -> str:
    """One table for each table that the first is compared with, and below it what was not compared and why."""
    parts = [_one_table(comparison, versus) for versus in comparison.cases]
    return "\n\n".join([*parts, _legend(comparison)])


def metric_label(metric: Metric) -> str:
    """The name of a metric with its unit, and an arrow that points to where it is better."""
    unit = f", {metric.unit}" if metric.unit else ""
    return f"{metric.name}{unit} {'↑' if metric.higher_is_better else '↓'}"


def signed(value: float, digits: int) -> str:
    """A number with its sign; 0 has none."""
    text = number(value, digits)
    return text if text.startswith("\N{MINUS SIGN}") or float(text) == 0 else f"+{text}"


def _one_table(comparison: Comparison, versus: str) -> str:
    paired, rows = comparison.cases[versus], [row for row in comparison.rows if row.versus == versus]
    first, second = _cell(comparison.first), _cell(versus)
    labels = comparison.labels
    head = [
        "group",
        "metric",
        _cell(labels[comparison.first]),
        _cell(labels[versus]),
        "difference",
        "95 % interval",
        "p",
        "p (Holm)",
        "effect",
        "patients",
        "cases",
    ]
    lines = [f"### {second} − {first}", "", _line(head), "|---" * 2 + "|---:" * 9 + "|"]
    lines = [*lines, *(_line(_cells(row)) for row in rows)] if rows else [*lines[:2], NO_ROWS]
    lines += ["", f"Cases that both have: {len(paired.pairs)}."]
    for name, left in ((comparison.first, paired.only_first), (versus, paired.only_second)):
        if left:
            lines.append(f"Not compared, since only {name} has them: {len(left)} ({_named(left)}).")
    if lacking := comparison.lacking[versus]:
        lines.append(f"Not compared, since one of the tables lacks their columns: {', '.join(lacking)}.")
    if few := [row for row in rows if row.result.too_few]:
        lines.append(
            f"{TOO_FEW} Too few patients in {len(few)} of {len(rows)} rows: with fewer than {MIN_PATIENTS} patients an"
            " interval means nothing, and no signed-rank test can reach p < 0.05."
        )
    return "\n".join(lines)


def _cells(row: ComparedMetric) -> list[str]:
    result, difference = row.result, row.result.difference
    assert difference.value is not None  # of every row
    digits = _DIGITS[row.metric.unit]
    return [
        _cell(row.group),
        metric_label(row.metric),
        number(result.first, digits),
        number(result.second, digits),
        signed(difference.value, digits),
        interval(difference.ci95, digits) or UNDEFINED,
        _p(result.p),
        _p(row.p_holm),
        UNDEFINED if result.effect is None else signed(result.effect, 2),
        f"{difference.patients} {TOO_FEW}" if result.too_few else str(difference.patients),
        str(difference.n),
    ]


def _legend(comparison: Comparison) -> str:
    resamples = comparison.bootstrap.resamples
    return (
        f"Intervals: 95 %, {resamples} bootstrap resamples of patients. p: two-sided Wilcoxon signed-rank test over"
        f" patients, with Holm's correction for the number of tests of at least {MIN_PATIENTS} patients,"
        f" {comparison.family}. Effect: {EFFECT}, from −1 (every change is a decrease) to +1 (every one an increase)."
        f" Lesions count as detected at IoU > {IOU_ABOVE:g}."
    )


def _named(case_ids: Sequence[str]) -> str:
    more = f" and {len(case_ids) - MAX_NAMED} more" if len(case_ids) > MAX_NAMED else ""
    return ", ".join(case_ids[:MAX_NAMED]) + more


def _p(value: float | None) -> str:
    if value is None:
        return UNDEFINED
    return "< 0.001" if value < 0.001 else number(value, 3)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
