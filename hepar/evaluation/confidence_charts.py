"""What the confidence of a model is worth: free-response curve and reliability diagrams, for the page of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hepar.evaluation.chart_style import PAGE, PAGE_INCHES, page_svg
from hepar.imaging.display import MODALITY_MARKERS

_FALSE_LESIONS = (0.125, 8.0)  # the range of the free-response curve, false lesions per case
_TICKS = (0.125, 0.25, 0.5, 1, 2, 4, 8)
_TICK_NAMES = ("⅛", "¼", "½", "1", "2", "4", "8")
_DODGE = 0.06  # of a marker, in octaves, so that modalities do not hide each other
_MAX_POINTS = 400

Groups = Mapping[str, dict[str, Any]]


def froc_chart(metrics: Groups) -> str | None:
    """Sensitivity against false lesions per case by modality, with 95 % intervals; None without confidences.

    Chakraborty, Medical Physics 16, 1989. The axis of false lesions is logarithmic.
    """
    curves = {
        modality: group["tumour"]["froc"]
        for modality, group in metrics.items()
        if group["tumour"].get("froc", {}).get("lesions")
    }
    if not curves:
        return None
    with mpl.rc_context(PAGE.style("froc")):
        figure = Figure(figsize=(PAGE_INCHES, 3.8), layout="constrained")
        axes = figure.add_subplot()
        for place, (modality, froc) in enumerate(curves.items()):
            _draw_froc(axes, modality, froc, shift=_DODGE * (2 * place - len(curves) + 1))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_ticks(_TICKS, _TICK_NAMES)
        axes.xaxis.minorticks_off()
        axes.set(xlim=_FALSE_LESIONS, ylim=(0, 1.03), xlabel="false lesions per case", ylabel="sensitivity")
        axes.legend(loc="lower right")
        return page_svg(figure, "Free-response curve: sensitivity against false lesions per case, by modality")


def reliability_chart(metrics: Groups) -> str | None:
    """Fraction true against mean probability of voxels and lesion candidates, by modality; None without confidences."""
    panels = []
    for kind, title in (("voxels", "Voxels"), ("lesions", "Lesion candidates")):
        found = {
            modality: calibration
            for modality, group in metrics.items()
            if (calibration := group["tumour"].get("reliability", {}).get(kind)) and calibration["bins"]
        }
        if any(_filled(calibration) for calibration in found.values()):
            panels.append((title, found))
    if not panels:
        return None
    with mpl.rc_context(PAGE.style("reliability")):
        figure = Figure(figsize=(PAGE_INCHES, 4.3), layout="constrained")
        for position, (title, calibrations) in enumerate(panels):
            axes = figure.add_subplot(1, 2, position + 1)
            axes.plot([0, 1], [0, 1], color=PAGE.muted, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            for modality, calibration in calibrations.items():
                _draw_reliability(axes, modality, _filled(calibration))
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="mean probability", ylabel="fraction true")
            axes.set_title(title)
            axes.set_box_aspect(1)
            axes.legend(loc="upper left")
        return page_svg(figure, "Reliability diagrams: fraction true against mean probability")


def _draw_froc(axes: Axes, modality: str, froc: dict[str, Any], shift: float) -> None:
    colour = PAGE.modality(modality)
    false_n, sensitivity_n = _staircase(froc["curve"])
    axes.step(false_n, sensitivity_n, where="post", color=colour, linewidth=1.5)
    axes.plot([false_n[-1], _FALSE_LESIONS[1]], [sensitivity_n[-1]] * 2, color=colour, linewidth=1.2, linestyle=":")
    points = [
        (float(rate), estimate) for rate, estimate in froc["sensitivity"].items() if estimate["value"] is not None
    ]
    for rate, estimate in points:
        if estimate["ci95"] is not None:
            axes.plot([rate * 2**shift] * 2, estimate["ci95"], color=colour, linewidth=1.2, alpha=0.75)
    axes.plot(
        [rate * 2**shift for rate, _ in points],
        [estimate["value"] for _, estimate in points],
        linestyle="none",
        marker=MODALITY_MARKERS.get(modality, "s"),
        markersize=6,
        color=colour,
        label=f"{modality} (lesions: {froc['lesions']}, cases: {froc['n']})",
    )


def _staircase(curve: dict[str, list[float]]) -> tuple[list[float], list[float]]:
    """The curve from (0, 0) to its last step; thinned, its ends always kept."""
    false_n = np.array([0.0, *curve["false_positives_per_case"]])
    sensitivity_n = np.array([0.0, *curve["sensitivity"]])
    kept = np.unique(np.linspace(0, len(false_n) - 1, min(len(false_n), _MAX_POINTS)).round().astype(int))
    return false_n[kept].tolist(), sensitivity_n[kept].tolist()


def _filled(calibration: dict[str, Any]) -> list[dict[str, float]]:
    return [one for one in calibration["bins"] if one["count"]]


def _draw_reliability(axes: Axes, modality: str, bins: list[dict[str, float]]) -> None:
    if not bins:
        return
    colour, most = PAGE.modality(modality), max(one["count"] for one in bins)
    x, y = [one["mean_probability"] for one in bins], [one["fraction_positive"] for one in bins]
    axes.plot(x, y, color=colour, linewidth=1.2, alpha=0.7, zorder=2)
    # counts span decades, so that the size of a marker follows their logarithm
    sizes = [12 + 50 * np.log1p(one["count"]) / np.log1p(most) for one in bins]
    axes.scatter(
        x, y, s=sizes, color=colour, marker=MODALITY_MARKERS.get(modality, "s"), linewidths=0, zorder=3, label=modality
    )
