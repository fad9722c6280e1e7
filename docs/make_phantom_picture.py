"""Draws docs/images/phantoms.png: one phantom slice per CT phase and MR sequence, with outlines of masks and cysts."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from hepar.phantoms.anatomy import Tissue
from hepar.phantoms.phantom import Phantom, make_phantom

OUT = Path(__file__).parent / "images" / "phantoms.png"
SIZE_ZYX, SPACING_ZYX_MM = (64, 160, 160), (4.0, 2.2, 2.2)
ROWS = {  # sequence and seed
    "CT": (("non-contrast", 75), ("arterial", 21), ("portal-venous", 70), ("delayed", 41)),
    "MR": (("T1", 75), ("T2", 61), ("hepatobiliary", 62)),
}
WINDOW_HU = (-160.0, 240.0)
MR_PERCENTILES = (1.0, 98.5)
MARGIN = 4  # voxels around the body
COLOURS = {"liver": "#35c4e8", "tumour": "#ffb000", "cyst or focal fat": "#7ee081"}


def main() -> None:
    """Make the phantoms and save the picture."""
    columns = max(map(len, ROWS.values()))
    figure, axes = plt.subplots(len(ROWS), columns, figsize=(2.8 * columns, 4.6), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for row, (modality, drawn) in zip(axes, ROWS.items(), strict=True):
        for axis, (sequence, seed) in zip(row, drawn, strict=False):
            show(axis, make_phantom(seed, modality, sequence, SIZE_ZYX, SPACING_ZYX_MM))
    legend = [Line2D([], [], color=colour, label=name) for name, colour in COLOURS.items()]
    axes[-1, -1].legend(handles=legend, loc="center", frameon=False, fontsize=12)
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT, dpi=90, pil_kwargs={"optimize": True})


def show(axis: Axes, phantom: Phantom) -> None:
    """Show the slice with the most tumour and, if there are any, look-alikes, with their outlines and the liver's."""
    alike_zyx = np.isin(phantom.tissue_zyx, (Tissue.CYST, Tissue.FOCAL_FAT))
    z = int((phantom.tumour_zyx.sum(axis=(1, 2)) * (1 + alike_zyx.sum(axis=(1, 2)))).argmax())
    rows = np.flatnonzero((phantom.tissue_zyx > 0).any(axis=(0, 2)))
    crop = slice(max(int(rows[0]) - MARGIN, 0), int(rows[-1]) + MARGIN + 1)
    image_yx = phantom.image_zyx[z, crop]
    low, high = WINDOW_HU if phantom.modality == "CT" else np.percentile(image_yx, MR_PERCENTILES)
    axis.imshow(image_yx, cmap="gray", vmin=low, vmax=high, interpolation="bilinear")
    for mask_zyx, colour in zip((phantom.liver_zyx, phantom.tumour_zyx, alike_zyx), COLOURS.values(), strict=True):
        if mask_zyx[z, crop].any():
            axis.contour(mask_zyx[z, crop], levels=[0.5], colors=colour, linewidths=1.1)
    axis.set_title(f"{phantom.modality} {phantom.sequence}", fontsize=11)


if __name__ == "__main__":
    main()
