"""Bland–Altman plots for the page of the report: a row of panels for each modality, a column for each quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from hepar.evaluation.agreement import QUANTITIES, Agreement, Interval
from hepar.evaluation.chart_style import PAGE, PAGE_INCHES, page_svg
from hepar.imaging.display import MODALITY_MARKERS

_ROW_INCHES = 3.1
_LINEAR = 1.0  # below it, the axis of a quantity that spans decades is linear
_DECADES = 30  # the spread of means from which an axis is logarithmic

Rows = Mapping[str, Sequence[Agreement | None]]


def agreement_chart(rows: Rows) -> str | None:
    """Differences against means, with bias and limits of agreement; None if no row has a quantity.

    `rows` are by modality, each with an entry for each of `QUANTITIES`. Bands are 95 % intervals. The difference axis
    shows all points and limits; intervals that go beyond it are cut off.
    """
    shown = {modality: row for modality, row in rows.items() if any(row)}
    if not shown:
        return None
    with mpl.rc_context(PAGE.style("agreement")):
        figure = Figure(figsize=(PAGE_INCHES, _ROW_INCHES * len(shown)), layout="constrained")
        grid = figure.subplots(len(shown), len(QUANTITIES), squeeze=False)
        for axes_row, (modality, row) in zip(grid, shown.items(), strict=True):
            for axes, quantity, agreement in zip(axes_row, QUANTITIES, row, strict=True):
                if agreement is None:
                    axes.set_axis_off()
                    continue
                _draw(axes, modality, agreement)
                axes.set_title(f"{modality}: {quantity.name.lower()}", pad=16)
                axes.set(xlabel=f"mean of both, {quantity.unit}", ylabel=f"predicted − reference, {quantity.unit}")
        return page_svg(figure, "Bland–Altman plots of liver volume, tumour volume and tumour burden by modality")


def _draw(axes: Axes, modality: str, agreement: Agreement) -> None:
    colour = PAGE.modality(modality)
    axes.axhline(0, color=PAGE.grid, linewidth=1.2, zorder=1)
    low, high = _range([*agreement.differences, *(value for value, _ in agreement.lines)])
    for (value, ci95), style in zip(agreement.lines, ("-", "--", "--"), strict=False):
        _draw_line(axes, value, ci95, style)
    axes.scatter(
        agreement.means,
        agreement.differences,
        s=24,
        color=colour,
        marker=MODALITY_MARKERS.get(modality, "s"),
        alpha=0.75,
        linewidths=0,
        zorder=3,
    )
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    _scale_means(axes, agreement.means)
    axes.text(0, 1.025, agreement.basis, transform=axes.transAxes, fontsize=8, color=PAGE.muted)


def _draw_line(axes: Axes, value: float, ci95: Interval | None, style: str) -> None:
    if ci95 is not None:
        axes.axhspan(*ci95, color=PAGE.grid, linewidth=0, zorder=0, alpha=0.8)
    axes.axhline(value, color=PAGE.ink, linewidth=1.3 if style == "-" else 1, linestyle=style, zorder=2)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The difference axis: zero and all values, with a margin; of a width of its own if all are zero."""
    low, high = min(*values, 0.0), max(*values, 0.0)
    margin = 0.14 * (high - low) or 1.0
    return low - margin, high + margin


def _scale_means(axes: Axes, means: Sequence[float]) -> None:
    """A logarithmic axis, linear near 0, where the means span decades, as volumes of tumours do."""
    low, high = min(means), max(means)
    if high > _DECADES * max(low, _LINEAR):
        axes.set_xscale("symlog", linthresh=_LINEAR, linscale=0.4)
        ticks = [tick for tick in (0, 1, 10, 100, 1000, 10_000) if low / 3 <= tick <= high * 3]
        axes.xaxis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(low / 1.6 if low > _LINEAR else -0.1, high * 1.6)
    else:
        margin = 0.08 * (high - low) or max(0.1 * high, 0.1)
        axes.set_xlim(low - margin, high + margin)
