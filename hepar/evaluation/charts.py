"""Charts for the report, as inline SVG in the CSS variables of the page, so that they follow light and dark mode.

Matplotlib draws in the placeholder colours below, which are then replaced by `var(--name)`. The same input gives the
same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hepar.cases import STRUCTURES
from hepar.evaluation.chart_style import rc_style
from hepar.evaluation.scores import CaseScores
from hepar.imaging.display import MODALITY_MARKERS

_CSS_VARIABLES = {
    "#010203": "ink",
    "#010204": "muted",
    "#010205": "grid",
    "#010206": "ct",
    "#010207": "mr",
    "#010208": "page",
}
_INK, _MUTED, _GRID, _CT, _MR, _PAGE = _CSS_VARIABLES
_MODALITY_COLOURS = {"CT": _CT, "MR": _MR}
_STYLE = rc_style(_INK, _MUTED, _GRID)
_WIDTH_INCHES = 10.5
_MAX_POINTS = 250
MAX_CURVES = 16


def dice_chart(scores: Sequence[CaseScores], metrics: dict[str, Any]) -> str | None:
    """Liver and tumour Dice of each case as dots, with mean and 95 % interval; None if no Dice is defined."""
    rows = []
    for modality in metrics:
        for structure in STRUCTURES:
            values = [getattr(case, structure).dice for case in scores if case.identity.modality == modality]
            defined = sorted(value for value in values if value is not None)
            if defined:
                rows.append((modality, structure, defined))
    if not rows:
        return None
    with mpl.rc_context({**_STYLE, "svg.hashsalt": "dice"}):
        figure = Figure(figsize=(_WIDTH_INCHES, 0.55 * len(rows) + 0.75), layout="constrained")
        axes = figure.add_subplot()
        for row, (modality, structure, values) in enumerate(rows):
            _draw_dots(axes, row, modality, values, metrics[modality][structure]["dice"])
        axes.set_yticks(
            range(len(rows)), [f"{modality} {structure} ({len(dots)})" for modality, structure, dots in rows]
        )
        axes.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5), xlabel="Dice")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        return _to_svg(figure)


def volume_chart(scores: Sequence[CaseScores]) -> str | None:
    """Predicted against reference volume of liver and tumour in ml; None if no volume is known.

    The tumour axes are linear up to 1 ml and logarithmic above, so that missed and false-positive tumours (0 ml) are on
    the chart.
    """
    panels = [(structure, points) for structure in STRUCTURES if (points := _volumes(scores, structure))]
    if not panels:
        return None
    with mpl.rc_context({**_STYLE, "svg.hashsalt": "volume"}):
        figure = Figure(figsize=(_WIDTH_INCHES, 4.6), layout="constrained")
        for position, (structure, points) in enumerate(panels):
            _draw_volumes(figure.add_subplot(1, 2, position + 1), structure, points)
        return _to_svg(figure)


def learning_chart(history: pd.DataFrame) -> str | None:
    """One small chart per metric of the history, training and validation, by modality; None without rows.

    At most `MAX_CURVES` metrics are drawn. Long curves are averaged in bins of equal width.
    """
    metrics = list(dict.fromkeys(history["metric"].tolist()))[:MAX_CURVES]
    if not metrics:
        return None
    columns = min(4, len(metrics))
    rows = -(-len(metrics) // columns)
    with mpl.rc_context({**_STYLE, "svg.hashsalt": "learning", "font.size": 8.5}):
        figure = Figure(figsize=(_WIDTH_INCHES, 2.3 * rows + 0.35), layout="constrained")
        handles: dict[str, Any] = {}
        for position, metric in enumerate(metrics):
            axes = figure.add_subplot(rows, columns, position + 1)
            handles |= _draw_curves(axes, history[history["metric"] == metric])
            axes.set_title(str(metric))
            if position >= len(metrics) - columns:
                axes.set_xlabel("step")
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=max(1, len(handles)))
        return _to_svg(figure)


def _draw_dots(axes: Axes, row: int, modality: str, values: list[float], mean: dict[str, Any]) -> None:
    colour = _MODALITY_COLOURS.get(modality, _INK)
    # spread by rank instead of random jitter: the same cases give the same chart
    offsets = [(0.0, -0.14, 0.14, -0.07, 0.07)[rank % 5] for rank in range(len(values))]
    axes.scatter(
        values,
        [row + offset for offset in offsets],
        s=22,
        color=colour,
        alpha=0.55,
        linewidths=0,
        marker=MODALITY_MARKERS.get(modality, "s"),
        clip_on=False,
    )
    if mean["ci95"] is not None:
        axes.plot(mean["ci95"], [row + 0.32] * 2, color=_INK, linewidth=1.6, solid_capstyle="round")
    axes.plot([mean["mean"]], [row + 0.32], marker="D", markersize=4.5, color=_INK, clip_on=False)


def _volumes(scores: Sequence[CaseScores], structure: str) -> list[tuple[str, float, float]]:
    points = []
    for case in scores:
        one = getattr(case, structure)
        if one.reference_volume_ml is not None and one.prediction_volume_ml is not None:
            points.append((case.identity.modality, one.reference_volume_ml, one.prediction_volume_ml))
    return points


def _draw_volumes(axes: Axes, structure: str, points: list[tuple[str, float, float]]) -> None:
    volumes = [volume for _, *pair in points for volume in pair]
    if structure == "tumour":
        for scale in (axes.set_xscale, axes.set_yscale):
            scale("symlog", linthresh=1.0, linscale=0.4)
        low, high = -0.15, max(*volumes, 1.0) * 1.6
    else:
        pad = 0.06 * max(*volumes, 1.0)
        low, high = max(0.0, min(volumes) - pad), max(volumes) + pad
    axes.plot([low, high], [low, high], color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for modality in sorted({modality for modality, *_ in points}):
        own = [(reference, prediction) for name, reference, prediction in points if name == modality]
        axes.scatter(
            [reference for reference, _ in own],
            [prediction for _, prediction in own],
            s=26,
            color=_MODALITY_COLOURS.get(modality, _INK),
            marker=MODALITY_MARKERS.get(modality, "s"),
            alpha=0.7,
            linewidths=0,
            label=f"{modality} ({len(own)})",
            zorder=2,
        )
    axes.set(xlim=(low, high), ylim=(low, high), xlabel="reference, ml", ylabel="predicted, ml")
    axes.set_title(f"{structure.capitalize()} volume")
    axes.set_box_aspect(1)
    axes.legend(loc="upper left", handletextpad=0.2, borderaxespad=0.2)
    if structure == "tumour":
        ticks = [tick for tick in (0, 1, 10, 100, 1000) if tick <= high]
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set_minor_locator(mpl.ticker.NullLocator())


def _draw_curves(axes: Axes, rows: pd.DataFrame) -> dict[str, Any]:
    handles = {}
    modalities = rows["modality"].astype(object).fillna("").astype(str)
    for split in ("train", "val"):
        for modality in sorted(set(modalities)):
            own = rows[(rows["split"] == split) & (modalities == modality)].sort_values("step", kind="stable")
            if own.empty:
                continue
            steps_n, values_n = _thin(own["step"].to_numpy(float), own["value"].to_numpy(float))
            (line,) = axes.plot(
                steps_n,
                values_n,
                color=_MODALITY_COLOURS.get(modality, _INK if split == "val" else _MUTED),
                linewidth=1.7 if split == "val" else 1.0,
                alpha=1.0 if split == "val" else 0.75,
                linestyle="-" if split == "val" else (0, (3, 1.5)),
                marker="o" if split == "val" and len(steps_n) <= 40 else None,
                markersize=2.8,
            )
            name = "validation" if split == "val" else "training"
            handles[f"{name} {modality}".strip()] = line
    return handles


def _thin(
    steps_n: NDArray[np.float64], values_n: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A curve averaged to at most `_MAX_POINTS` points."""
    if len(steps_n) <= _MAX_POINTS:
        return steps_n, values_n
    parts = np.array_split(np.arange(len(steps_n)), _MAX_POINTS)
    return np.array([steps_n[part].mean() for part in parts]), np.array([values_n[part].mean() for part in parts])


def _to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element that scales with the page, without metadata or ids."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg ") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    svg = re.sub(r"<svg [^>]*>", f'<svg class="chart" viewBox="0 0 {width} {height}" role="img">', svg, count=1)
    svg = svg.replace("xlink:href", "href")
    for colour, name in _CSS_VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return re.sub(r">\s+<", "><", svg)
