"""Pictures of a calibration: expected against true Dice, and what is accepted for which wish."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

COLOURS, MARKERS = {"CT": "#1f6fb2", "MR": "#c2571a"}, {"CT": "o", "MR": "^"}
DPI = 110


def calibration_png(
    predicted: npt.NDArray[np.float64],
    dice: npt.NDArray[np.float64],
    modalities: Sequence[str],
    accept: float,
    bounds: pd.DataFrame,
) -> bytes:
    """Two panels as a PNG: each pseudo-liver by its expected and true Dice, and the curve of `calibration.curve`."""
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    low = float(min(dice.min(), predicted.min(), 0.8)) - 0.02
    left.plot([low, 1], [low, 1], color="0.7", linewidth=1, zorder=0)
    for modality in sorted(set(modalities)):
        own = np.array([name == modality for name in modalities])
        colour, marker = COLOURS[modality], MARKERS[modality]
        left.scatter(predicted[own], dice[own], s=22, c=colour, marker=marker, alpha=0.75, label=modality, linewidths=0)
    if accept <= 1:
        left.axvline(accept, color="0.3", linestyle="--", linewidth=1, label=f"accepted from {accept:.3f}")
    left.set(xlim=(low, 1.005), ylim=(low, 1.005), xlabel="expected Dice, out of fold", ylabel="true Dice")
    left.set_title("Each pseudo-liver of a hidden manual liver", loc="left", fontsize=10)
    left.legend(frameon=False)
    wished = bounds.wished_dice
    right.plot(wished, wished, color="0.7", linewidth=1, zorder=0, label="as wished")
    right.plot(wished, bounds.mean_dice, color="#2a7f4f", marker=".", label="mean Dice of accepted labels")
    right.plot(wished, bounds.least_dice, color="#2a7f4f", linestyle=":", marker=".", label="least Dice among them")
    right.plot(wished, bounds.share_as_wished, color="#b5462f", marker=".", label="share of them as good as wished")
    right.plot(wished, bounds.accepted_share, color="#7a4fa3", marker=".", label="share of all that is accepted")
    right.set(ylim=(0, 1.02), xlabel="wished-for Dice")
    right.set_title("What each wish leads to", loc="left", fontsize=10)
    right.legend(frameon=False, loc="best", fontsize=8)
    for axes in (left, right):
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
