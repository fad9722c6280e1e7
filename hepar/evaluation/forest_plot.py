"""Forest plots: differences of a comparison, one panel for each unit, and metrics by group, one panel for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hepar.errors import ParamsError
from hepar.evaluation.bootstrap import Estimate
from hepar.evaluation.chart_style import LIGHT, PAGE, PAGE_INCHES, Palette, draw_inter_rater, page_svg
from hepar.evaluation.comparison import ComparedMetric, Comparison
from hepar.evaluation.comparison_table import metric_label
from hepar.evaluation.inter_rater import INTER_RATER_DICE
from hepar.evaluation.paired import MIN_PATIENTS
from hepar.evaluation.subgroups import MetricInGroups
from hepar.imaging.display import MODALITY_MARKERS
from hepar.runtime.whole_files import whole_file

SUFFIXES = (".svg", ".png")
_UNITS = {"": "fraction", "mm": "mm", "ml": "ml", "per case": "per case"}
_WIDTH_INCHES = 9.5
_ROW_INCHES, _PANEL_INCHES, _TITLE_INCHES = 0.24, 0.75, 0.7


@dataclass(frozen=True)
class _Row:
    """An estimate, drawn hollow if an interval over so few patients means nothing."""

    label: str
    modality: str
    estimate: Estimate
    too_few: bool


def check_figure(path: Path) -> None:
    """Raise ParamsError unless the file name ends in one of `SUFFIXES`."""
    if path.suffix.lower() not in SUFFIXES:
        raise ParamsError(f"--figure is {path} but its name must end in {' or '.join(SUFFIXES)}")


def write_forest_plot(comparison: Comparison, path: Path) -> None:
    """Draw every row of a comparison; the same comparison gives the same bytes. Without rows it has only a title.

    Raises ParamsError as `check_figure` does, StorageError if the file cannot be written.
    """
    check_figure(path)
    style = {**LIGHT.style("forest"), "savefig.facecolor": LIGHT.page}
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
    with mpl.rc_context(style), whole_file(path) as partial:
        _draw(comparison).savefig(partial, dpi=150, metadata=metadata)


def groups_chart(metrics: Sequence[MetricInGroups]) -> str | None:
    """Metrics by group for the page of the report, with the agreement of two experts where it is known; None without
    any."""
    if not metrics:
        return None
    heights = [_PANEL_INCHES + _ROW_INCHES * len(metric.groups) for metric in metrics]
    with mpl.rc_context(PAGE.style("groups")):
        figure = Figure(figsize=(PAGE_INCHES, sum(heights)), layout="constrained")
        all_axes = figure.subplots(len(metrics), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, metric in zip(all_axes, metrics, strict=True):
            _draw_groups(axes, metric)
        return page_svg(figure, f"Forest plot of {', '.join(metric.title for metric in metrics)} by group")


def _draw_groups(axes: Axes, metric: MetricInGroups) -> None:
    rows = [
        _Row(f"{group.label}  ({group.estimate.patients})", group.modality, group.estimate, group.too_few)
        for group in metric.groups
    ]
    for place, group in enumerate(metric.groups):
        agreement = INTER_RATER_DICE.get((group.modality, metric.structure)) if metric.is_dice else None
        if agreement is not None:
            draw_inter_rater(axes, place, agreement)
    _draw_rows(axes, rows, PAGE)
    axes.set(xlim=_range(metric), title=metric.title)


def _range(metric: MetricInGroups) -> tuple[float, float]:
    """From the tenth below all that is drawn to 1, with a margin."""
    estimates = [group.estimate for group in metric.groups]
    bands = [INTER_RATER_DICE.get((group.modality, metric.structure)) for group in metric.groups if metric.is_dice]
    lowest = min(
        *(estimate.value or 0.0 for estimate in estimates),
        *(estimate.ci95[0] for estimate in estimates if estimate.ci95 is not None),
        *(band.band[0] for band in bands if band is not None),
        0.9,
    )
    low = math.floor(10 * lowest) / 10
    return low - 0.02 * (1 - low), 1 + 0.02 * (1 - low)


def _draw(comparison: Comparison) -> Figure:
    panels = [(unit, rows) for unit in _UNITS if (rows := [r for r in comparison.rows if r.metric.unit == unit])]
    heights = [_PANEL_INCHES + _ROW_INCHES * len(rows) for _, rows in panels]
    figure = Figure(figsize=(_WIDTH_INCHES, _TITLE_INCHES + sum(heights)), layout="constrained")
    figure.suptitle(_title(comparison), fontsize=10, parse_math=False)
    if panels:
        all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (unit, rows) in zip(all_axes, panels, strict=True):
            _draw_panel(axes, rows, _UNITS[unit], comparison.labels if len(comparison.cases) > 1 else {})
    return figure


def _title(comparison: Comparison) -> str:
    labels = comparison.labels
    first, *others = (labels[name] for name in (comparison.first, *comparison.cases))
    what = f"{others[0]} − {first}" if len(others) == 1 else f"Difference from {first}"
    few = any(row.result.too_few for row in comparison.rows)
    hollow = f"; hollow: fewer than {MIN_PATIENTS}, too few for an interval" if few else ""
    return f"{what}, with 95 % interval\n(patients){hollow}"


def _draw_panel(axes: Axes, rows: Sequence[ComparedMetric], unit: str, labels: Mapping[str, str]) -> None:
    """`labels` are those of the tables that the rows stand for, empty if there is only one."""
    axes.axvline(0, color=LIGHT.muted, linewidth=1)
    drawn = []
    for row in rows:
        versus = f"{labels[row.versus]}: " if labels else ""
        difference = row.result.difference
        label = f"{versus}{row.group} {metric_label(row.metric)}  ({difference.patients})"
        drawn.append(_Row(label, row.modality, difference, row.result.too_few))
    _draw_rows(axes, drawn, LIGHT)
    axes.set_xlabel(f"difference, {unit}")


def _draw_rows(axes: Axes, rows: Sequence[_Row], palette: Palette) -> None:
    for place, row in enumerate(rows):
        colour, estimate = palette.modality(row.modality), row.estimate
        assert estimate.value is not None  # of every row
        if estimate.ci95 is not None:
            style = (0, (3, 2)) if row.too_few else "-"
            axes.plot(estimate.ci95, [place] * 2, color=colour, linewidth=1.6, linestyle=style)
        axes.plot(
            [estimate.value],
            [place],
            marker=MODALITY_MARKERS.get(row.modality, "s"),
            markersize=6,
            markeredgecolor=colour,
            markerfacecolor=palette.page if row.too_few else colour,
            clip_on=False,
        )
    # a name may hold dollar signs, which would start a formula
    axes.set_yticks(range(len(rows)), [row.label for row in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
