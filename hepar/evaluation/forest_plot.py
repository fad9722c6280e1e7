"""A comparison as a forest plot: differences with their intervals, in one panel for each unit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hepar.errors import ParamsError
from hepar.evaluation.chart_style import rc_style
from hepar.evaluation.comparison import ComparedMetric, Comparison
from hepar.evaluation.comparison_table import metric_label
from hepar.evaluation.paired import MIN_PATIENTS
from hepar.imaging.display import MODALITY_MARKERS
from hepar.runtime.whole_files import whole_file

SUFFIXES = (".svg", ".png")
_INK, _MUTED, _GRID, _PAGE = "#1a2129", "#5d6875", "#e7eaee", "#ffffff"  # as the report in light mode
_COLOURS = {"CT": "#0072b2", "MR": "#c85200"}
_UNITS = {"": "fraction", "mm": "mm", "ml": "ml", "per case": "per case"}
_WIDTH_INCHES = 9.5
_ROW_INCHES, _PANEL_INCHES, _TITLE_INCHES = 0.24, 0.75, 0.7


def check_figure(path: Path) -> None:
    """Raise ParamsError unless the file name ends in one of `SUFFIXES`."""
    if path.suffix.lower() not in SUFFIXES:
        raise ParamsError(f"--figure is {path} but its name must end in {' or '.join(SUFFIXES)}")


def write_forest_plot(comparison: Comparison, path: Path) -> None:
    """Draw every row of a comparison; the same comparison gives the same bytes. Without rows it has only a title.

    Raises ParamsError as `check_figure` does, StorageError if the file cannot be written.
    """
    check_figure(path)
    style = {**rc_style(_INK, _MUTED, _GRID), "svg.hashsalt": "forest", "savefig.facecolor": _PAGE}
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
    with mpl.rc_context(style), whole_file(path) as partial:
        _draw(comparison).savefig(partial, dpi=150, metadata=metadata)


def _draw(comparison: Comparison) -> Figure:
    panels = [(unit, rows) for unit in _UNITS if (rows := [r for r in comparison.rows if r.metric.unit == unit])]
    heights = [_PANEL_INCHES + _ROW_INCHES * len(rows) for _, rows in panels]
    figure = Figure(figsize=(_WIDTH_INCHES, _TITLE_INCHES + sum(heights)), layout="constrained")
    figure.suptitle(_title(comparison), fontsize=10, parse_math=False)
    if panels:
        all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (unit, rows) in zip(all_axes, panels, strict=True):
            _draw_panel(axes, rows, _UNITS[unit], several=len(comparison.cases) > 1)
    return figure


def _title(comparison: Comparison) -> str:
    names = list(comparison.cases)
    what = f"{names[0]} − {comparison.first}" if len(names) == 1 else f"Difference from {comparison.first}"
    few = any(row.result.too_few for row in comparison.rows)
    hollow = f"; hollow: fewer than {MIN_PATIENTS}, too few for an interval" if few else ""
    return f"{what}, with 95 % interval\n(patients){hollow}"


def _draw_panel(axes: Axes, rows: Sequence[ComparedMetric], unit: str, several: bool) -> None:
    axes.axvline(0, color=_MUTED, linewidth=1)
    labels = []
    for place, row in enumerate(rows):
        difference, colour = row.result.difference, _COLOURS.get(row.modality, _INK)
        assert difference.value is not None  # of every row
        if difference.ci95 is not None:
            style = (0, (3, 2)) if row.result.too_few else "-"
            axes.plot(difference.ci95, [place] * 2, color=colour, linewidth=1.6, linestyle=style)
        axes.plot(
            [difference.value],
            [place],
            marker=MODALITY_MARKERS.get(row.modality, "s"),
            markersize=6,
            markeredgecolor=colour,
            markerfacecolor=_PAGE if row.result.too_few else colour,
        )
        versus = f"{row.versus}: " if several else ""
        labels.append(f"{versus}{row.group} {metric_label(row.metric)}  ({difference.patients})")
    # a file name may hold dollar signs, which would start a formula
    axes.set_yticks(range(len(rows)), labels, parse_math=False)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel=f"difference, {unit}")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
