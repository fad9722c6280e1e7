"""A test-time variant of a scan, predicted by every model of an ensemble, window by window where it is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hepar.imaging.masks import Mask
from hepar.imaging.parallel_grids import Box
from hepar.inference.first_pass import Windows
from hepar.inference.prepared_scan import PreparedScan, cut_from_slab
from hepar.inference.settings import Axis, PredictionSettings
from hepar.inference.sliding_window import Corner, Probabilities, WindowGrid, WindowSum, add_windows
from hepar.inference.window_count import WindowCount
from hepar.runtime.device import inference_precision

if TYPE_CHECKING:
    from hepar.inference.prediction import Model

PLAIN = ()  # the axes along which the scan as it is is mirrored
_Window = tuple[tuple[int, ...], Corner]  # axes along which the scan is mirrored, and a window of it
OnMember = Callable[[Probabilities], None]


class VariantPrediction:
    """The probabilities of a scan in a box of its plan's grid, as far as windows have been predicted.

    Each model predicts the scan as it is and mirrored along every combination of the `mirror_axes`
    of the settings.
    """

    def __init__(
        self,
        models: Sequence[Model],
        scan: PreparedScan,
        settings: PredictionSettings,
        box: Box,
        known: Sequence[Windows] | None = None,
        count: WindowCount | None = None,
    ) -> None:
        """`known` has for each model windows of the plain scan that it has predicted before; they are used up."""
        patch_zyx = models[0].spec.patch_zyx
        plain = WindowGrid.over(scan.grid.size_zyx, patch_zyx, settings.overlap)
        self.models, self.scan, self.box = models, scan, box
        self._grids = {axes: plain.mirrored(axes) for axes in mirrorings(settings.mirror_axes)}
        self._sums = [WindowSum(box, patch_zyx, model.device) for model in models]
        self._known, self._count = known or [{} for _ in models], count or WindowCount()
        self._predicted: set[_Window] = set()

    def predict(self, mask_zyx: Mask | None) -> bool:
        """Predict the windows that matter to a mask of the box, or all of them; False if none was missing."""
        missing = [
            (axes, corner)
            for axes, grid in self._grids.items()
            for corner in (grid.corners if mask_zyx is None else grid.that_matter(mask_zyx, self.box))
            if (axes, corner) not in self._predicted
        ]
        if not missing:
            return False
        patch_zyx = self.models[0].spec.patch_zyx
        hull = self._hull([corner for _, corner in missing])
        again = [self._add_known(total, known, missing) for total, known in zip(self._sums, self._known, strict=True)]
        self._count.plan(sum(map(len, again)))
        for model, total, left in zip(self.models, self._sums, again, strict=True):
            for axes in self._grids:
                add_windows(
                    model.network,
                    [corner for own, corner in left if own == axes],
                    lambda corner: cut_from_slab(self.scan, hull, corner, patch_zyx),
                    total,
                    axes,
                    inference_precision(model.network, model.device),
                    self._count.advance,
                )
        self._predicted.update(missing)
        return True

    def _add_known(self, total: WindowSum, known: Windows, missing: Sequence[_Window]) -> list[_Window]:
        """Add the missing windows that are known, and return the others."""
        left = []
        for axes, corner in missing:
            if axes == PLAIN and corner in known:
                total.add(corner, known.pop(corner))
            else:
                left.append((axes, corner))
        return left

    def _hull(self, corners: Sequence[Corner]) -> Box:
        """The smallest box that contains windows, within the scan."""
        firsts, patch_zyx, size_zyx = np.array(corners), self.models[0].spec.patch_zyx, self.scan.grid.size_zyx
        starts, stops = firsts.min(axis=0), firsts.max(axis=0) + patch_zyx
        return tuple(
            slice(max(0, int(start)), min(n, int(stop))) for start, stop, n in zip(starts, stops, size_zyx, strict=True)
        )

    def mean(self, on_member: OnMember | None = None, box: Box | None = None) -> Probabilities:
        """The mean over the models, float32 rzyx, in a part of the own box or in all of it.

        `on_member` sees, but does not keep, those of each model.
        """
        mean_rzyx: Probabilities | None = None
        for total in self._sums:
            member_rzyx = total.mean(box)
            if on_member is not None:
                on_member(member_rzyx)
            if mean_rzyx is None:
                mean_rzyx = member_rzyx
            else:
                mean_rzyx += member_rzyx
        assert mean_rzyx is not None
        mean_rzyx /= len(self._sums)
        return mean_rzyx


def mirrorings(mirror_axes: Sequence[Axis]) -> list[tuple[int, ...]]:
    """The axes of an array zyx to flip, for every combination of some axes: of z and x it is (), (0,), (2,), (0, 2)."""
    axes = [number for number, axis in enumerate(Axis) if axis in mirror_axes]
    return [flipped for count in range(len(axes) + 1) for flipped in itertools.combinations(axes, count)]
