"""The figures of a gate calibration: predicted against true Dice, the labels accepted for each target Dice, and the
risk–coverage curves."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hepar.imaging.display import MODALITY_MARKERS

COLOURS = {"CT": "#1f6fb2", "MR": "#c2571a"}  # the report's follow its page, light or dark
LINES = (("#2a7f4f", "-"), ("#b5462f", "-"), ("0.5", ":"))  # colour and style, in the order of the scores
DPI = 110
Values = npt.NDArray[np.float64]


def calibration_png(
    predicted_n: Values, true_n: Values, modalities: Sequence[str], accept: float, curve: pd.DataFrame
) -> bytes:
    """A PNG with two panels: predicted and true Dice of n pseudo-livers, and the `target_curve` of the calibration.

    `accept` is the bound of the predicted Dice; above 1 no label is accepted and no line is drawn. Needs n > 0.
    """
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_predictions(left, predicted_n, true_n, modalities, accept)
    _draw_curve(right, curve)
    return _png(figure)


def risk_coverage_png(table: pd.DataFrame) -> bytes:
    """A PNG with a line for each score of a `risk_coverage_table`: coverage against mean Dice of the labels kept."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (score, curve) in enumerate(table.groupby("score", sort=False)):
        area = float(curve.selective_risk.mean())
        colour, line = LINES[number % len(LINES)]
        label = f"{str(score).replace('_', ' ')}: AURC {area:.4f}"
        axes.plot(curve.coverage, curve.mean_dice, color=colour, linestyle=line, label=label)
    axes.set(
        xlim=(0, 1), xlabel="coverage: fraction of labels kept, best score first", ylabel="mean Dice of those kept"
    )
    axes.set_title("Risk–coverage of pseudo-livers", loc="left", fontsize=10)
    axes.legend(frameon=False, loc="upper right", fontsize=8)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    """The figure as a PNG, in the style of both; the same data give the same bytes."""
    for axes in figure.axes:
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _draw_predictions(
    axes: Axes, predicted_n: Values, true_n: Values, modalities: Sequence[str], accept: float
) -> None:
    low = float(min(true_n.min(), predicted_n.min(), 0.8)) - 0.02
    axes.plot([low, 1], [low, 1], color="0.7", linewidth=1, zorder=0)
    for modality in sorted(set(modalities)):
        own_n = np.array([name == modality for name in modalities])
        colour, marker = COLOURS[modality], MODALITY_MARKERS[modality]
        x_n, y_n = predicted_n[own_n], true_n[own_n]
        axes.scatter(x_n, y_n, s=22, c=colour, marker=marker, alpha=0.75, label=modality, linewidths=0)
    if accept <= 1:
        axes.axvline(accept, color="0.3", linestyle="--", linewidth=1, label=f"acceptance bound {accept:.3f}")
    axes.set(xlim=(low, 1.005), ylim=(low, 1.005), xlabel="predicted Dice, out of fold", ylabel="true Dice")
    axes.set_title("Pseudo-livers with a hidden manual liver", loc="left", fontsize=10)
    axes.legend(frameon=False)


def _draw_curve(axes: Axes, curve: pd.DataFrame) -> None:
    target = curve.target_dice
    axes.plot(target, target, color="0.7", linewidth=1, zorder=0, label="target")
    axes.plot(target, curve.mean_dice, color="#2a7f4f", marker=".", label="mean Dice of accepted labels")
    axes.plot(
        target, curve.min_dice, color="#2a7f4f", linestyle=":", marker=".", label="minimum Dice of accepted labels"
    )
    axes.plot(target, curve.share_at_target, color="#b5462f", marker=".", label="fraction of accepted labels at target")
    axes.plot(target, curve.accepted_share, color="#7a4fa3", marker=".", label="fraction of labels accepted")
    axes.set(ylim=(0, 1.02), xlabel="target Dice")
    axes.set_title("Accepted labels by target Dice", loc="left", fontsize=10)
    axes.legend(frameon=False, loc="best", fontsize=8)
