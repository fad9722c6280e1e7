"""Pictures of a predicted scan: three planes through the largest finding, and each lesion with its diameters.

Arrays are canonical. Axial slices are shown as radiologists see them: front at the top, the patient's right on the
left.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from hepar.evaluation.outlines import crop_box
from hepar.imaging.display import CT_WINDOW_HU, display_window, largest_slice, scale_to_window
from hepar.imaging.masks import Mask, keep_largest_component
from hepar.imaging.volumes import Geometry, canonical, to_array, to_image
from hepar.prediction.measurements import MeasuredLesion
from hepar.prediction.outputs import RESEARCH_USE
from hepar.prediction.predicted_scan import PredictedScan

LIVER_COLOUR, TUMOUR_COLOUR, LINE_COLOUR, ACROSS_COLOUR = (
    (102, 204, 120),
    (255, 140, 60),
    (255, 235, 80),
    (90, 200, 255),
)
BACKGROUND, TEXT = (16, 18, 22), (235, 235, 235)
PANEL_PIXELS, LESION_PIXELS = 420, 300  # the longer side
AROUND_LESION_MM = 25.0  # of the scan that is shown around it
MARGIN, LINE_HEIGHT = 12, 24
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Slice:
    """A plane of a volume with its masks: row 0 is shown at the top, column 0 on the left."""

    image_yx: Floats
    liver_yx: Mask
    tumour_yx: Mask
    spacing_yx_mm: tuple[float, float]

    def cropped(self) -> _Slice:
        """The part around the masks, the whole plane if they are empty."""
        box = crop_box(self.liver_yx | self.tumour_yx, self.spacing_yx_mm)
        return self._part(box)

    def around(self, points_yx: Sequence[tuple[float, float]], margin_mm: float) -> tuple[_Slice, tuple[slice, slice]]:
        """The part around some points, and which part it is."""
        rows, columns = (
            slice(max(0, int(min(values) - margin_mm / mm)), int(max(values) + margin_mm / mm) + 2)
            for values, mm in zip(zip(*points_yx, strict=True), self.spacing_yx_mm, strict=True)
        )
        return self._part((rows, columns)), (rows, columns)

    def _part(self, box: tuple[slice, slice]) -> _Slice:
        return _Slice(self.image_yx[box], self.liver_yx[box], self.tumour_yx[box], self.spacing_yx_mm)

    def drawn(self, longer_side: int) -> Image.Image:
        """The plane in its true proportions with outlines, one pixel wide."""
        height_mm, width_mm = (n * mm for n, mm in zip(self.image_yx.shape, self.spacing_yx_mm, strict=True))
        scale = longer_side / max(height_mm, width_mm)
        size = (max(1, round(width_mm * scale)), max(1, round(height_mm * scale)))
        grey = Image.fromarray(np.round(self.image_yx * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
        colours = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
        for mask_yx, colour in ((self.liver_yx, LIVER_COLOUR), (self.tumour_yx, TUMOUR_COLOUR)):
            large_yx = np.asarray(Image.fromarray(mask_yx.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0
            colours[large_yx & ~ndimage.binary_erosion(large_yx)] = colour
        return Image.fromarray(colours)


@dataclass(frozen=True)
class ScanPictures:
    """What pictures are drawn from: a canonical scan scaled to 0…1, and its masks."""

    image: sitk.Image
    image_zyx: Floats
    liver_zyx: Mask
    tumour_zyx: Mask

    @classmethod
    def of(cls, predicted: PredictedScan) -> ScanPictures:
        """The canonical volumes of a predicted scan."""
        image, grid = canonical(predicted.image), predicted.found.geometry
        image_zyx = to_array(image)
        window = display_window(image_zyx, predicted.modality, CT_WINDOW_HU)
        masks = (
            to_array(canonical(to_image(mask_zyx, grid))) > 0
            for mask_zyx in (predicted.found.liver_zyx, predicted.found.tumour_zyx)
        )
        return cls(image, scale_to_window(image_zyx, window), *masks)

    def overview(self, lines: Sequence[str]) -> bytes:
        """A PNG of an axial, a coronal and a sagittal plane through the largest finding, above lines of text."""
        z = largest_slice((self.tumour_zyx, self.liver_zyx), self.image_zyx.shape[0])
        y, x = self._centre_yx(z)
        panels = [self._plane(axis, index).cropped().drawn(PANEL_PIXELS) for axis, index in enumerate((z, y, x))]
        marks = (("R", "L"), ("R", "L"), ("A", "P"))
        width = sum(panel.width for panel in panels) + MARGIN * (len(panels) + 1)
        height = max(panel.height for panel in panels) + 2 * MARGIN
        font = ImageFont.load_default(size=16)
        sheet = Image.new("RGB", (max(width, 760), height + LINE_HEIGHT * (len(lines) + 1) + MARGIN), BACKGROUND)
        draw, left = ImageDraw.Draw(sheet), MARGIN
        for panel, (first, last) in zip(panels, marks, strict=True):
            sheet.paste(panel, (left, MARGIN))
            middle = MARGIN + panel.height // 2
            draw.text((left + 4, middle), first, fill=TEXT, font=font, anchor="lm")
            draw.text((left + panel.width - 4, middle), last, fill=TEXT, font=font, anchor="rm")
            left += panel.width + MARGIN
        for number, line in enumerate((*lines, RESEARCH_USE)):
            draw.text((MARGIN, height + number * LINE_HEIGHT), line, fill=TEXT, font=font)
        return _png(sheet)

    def lesion(self, lesion: MeasuredLesion) -> bytes:
        """A PNG of the axial slice on which a lesion is longest, with both diameters."""
        ends = [
            self.image.TransformPhysicalPointToContinuousIndex(point)
            for diameter in (lesion.diameters.longest, lesion.diameters.perpendicular)
            for point in diameter.ends_lps_mm
        ]
        z = int(np.clip(round(ends[0][2]), 0, self.image_zyx.shape[0] - 1))
        plane, (rows, columns) = self._plane(0, z).around([(y, x) for x, y, _ in ends], AROUND_LESION_MM)
        picture = plane.drawn(LESION_PIXELS)
        scale_y, scale_x = picture.height / plane.image_yx.shape[0], picture.width / plane.image_yx.shape[1]
        points = [((x - columns.start + 0.5) * scale_x, (y - rows.start + 0.5) * scale_y) for x, y, _ in ends]
        draw = ImageDraw.Draw(picture)
        draw.line(points[:2], fill=LINE_COLOUR, width=2)
        draw.line(points[2:], fill=ACROSS_COLOUR, width=2)
        return _png(picture)

    def _centre_yx(self, z: int) -> tuple[int, int]:
        """The middle of the largest finding on an axial slice, or of the slice."""
        for mask_zyx in (self.tumour_zyx, self.liver_zyx):
            if mask_zyx[z].any():
                y, x = ndimage.center_of_mass(keep_largest_component(mask_zyx[z]))
                return round(y), round(x)
        return self.image_zyx.shape[1] // 2, self.image_zyx.shape[2] // 2

    def _plane(self, axis: int, index: int) -> _Slice:
        """A plane across an axis: coronal and sagittal planes with the head at the top."""
        spacing_zyx_mm = Geometry.of(self.image).spacing_zyx_mm
        rows, columns = ((1, 2), (0, 2), (0, 1))[axis]
        parts = [np.take(array_zyx, index, axis) for array_zyx in (self.image_zyx, self.liver_zyx, self.tumour_zyx)]
        image_yx, liver_yx, tumour_yx = (part if axis == 0 else part[::-1] for part in parts)
        return _Slice(image_yx, liver_yx, tumour_yx, (spacing_zyx_mm[rows], spacing_zyx_mm[columns]))


def _png(picture: Image.Image) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    note, buffer = PngInfo(), io.BytesIO()
    note.add_text("Disclaimer", RESEARCH_USE)  # a keyword of the PNG standard
    picture.save(buffer, "PNG", pnginfo=note)
    return buffer.getvalue()
