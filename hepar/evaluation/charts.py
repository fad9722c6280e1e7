"""Charts of the cases and of the training, for the page of the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hepar.cases import STRUCTURES
from hepar.evaluation.chart_style import PAGE, PAGE_INCHES, draw_inter_rater, page_svg
from hepar.evaluation.inter_rater import INTER_RATER_DICE
from hepar.evaluation.scores import CaseScores
from hepar.imaging.display import MODALITY_MARKERS

_MAX_POINTS = 250
MAX_CURVES = 16
_CURVES = {  # names of the metrics in a history
    "loss": "Loss",
    "liver_dice": "Liver Dice",
    "tumour_dice": "Tumour Dice, over all cases",
    "tumour_free": "Score without tumours",
}


def dice_chart(scores: Sequence[CaseScores], metrics: dict[str, Any]) -> str | None:
    """Liver and tumour Dice of each case as dots, with mean and 95 % interval; None if no Dice is defined.

    A line and a band show the agreement of two experts where it is known.
    """
    rows = []
    for modality in metrics:
        for structure in STRUCTURES:
            values = [getattr(case, structure).dice for case in scores if case.identity.modality == modality]
            defined = sorted(value for value in values if value is not None)
            if defined:
                rows.append((modality, structure, defined))
    if not rows:
        return None
    with mpl.rc_context(PAGE.style("dice")):
        figure = Figure(figsize=(PAGE_INCHES, 0.55 * len(rows) + 0.75), layout="constrained")
        axes = figure.add_subplot()
        for row, (modality, structure, values) in enumerate(rows):
            if (agreement := INTER_RATER_DICE.get((modality, structure))) is not None:
                draw_inter_rater(axes, row, agreement)
            _draw_dots(axes, row, modality, values, metrics[modality][structure]["dice"])
        axes.set_yticks(
            range(len(rows)), [f"{modality} {structure} ({len(dots)})" for modality, structure, dots in rows]
        )
        axes.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5), xlabel="Dice")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        return page_svg(figure, "Dice of liver and tumour in each case")


def volume_chart(scores: Sequence[CaseScores]) -> str | None:
    """Predicted against reference volume of liver and tumour in ml; None if no volume is known.

    The tumour axes are linear up to 1 ml and logarithmic above, so that missed and false-positive tumours (0 ml) are on
    the chart.
    """
    panels = [(structure, points) for structure in STRUCTURES if (points := _volumes(scores, structure))]
    if not panels:
        return None
    with mpl.rc_context(PAGE.style("volume")):
        figure = Figure(figsize=(PAGE_INCHES, 4.6), layout="constrained")
        for position, (structure, points) in enumerate(panels):
            _draw_volumes(figure.add_subplot(1, 2, position + 1), structure, points)
        return page_svg(figure, "Predicted against reference volume of liver and tumour")


def learning_chart(history: pd.DataFrame) -> str | None:
    """One small chart per metric of the history, training and validation, by modality; None without rows.

    At most `MAX_CURVES` metrics are drawn. Long curves are averaged in bins of equal width.
    """
    metrics = list(dict.fromkeys(history["metric"].tolist()))[:MAX_CURVES]
    if not metrics:
        return None
    columns = min(4, len(metrics))
    rows = -(-len(metrics) // columns)
    with mpl.rc_context({**PAGE.style("learning"), "font.size": 8.5}):
        figure = Figure(figsize=(PAGE_INCHES, 2.3 * rows + 0.35), layout="constrained")
        handles: dict[str, Any] = {}
        for position, metric in enumerate(metrics):
            axes = figure.add_subplot(rows, columns, position + 1)
            handles |= _draw_curves(axes, history[history["metric"] == metric])
            axes.set_title(_CURVES.get(metric, metric))
            if position >= len(metrics) - columns:
                axes.set_xlabel("step")
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=max(1, len(handles)))
        return page_svg(figure, "Learning curves")


def _draw_dots(axes: Axes, row: int, modality: str, values: list[float], mean: dict[str, Any]) -> None:
    colour = PAGE.modality(modality)
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
        axes.plot(mean["ci95"], [row + 0.32] * 2, color=PAGE.ink, linewidth=1.6, solid_capstyle="round")
    axes.plot([mean["mean"]], [row + 0.32], marker="D", markersize=4.5, color=PAGE.ink, clip_on=False)


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
    axes.plot([low, high], [low, high], color=PAGE.muted, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for modality in sorted({modality for modality, *_ in points}):
        own = [(reference, prediction) for name, reference, prediction in points if name == modality]
        axes.scatter(
            [reference for reference, _ in own],
            [prediction for _, prediction in own],
            s=26,
            color=PAGE.modality(modality),
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
                color=PAGE.modalities.get(modality, PAGE.ink if split == "val" else PAGE.muted),
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
