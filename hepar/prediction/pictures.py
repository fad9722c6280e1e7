"""Pictures of a predicted scan: three planes through the largest finding, and each lesion with its diameters.

Arrays are canonical. Axial slices are shown as radiologists see them: front at the top, the patient's right on the
left.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from hepar.evaluation.outlines import crop_box
from hepar.evaluation.pictures import scale_bar_mm
from hepar.evaluation.research_use import RESEARCH_USE
from hepar.imaging.display import CT_WINDOW_HU, display_window, largest_slice, scale_to_window
from hepar.imaging.masks import Mask, keep_largest_component
from hepar.imaging.volumes import Array, Geometry, canonical, to_array, to_image
from hepar.prediction.measurements import MeasuredLesion
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
MARGIN, LINE_HEIGHT, FONT_SIZE, MIN_WIDTH = 12, 24, 16, 760
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Slice:
    """A plane of a volume, 0…1, with its masks: row 0 is shown at the top, column 0 on the left."""

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

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width."""
        (rows, columns), (row_mm, column_mm) = self.image_yx.shape, self.spacing_yx_mm
        return rows * row_mm, columns * column_mm

    def drawn(self, pixels_per_mm: float) -> Image.Image:
        """The plane in its true proportions with outlines, one pixel wide."""
        height_mm, width_mm = self.size_mm
        size = (max(1, round(width_mm * pixels_per_mm)), max(1, round(height_mm * pixels_per_mm)))
        grey = Image.fromarray(np.round(self.image_yx * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
        colours = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
        for mask_yx, colour in ((self.liver_yx, LIVER_COLOUR), (self.tumour_yx, TUMOUR_COLOUR)):
            large_yx = np.asarray(Image.fromarray(mask_yx.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0
            inner_yx = ndimage.binary_erosion(large_yx, border_value=1)  # the edge of a picture is no outline
            colours[large_yx & ~inner_yx] = colour
        return Image.fromarray(colours)


@dataclass(frozen=True)
class ScanPictures:
    """What pictures are drawn from: a canonical scan, its masks, and the intensities that are black and white.

    Only the planes that are drawn are scaled, since a scan of the trunk has 300 MiB.
    """

    image: sitk.Image
    image_zyx: Array
    liver_zyx: Mask
    tumour_zyx: Mask
    window: tuple[float, float]

    @classmethod
    def of(cls, predicted: PredictedScan) -> ScanPictures:
        """The canonical volumes of a predicted scan."""
        image, grid = canonical(predicted.image), predicted.found.geometry
        image_zyx = to_array(image)
        liver_zyx, tumour_zyx = (
            to_array(canonical(to_image(mask_zyx, grid))) > 0
            for mask_zyx in (predicted.found.liver_zyx, predicted.found.tumour_zyx)
        )
        window = display_window(image_zyx, predicted.modality, CT_WINDOW_HU, liver_zyx)
        return cls(image, image_zyx, liver_zyx, tumour_zyx, window)

    def overview(self, lines: Sequence[str]) -> bytes:
        """A PNG of an axial, a coronal and a sagittal plane through the largest finding, in one scale, above lines of
        text, which are wrapped."""
        z = largest_slice((self.tumour_zyx, self.liver_zyx), self.image_zyx.shape[0])
        y, x = self._centre_yx(z)
        planes = [self._plane(axis, index).cropped() for axis, index in enumerate((z, y, x))]
        pixels_per_mm = PANEL_PIXELS / max(max(plane.size_mm) for plane in planes)
        panels, font = [plane.drawn(pixels_per_mm) for plane in planes], _font()
        width = max(MIN_WIDTH, sum(panel.width for panel in panels) + MARGIN * (len(panels) + 1))
        height = max(panel.height for panel in panels) + 2 * MARGIN
        rows = [row for line in (*lines, RESEARCH_USE) for row in _wrapped(line, font, width - 2 * MARGIN)]
        sheet, left = Image.new("RGB", (width, height + LINE_HEIGHT * len(rows) + MARGIN), BACKGROUND), MARGIN
        bar_mm = scale_bar_mm(min(plane.size_mm[1] for plane in planes))
        for panel, sides in zip(panels, (("R", "L"), ("R", "L"), ("A", "P")), strict=True):
            _mark(panel, sides, bar_mm, bar_mm * pixels_per_mm)
            sheet.paste(panel, (left, MARGIN))
            left += panel.width + MARGIN
        draw = ImageDraw.Draw(sheet)
        for number, row in enumerate(rows):
            draw.text((MARGIN, height + number * LINE_HEIGHT), row, fill=TEXT, font=font)
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
        picture = plane.drawn(LESION_PIXELS / max(plane.size_mm))
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
        spacing_yx_mm = spacing_zyx_mm[rows], spacing_zyx_mm[columns]
        return _Slice(scale_to_window(image_yx, self.window), liver_yx, tumour_yx, spacing_yx_mm)


def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with Matplotlib: the font of Pillow has no ², − or ×."""
    import matplotlib as mpl

    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), FONT_SIZE)


def _wrapped(line: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A line as rows of whole words that fit a width in pixels; a longer word has a row of its own."""
    rows: list[str] = []
    for word in line.split():
        if rows and font.getlength(f"{rows[-1]} {word}") <= width:
            rows[-1] += f" {word}"
        else:
            rows.append(word)
    return rows


def _mark(panel: Image.Image, sides: tuple[str, str], bar_mm: int, bar_pixels: float) -> None:
    """Write the patient's sides on a panel, and a scale bar if it fits, all with a dark outline."""
    draw, font = ImageDraw.Draw(panel), _font()
    for x, side, anchor in ((4, sides[0], "lm"), (panel.width - 4, sides[1], "rm")):
        draw.text((x, panel.height // 2), side, TEXT, font, anchor, stroke_width=2, stroke_fill=BACKGROUND)
    right, bottom = panel.width - 8, panel.height - 8
    left = right - round(bar_pixels) + 1
    if left < 8:
        return
    draw.rectangle((left - 1, bottom - 2, right + 1, bottom + 1), fill=BACKGROUND)
    draw.rectangle((left, bottom - 1, right, bottom), fill=TEXT)
    place, text = (right, bottom - 6), f"{bar_mm} mm"
    draw.text(place, text, TEXT, font, "rs", stroke_width=2, stroke_fill=BACKGROUND)


def _png(picture: Image.Image) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    note, buffer = PngInfo(), io.BytesIO()
    note.add_text("Disclaimer", RESEARCH_USE)  # a keyword of the PNG standard
    picture.save(buffer, "PNG", pnginfo=note)
    return buffer.getvalue()
