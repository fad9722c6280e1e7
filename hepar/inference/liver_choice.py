"""Which component of a mask is the liver.

The largest one is, unless its brightness is that of no liver: a model that has seen little besides livers may find more
of one in the lungs of a scan of the trunk than in the liver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from hepar.imaging.masks import Components, Mask, find_components

UNLIKELY_WEIGHT = 0.2  # of a voxel of any brightness: a component that large beside another is the liver all the same
DEVIATIONS = 3.0  # from the livers learned from, at which a voxel weighs exp(-1/2)


def choose_liver(
    found_zyx: Mask, expected: tuple[float, float] | None, image: Callable[[], npt.NDArray[np.float32]]
) -> Mask:
    """The component with the most voxels, each weighed by how likely it is that a liver has the component's brightness.

    Brightness is the median of the preprocessed `image`, float32 zyx on the grid of the mask; it is asked for only
    where another component is large enough to matter. `expected` has the mean and standard deviation of that median
    over livers (`ModelSpec.liver_intensity`); without it the largest component is taken, the first of equals. An empty
    mask stays empty.
    """
    components = find_components(found_zyx)
    rivals = _rivals(components)
    if len(rivals) < 2 or expected is None:
        return _heaviest(components, components.voxels, found_zyx)
    image_zyx, weights = image()[components.box], np.zeros(len(components.voxels))
    for rival in rivals:
        median = float(np.median(image_zyx[components.labels_zyx == rival + 1]))
        weights[rival] = components.voxels[rival] * likelihood(median, expected)
    return _heaviest(components, weights, found_zyx)


def component_of(found_zyx: Mask, liver: Callable[[], Mask]) -> Mask:
    """The component that has the most voxels of a mask on the same grid, the largest if none has any.

    The mask is asked for only where `choose_liver` would look at the image.
    """
    components = find_components(found_zyx)
    voxels = components.voxels
    if len(_rivals(components)) < 2:
        return _heaviest(components, voxels, found_zyx)
    shared = np.bincount(components.labels_zyx[liver()[components.box]], minlength=len(voxels) + 1)[1:]
    return _heaviest(components, shared if shared.any() else voxels, found_zyx)


def likelihood(median: float, expected: tuple[float, float]) -> float:
    """How likely it is that a liver has this median brightness, `UNLIKELY_WEIGHT` to 1."""
    mean, deviation = expected
    return max(UNLIKELY_WEIGHT, float(np.exp(-0.5 * ((median - mean) / deviation / DEVIATIONS) ** 2)))


def _rivals(components: Components) -> npt.NDArray[np.intp]:
    """The components, counted from 0, that are large enough to be the liver beside the largest one."""
    return np.flatnonzero(components.voxels >= UNLIKELY_WEIGHT * components.voxels.max(initial=0))


def _heaviest(components: Components, weights: npt.NDArray[Any], found_zyx: Mask) -> Mask:
    """The component of the highest weight, the first of equals; an empty mask stays empty."""
    return components.alone(1 + int(weights.argmax()), found_zyx) if len(weights) else found_zyx
