"""Headers of volume files: those that are right are read as ITK reads them, all others are refused, never followed."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from hepar.errors import DataError
from hepar.imaging.headers import read_header
from hepar.imaging.volumes import Geometry, read_image, to_array, to_image

TURNED = (0.8, 0.6, 0.0, -0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
GRID = Geometry((6, 7, 8), (2.5, 0.7, 0.8), (10.5, -20.25, 30.0), TURNED)
VOXELS = np.random.default_rng(0).integers(-1000, 1000, GRID.size_zyx).astype(np.int16)
FEW = settings(max_examples=150, deadline=None, derandomize=True)


def write(path: Path, compressed: bool = False) -> Path:
    sitk.WriteImage(to_image(VOXELS, GRID), str(path), useCompression=compressed)
    return path


def meta(size: str = "8 7 6", spacing: str = "ElementSpacing = 0.8 0.7 2.5\n", data: str = "voxels.raw") -> str:
    return (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n{spacing}"
        f"DimSize = {size}\nElementType = MET_SHORT\nElementDataFile = {data}\n"
    )


def nrrd(data: str = "data file: voxels.raw\n", spacing: str = "spacings: 0.8 0.7 2.5\n", encoding: str = "raw") -> str:
    return (
        f"NRRD0004\n# a comment\ntype: short\ndimension: 3\nsizes: 8 7 6\n{spacing}endian: little\n"
        f"encoding: {encoding}\nnote:=data file: elsewhere.raw\n{data}"
    )


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.mhd", "a.nrrd", "a.nhdr"])
def test_what_itk_writes_is_read_as_itk_reads_it(name: str, compressed: bool, tmp_path: Path) -> None:
    path = write(tmp_path / name, compressed)
    own, itk = read_image(path), sitk.ReadImage(str(path))
    assert np.array_equal(to_array(own), VOXELS)
    assert Geometry.of(own) == Geometry.of(itk)
    assert own.GetPixelID() == itk.GetPixelID()
    assert read_header(path).size_xyz == (8, 7, 6)


@pytest.mark.parametrize("folder", ["", "sub folder/"])
def test_voxels_in_other_files_are_read(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "voxels.raw").write_bytes(VOXELS.tobytes())
    (tmp_path / folder / "voxels.raw.gz").write_bytes(gzip.compress(VOXELS.tobytes()))
    for number, plane_yx in enumerate(VOXELS):
        (tmp_path / folder / f"slice{number:02d}.raw").write_bytes(plane_yx.tobytes())
    slices = "".join(f"{folder}slice{number:02d}.raw\n" for number in range(6))
    texts = {
        "whole.mhd": meta(data=f"{folder}voxels.raw"),
        "whole.mha": meta(data=f"{folder}voxels.raw"),
        "list.mhd": meta(data="LIST\n" + slices),
        "whole.nhdr": nrrd(f"data file: {folder}voxels.raw\n"),
        "short.nhdr": nrrd(f"datafile: {folder}voxels.raw\n"),
        "packed.nhdr": nrrd(f"data file: {folder}voxels.raw.gz\n", encoding="gzip"),
        "list.nhdr": nrrd("data file: LIST\n" + slices),
    }
    if not folder:
        texts["pattern.mhd"] = meta(data="slice%02d.raw 0 5 1")
        texts["pattern.nhdr"] = nrrd("data file: slice%02d.raw 0 5 1\n")
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        image = read_image(tmp_path / name)
        assert np.array_equal(to_array(image), VOXELS), name
        assert image.GetSpacing() == (0.8, 0.7, 2.5), name
        files = read_header(tmp_path / name).data_files
        assert len(files) == (6 if name.startswith(("list", "pattern")) else 1)


def test_a_large_volume_beside_its_header_is_read(tmp_path: Path) -> None:
    with (tmp_path / "voxels.raw").open("wb") as file:
        file.truncate(512 * 512 * 530 * 2)
    (tmp_path / "a.mhd").write_text(meta(size="512 512 530"))
    assert read_image(tmp_path / "a.mhd").GetSize() == (512, 512, 530)


def outside_as_link(folder: Path) -> str:
    (folder / "link.raw").symlink_to(folder.parent / "outside.raw")
    return "link.raw"


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe.raw")
    return "pipe.raw"


@pytest.mark.parametrize(
    ("name_in", "words"),
    [
        (lambda folder: "../outside.raw", "leads out of the source"),
        (lambda folder: str(folder.parent / "outside.raw"), "leads out of the source"),
        (outside_as_link, "leads out of the source"),
        (pipe, "is a device or pipe"),
        (lambda folder: "/dev/zero", "is a device or pipe"),
        (lambda folder: "none.raw", "does not exist"),
        (lambda folder: ".", "is a folder"),
        (lambda folder: "LIST\n../outside.raw", "leads out of the source"),
        (lambda folder: "%s%n", "its pattern of data files is"),
        (lambda folder: "%d%d.raw 1 2 1", "its pattern of data files is"),
        (lambda folder: "%99999d.raw 1 2 1", "its pattern of data files is"),
        (lambda folder: "%d.raw 0 999999999 1", "its pattern of data files is"),
        (lambda folder: "%d.raw 0 5 0", "its pattern of data files is"),
    ],
)
@pytest.mark.parametrize("name", ["a.mhd", "a.mha", "a.nhdr", "a.nrrd"])
def test_a_header_is_not_followed_elsewhere(
    name: str, name_in: Callable[[Path], str], words: str, tmp_path: Path
) -> None:
    (tmp_path / "outside.raw").write_bytes(VOXELS.tobytes())
    folder = tmp_path / "source"
    folder.mkdir()
    data = name_in(folder)
    (folder / name).write_text(meta(data=data) if name.startswith("a.m") else nrrd(f"data file: {data}\n"))
    with pytest.raises(DataError, match=words):
        read_image(folder / name)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.mha", meta().replace("NDims = 3", "NDims = -1"), "NDims is -1"),
        ("a.mha", meta().replace("NDims = 3", "NDims = 99"), "NDims is 99"),
        ("a.mha", meta().replace("NDims = 3", "NDims = %s%n"), "NDims is '%s%n'"),
        ("a.mha", meta(size="8 7 -6"), "its size is"),
        ("a.mha", meta(size="8 7"), "DimSize is '8 7' but must be 3 numbers"),
        ("a.mha", meta(spacing=""), "a header gives the voxel size"),
        ("a.mha", meta(spacing="ElementSpacing = 1 1 nan\n"), "a voxel has"),
        ("a.mha", meta().replace("MET_SHORT", "MET_SHORT_ARRAY"), "a voxel is one real number"),
        ("a.mha", "Comment = a\rElementDataFile = /etc/passwd\n" + meta(), "holds the control sign"),
        ("a.mha", meta().replace("DimSize", "NDims = 3\nDimSize"), "its header is damaged at the line"),
        ("a.nrrd", nrrd(spacing=""), "a header gives the voxel size"),
        ("a.nrrd", nrrd(spacing="spacings: nan nan nan\n"), "a header gives the voxel size"),
        ("a.nrrd", nrrd().replace("short", "block"), "a voxel is one real number"),
        ("a.nrrd", nrrd().replace("dimension: 3", "dimension: 0"), "its dimension is 0"),
        ("a.nhdr", nrrd(""), "its header names no data file"),
        ("a.hdr", "", "its name must end in .nii"),
    ],
)
def test_a_wrong_header_is_refused(name: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "voxels.raw").write_bytes(VOXELS.tobytes())
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words):
        read_image(tmp_path / name)


def test_a_header_without_the_voxel_size_is_read_where_distances_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "voxels.raw").write_bytes(VOXELS.tobytes())
    (tmp_path / "a.mha").write_text(meta(spacing=""))
    assert read_image(tmp_path / "a.mha", spacing_known=False).GetSpacing() == (1.0, 1.0, 1.0)


def patched(path: Path, at: int, kind: str, *values: float) -> Path:
    """The NIfTI file with some numbers of its header replaced."""
    raw = bytearray(path.read_bytes())
    struct.pack_into(f"<{kind}", raw, at, *values)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("at", "kind", "values", "words"),
    [
        (80, "f", (0.0,), "a header gives the voxel size"),
        (80, "f", (-1.0,), "a voxel has 0.05 to 50 mm"),
        (80, "f", (float("nan"),), "a voxel has|affine matrix|pixdim"),
        (80, "3f", (1e30, 1e30, 1e30), "affine matrix|a voxel has"),
        (84, "f", (7.0,), "the affine matrix of a NIfTI file has its voxel size"),
        (280, "f", (float("inf"),), "unit vectors at right angles"),
        (284, "f", (0.7,), "unit vectors at right angles|affine matrix"),
        (256, "f", (3.0,), "unit vectors at right angles"),
        (68, "h", (1007,), "a voxel is one real number"),
        (70, "h", (32,), "a voxel is one real number"),
        (70, "h", (128,), "a voxel is one real number"),
        (344, "4s", (b"ni1\0",), "NIfTI file that holds its own voxels"),
        (40, "h", (99,), "NIfTI file|dimensions"),
        (42, "h", (-3,), "its size is"),
        (108, "f", (float("nan"),), "cannot be read"),
        (0, "i", (347,), "its header has another size"),
    ],
)
def test_a_wrong_nifti_header_is_refused(
    at: int, kind: str, values: tuple[float, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words):
        read_image(patched(write(tmp_path / "a.nii"), at, kind, *values))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image: image.SetSpacing((0.01, 1.0, 1.0)), r"a voxel has 0\.05 to 50 mm"),
        (lambda image: image.SetSpacing((1.0, 1.0, 10_000.0)), r"a voxel has 0\.05 to 50 mm"),
        (lambda image: image.SetOrigin((float("nan"), 0.0, 0.0)), "lies within 100 m of its origin"),
        (lambda image: image.SetOrigin((1e30, 0.0, 0.0)), "lies within 100 m of its origin"),
        (lambda image: image.SetDirection((2.0, 0, 0, 0, 1, 0, 0, 0, 1)), "unit vectors at right angles"),
        (lambda image: image.SetDirection((1.0, 0.1, 0, 0, 1, 0, 0, 0, 1)), "unit vectors at right angles"),
    ],
)
def test_a_grid_that_no_scanner_makes_is_refused(
    change: Callable[[sitk.Image], None], words: str, tmp_path: Path
) -> None:
    image = to_image(VOXELS, GRID)
    change(image)
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    with pytest.raises(DataError, match=words):
        read_image(tmp_path / "a.mha")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image: image.SetSpacing((0.01, 1.0, 1.0)), r"a voxel has 0\.05 to 50 mm"),
        (lambda image: image.SetOrigin((1e30, 0.0, 0.0)), "lies within 100 m of its origin"),
        (lambda image: image.SetDirection((1.0, 0.1, 0, 0, 1, 0, 0, 0, 1)), "unit vectors at right angles"),
    ],
)
def test_a_grid_is_checked_as_itk_reads_it(change: Callable[[sitk.Image], None], words: str, tmp_path: Path) -> None:
    image = to_image(VOXELS, GRID)
    change(image)
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    with pytest.raises(DataError, match=words):
        read_image(tmp_path / "a.nrrd")


def test_axes_that_are_rounded_to_four_digits_pass(tmp_path: Path) -> None:
    image = to_image(VOXELS, GRID)
    turn = sitk.Euler3DTransform()
    turn.SetRotation(0.1, 0.2, 0.3)
    image.SetDirection([round(value, 4) for value in turn.GetMatrix()])
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    assert np.array_equal(to_array(read_image(tmp_path / "a.mha")), VOXELS)


def test_a_file_is_unpacked_no_further_than_its_header_says(tmp_path: Path) -> None:
    write(tmp_path / "a.nii")
    packed = gzip.compress((tmp_path / "a.nii").read_bytes()) + gzip.compress(bytes(2**26)) * 64  # 4 GiB
    (tmp_path / "a.nii.gz").write_bytes(packed)
    read = []

    class Counting:
        def __init__(self, wbits: int) -> None:
            self.stream = zlib.decompressobj(wbits)

        def decompress(self, packed: bytes, most: int) -> bytes:
            read.append(len(part := self.stream.decompress(packed, most)))
            return part

        def __getattr__(self, name: str) -> object:
            return getattr(self.stream, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hepar.imaging.packed_voxels.zlib", SimpleNamespace(decompressobj=Counting, error=zlib.error))
        assert np.array_equal(to_array(read_image(tmp_path / "a.nii.gz")), VOXELS)
    assert VOXELS.nbytes < sum(read) < 2**22


@pytest.mark.parametrize("name", ["a.nii", "a.mha", "a.mhd", "a.nrrd", "a.nhdr"])
@given(edits=st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=4)), min_size=1, max_size=3))
@FEW
def test_a_mutated_header_gives_a_volume_or_one_refusal(
    name: str, edits: list[tuple[int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("mutated")
    raw = bytearray(write(folder / name).read_bytes())
    for at, by in edits:
        at %= len(raw)
        raw[at : at + len(by)] = by
    (folder / name).write_bytes(raw)
    try:
        image = read_image(folder / name)
    except DataError:
        return
    assert image.GetDimension() == 3
