"""Which image each mask of a DICOM tree was drawn on. A mask that fits none, or several alike, is refused by itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hepar.errors import Refusal
from hepar.ingest.sources.dicom import Stack
from hepar.ingest.sources.drawn_masks import Drawn, Outline
from hepar.ingest.sources.mask_series import MaskSeries

RULE = "a mask belongs to one image of the source"
POSITION_TOLERANCE_MM = 0.1


@dataclass
class MasksOfImage:
    """The masks of one image, and the structures of masks that may be those of this image or of another."""

    image: Stack
    series: list[MaskSeries] = field(default_factory=list)
    drawn: list[Drawn] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Unplaced:
    """A mask that is not used, and why."""

    mask: MaskSeries | Drawn
    fault: Refusal


class Matching:
    """The images of a tree with the masks that belong to them, and the masks that do not belong to one image.

    A mask of one of the series `refused` goes with it.
    """

    def __init__(self, images: Iterable[Stack], refused: Collection[str] = ()) -> None:
        self.images = [MasksOfImage(image) for image in images]
        self.unplaced: list[Unplaced] = []
        self._refused = refused
        self._by_slice: dict[str, int] = {}
        self._by_series: dict[str, list[int]] = defaultdict(list)
        for number, found in enumerate(self.images):
            self._by_slice |= dict.fromkeys(found.image.uids, number)
            self._by_series[found.image.series].append(number)

    def add_series(self, mask: MaskSeries) -> None:
        """Place a mask series by patient, position, size and study."""
        fitting = [found for found in self.images if _fits(mask.stack, found.image)]
        study = mask.stack.first.get("StudyInstanceUID")
        of_study = [found for found in fitting if found.image.first.get("StudyInstanceUID") == study]
        if found := self._only(mask, of_study or fitting):
            found.series.append(mask)

    def add_drawn(self, item: Drawn) -> None:
        """Place a drawn mask by the slices that it names, or by its series if it names no slice of an image."""
        by_slice = {self._by_slice[uid] for uid in item.slices & self._by_slice.keys()}
        by_series = {number for uid in item.series for number in self._by_series.get(uid, ())}
        fitting = [self.images[number] for number in sorted(by_slice or by_series)]
        if not fitting and not item.series.isdisjoint(self._refused):
            return
        if found := self._only(item, fitting):
            found.drawn.append(item)

    def _only(self, mask: MaskSeries | Drawn, fitting: Sequence[MasksOfImage]) -> MasksOfImage | None:
        """The image that a mask fits alone. Of several, the structure becomes unknown."""
        if len(fitting) == 1:
            return fitting[0]
        for image in fitting:
            image.unknown.add(mask.structure)
        if isinstance(mask, MaskSeries) or mask.outline in (Outline.REGIONS, Outline.UNREAD):
            many = f"fits {len(fitting)} images of the source, and nothing says which"
            why = many if fitting else "belongs to no image of the source"
            self.unplaced.append(Unplaced(mask, Refusal(RULE, f"the {mask.structure} mask {why}")))
        return None


def _fits(mask: Stack, image: Stack) -> bool:
    """Whether headers agree in patient, rows, number of slices and position, which those of multi-frame files lack."""
    first, other = mask.first, image.first
    return (
        other.get("PatientID") == first.get("PatientID")
        and len(image.instances) == len(mask.instances)
        and other.get("Rows") == first.get("Rows")
        and bool(first.get("ImagePositionPatient") and other.get("ImagePositionPatient"))
        and bool(np.allclose(other.position_xyz_mm, first.position_xyz_mm, atol=POSITION_TOLERANCE_MM))
    )
