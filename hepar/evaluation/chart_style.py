"""The look of charts: thin grid, no frame, colours of text and lines as the caller gives them."""

from __future__ import annotations

from typing import Any


def rc_style(ink: str, muted: str, grid: str) -> dict[Any, Any]:
    """Settings of matplotlib: `ink` for text, `muted` for axes, `grid` for grid lines."""
    return {
        "font.size": 9,
        "svg.fonttype": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": muted,
        "axes.labelcolor": ink,
        "axes.titlecolor": ink,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": grid,
        "grid.linewidth": 0.7,
        "xtick.color": muted,
        "ytick.color": muted,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "text.color": ink,
        "legend.frameon": False,
        "legend.labelcolor": ink,
    }
