"""Pictures of a box in a scan of unequal spacing, measured in the pixels of the PNG."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dicom_files import phantom_voxels, write_series
from PIL import Image
from predicted import predicted

from hepar.cases import Modality
from hepar.imaging.display import scale_to_window
from hepar.imaging.volumes import Geometry, to_image
from hepar.prediction.pictures import BACKGROUND, LIVER_COLOUR, MARGIN, TEXT, ScanPictures, _font

SPACING_ZYX_MM = (5.0, 2.0, 1.0)
BOX = (slice(8, 20), slice(20, 60), slice(40, 160))  # 60 mm high, 80 mm deep, 120 mm wide
SIZE_ZYX = (28, 80, 200)
WINDOW = (0.0, 1.0)


def overview(*lines: str, spacing_zyx_mm: tuple[float, float, float] = SPACING_ZYX_MM) -> npt.NDArray[np.uint8]:
    """RGB pixels of the overview of a box of liver, uint8 yx3."""
    grid = Geometry(SIZE_ZYX, spacing_zyx_mm, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    image_zyx, liver_zyx = np.zeros(SIZE_ZYX, np.float32), np.zeros(SIZE_ZYX, bool)
    liver_zyx[BOX] = True
    pictures = ScanPictures(to_image(image_zyx, grid), image_zyx, liver_zyx, np.zeros(SIZE_ZYX, bool), WINDOW)
    png = pictures.overview(lines)
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture)


def is_colour(pixels: npt.NDArray[np.uint8], colour: tuple[int, int, int]) -> npt.NDArray[Any]:
    return np.asarray((pixels == np.array(colour, np.uint8)).all(axis=-1))


def liver_sizes(pixels: npt.NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Height and width in pixels of the green outline in each panel."""
    green = is_colour(pixels, LIVER_COLOUR)
    columns = np.flatnonzero(green.any(axis=0))
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    return [(int(np.ptp(np.flatnonzero(green[:, part].any(axis=1)))) + 1, len(part)) for part in groups]


def longest_run(flags_n: npt.NDArray[Any]) -> int:
    return max(len(part) for part in "".join("x" if flag else " " for flag in flags_n).split(" "))


def test_the_planes_have_one_scale_and_a_bar_of_it() -> None:
    pixels = overview()
    axial, coronal, sagittal = liver_sizes(pixels)
    per_mm = axial[1] / 120
    assert axial == (pytest.approx(80 * per_mm, abs=3), axial[1])
    assert coronal == (pytest.approx(60 * per_mm, abs=6), pytest.approx(120 * per_mm, abs=3))
    assert sagittal == (pytest.approx(60 * per_mm, abs=6), pytest.approx(80 * per_mm, abs=3))
    runs = {longest_run(row_n) for row_n in is_colour(pixels, TEXT)}
    assert max(runs) == pytest.approx(20 * per_mm, abs=2)  # of 20 mm, since the narrowest panel is narrower than 150 mm


def test_the_edge_of_a_picture_is_no_outline() -> None:
    grid = Geometry((4, 40, 40), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    image_zyx, everywhere_zyx = np.zeros(grid.size_zyx, np.float32), np.ones(grid.size_zyx, bool)
    pictures = ScanPictures(to_image(image_zyx, grid), image_zyx, everywhere_zyx, ~everywhere_zyx, WINDOW)
    with Image.open(io.BytesIO(pictures.overview([]))) as picture:
        assert not is_colour(np.asarray(picture), LIVER_COLOUR).any()


def test_a_panel_that_is_narrower_than_the_bar_has_none() -> None:
    pixels = overview(spacing_zyx_mm=(0.5, 0.2, 0.09))  # 16 and 18 mm wide
    assert max(longest_run(row_n) for row_n in is_colour(pixels, TEXT)) < 30


def test_long_lines_are_wrapped_within_the_picture() -> None:
    short, long = overview("a word"), overview("a word " * 60)
    assert long.shape[0] > short.shape[0] + 40
    assert is_colour(long[:, -MARGIN:], BACKGROUND).all()


@pytest.mark.parametrize("letter", "²−×°")
def test_the_font_has_the_letters_of_the_texts(letter: str) -> None:
    font, missing = _font(), "\uffff"
    assert bytes(font.getmask(letter)) != bytes(font.getmask(missing))


def test_a_bright_organ_does_not_make_the_liver_of_mr_black(tmp_path: Path) -> None:
    write_series(tmp_path, phantom_voxels())
    scan = predicted(tmp_path)
    image_zyx = np.where(scan.found.liver_zyx, np.indices(scan.found.liver_zyx.shape).sum(axis=0) % 20 + 90, 3000)
    shown = replace(scan, image=to_image(image_zyx.astype(np.int16), scan.found.geometry), modality=Modality.MR)
    pictures = ScanPictures.of(shown)
    shades_zyx = scale_to_window(pictures.image_zyx, pictures.window)
    assert np.median(shades_zyx[pictures.liver_zyx]) == pytest.approx(0.5, abs=0.05)
