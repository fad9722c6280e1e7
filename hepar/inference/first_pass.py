"""The first pass over a scan: windows side by side at the plan's own spacing, which leave no voxel unseen.

It shows where liver and tumours are, so that all other windows need to be predicted only there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hepar.cases import STRUCTURES
from hepar.imaging.masks import Mask
from hepar.imaging.parallel_grids import shared_slices, whole_box
from hepar.inference.prepared_scan import PreparedScan, cut_from_slab
from hepar.inference.settings import PredictionSettings
from hepar.inference.sliding_window import Corner, WindowGrid, add_windows, window_box
from hepar.inference.window_count import WindowCount
from hepar.params import SizeZYX
from hepar.runtime.device import inference_precision

if TYPE_CHECKING:
    from hepar.inference.prediction import Model

Windows = dict[Corner, Tensor]  # rdhw by window: float32, or float16 of a network that computes in bf16


@dataclass(frozen=True)
class FirstPass:
    """Where any model finds liver or tumours, bool zyx over the whole grid of the plan.

    `windows` has for each model those in which it finds something; they need not be predicted again.
    """

    found_zyx: Mask
    windows: tuple[Windows, ...]

    @classmethod
    def over(
        cls,
        models: Sequence[Model],
        scan: PreparedScan,
        settings: PredictionSettings,
        thresholds_r: Sequence[float],
        count: WindowCount,
    ) -> FirstPass:
        """Let each model predict the scan once; `thresholds_r` are the probabilities above which a voxel counts."""
        patch_zyx = models[0].spec.patch_zyx
        grid = first_windows(WindowGrid.over(scan.grid.size_zyx, patch_zyx, settings.overlap))
        found_zyx, windows = np.zeros(scan.grid.size_zyx, bool), []
        as_many = len(models) * len(grid.corners)
        count.plan(as_many, guessed=as_many * settings.variants * 2 ** len(settings.mirror_axes))
        for model in models:
            precision = inference_precision(model.network, model.device)
            kept_type = torch.float32 if precision == "fp32" else torch.float16
            marks = _Marks(found_zyx, patch_zyx, thresholds_r, model.device, kept_type)
            add_windows(
                model.network,
                grid.corners,
                lambda corner: cut_from_slab(scan, scan.whole, corner, patch_zyx),
                marks,
                precision=precision,
                advance=count.advance,
            )
            windows.append(marks.windows)
        return cls(found_zyx, tuple(windows))


def first_windows(grid: WindowGrid) -> WindowGrid:
    """The windows of the first pass: some of a grid where these are as few as without overlap, else windows without."""
    apart = WindowGrid.over(grid.size_zyx, grid.patch_zyx, overlap=0.0)
    return min((grid.covering(), apart), key=lambda windows: len(windows.corners))


class _Marks:
    """Marks the voxels above the thresholds in a mask, and keeps the windows that have any."""

    def __init__(
        self,
        found_zyx: Mask,
        patch_zyx: SizeZYX,
        thresholds_r: Sequence[float],
        device: torch.device,
        kept_type: torch.dtype,
    ) -> None:
        assert len(thresholds_r) == len(STRUCTURES)
        self.found_zyx, self.patch_zyx, self.device = found_zyx, patch_zyx, device
        self.windows: Windows = {}
        self._kept_type = kept_type
        self._thresholds_r111 = torch.tensor(thresholds_r, device=device)[:, None, None, None]

    def add(self, corner: Corner, probability_rdhw: Tensor | None) -> None:
        """Look at one window; None are probabilities of 0."""
        if probability_rdhw is None:
            return
        found_dhw = (probability_rdhw > self._thresholds_r111).any(dim=0)
        if not found_dhw.any():
            return
        shared = shared_slices(window_box(corner, self.patch_zyx), whole_box(self.found_zyx.shape))
        assert shared is not None
        inside, place = shared
        self.found_zyx[place] |= found_dhw[inside].cpu().numpy()
        self.windows[corner] = probability_rdhw.to(self._kept_type)
