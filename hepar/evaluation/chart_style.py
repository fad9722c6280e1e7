"""The look of charts: thin grid, no frame, and two palettes, one for files and one for the page of the report.

On the page a chart is an inline SVG in the page's CSS variables, so that it follows light and dark mode: matplotlib
draws in placeholder colours, which are then replaced by `var(--name)`. The same figure gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hepar.evaluation.inter_rater import InterRaterDice


@dataclass(frozen=True)
class Palette:
    """`ink` for text, `muted` for axes, `grid` for grid lines, `page` for the background, and those of modalities."""

    ink: str
    muted: str
    grid: str
    page: str
    modalities: Mapping[str, str]

    def modality(self, name: str) -> str:
        """The colour of a modality, `ink` if it is unknown."""
        return self.modalities.get(name, self.ink)

    def style(self, salt: str) -> dict[Any, Any]:
        """Settings of matplotlib; `salt` makes the ids of an SVG reproducible."""
        return {
            "svg.hashsalt": salt,
            "font.size": 9,
            "svg.fonttype": "none",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": self.muted,
            "axes.labelcolor": self.ink,
            "axes.titlecolor": self.ink,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": self.grid,
            "grid.linewidth": 0.7,
            "xtick.color": self.muted,
            "ytick.color": self.muted,
            "xtick.labelcolor": self.ink,
            "ytick.labelcolor": self.ink,
            "text.color": self.ink,
            "legend.frameon": False,
            "legend.labelcolor": self.ink,
        }


LIGHT = Palette("#1a2129", "#5d6875", "#e7eaee", "#ffffff", {"CT": "#0072b2", "MR": "#c85200"})  # as the report's page
_CSS_VARIABLES = {
    "#010203": "ink",
    "#010204": "muted",
    "#010205": "grid",
    "#010206": "ct",
    "#010207": "mr",
    "#010208": "page",
}
PAGE = Palette("#010203", "#010204", "#010205", "#010208", {"CT": "#010206", "MR": "#010207"})
PAGE_INCHES = 10.5  # the width of a chart


def page_svg(figure: Figure, label: str) -> str:
    """A figure in the colours of `PAGE` as an `<svg>` element that scales with the page, without metadata or ids.

    `label` says what it shows to those who cannot see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg ") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    head = f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    svg = re.sub(r"<svg [^>]*>", lambda _: head, svg, count=1)
    svg = svg.replace("xlink:href", "href")
    for colour, name in _CSS_VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return re.sub(r">\s+<", "><", svg)


def draw_inter_rater(axes: Axes, row: float, agreement: InterRaterDice) -> None:
    """The agreement of two experts behind a row of a chart on the page: a line at the mean, a band of ± 1 SD."""
    edges = [row - 0.5, row + 0.5]
    axes.fill_betweenx(edges, *agreement.band, color=PAGE.grid, linewidth=0, zorder=0.5)
    axes.plot([agreement.mean] * 2, edges, color=PAGE.muted, linewidth=1.3, zorder=1)
