"""Compressed voxels: a flipped bit, a missing end or another size is refused; whatever else packs them is read."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from hepar.errors import DataError
from hepar.imaging.volumes import Geometry, read_image, to_array, to_image

GRID = Geometry((12, 20, 30), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
VOXELS = np.random.default_rng(0).integers(-100, 100, GRID.size_zyx).astype(np.int16)
META = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = True\n"
META += "ElementSpacing = 1 1 2\n{extra}DimSize = 30 20 12\nElementType = MET_SHORT\nElementDataFile = {data}"
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 30 20 12\nspacings: 1 1 2\nendian: little\nencoding: gzip\n{extra}"
DATA_FILE = {"a.nii.gz": "a.nii.gz", "a.mha": "a.mha", "a.mhd": "a.zraw", "a.nrrd": "a.nrrd", "a.nhdr": "a.raw.gz"}


def packed(path: Path) -> Path:
    sitk.WriteImage(to_image(VOXELS, GRID), str(path), useCompression=True)
    return path


def is_read(path: Path) -> bool:
    return np.array_equal(to_array(read_image(path)), VOXELS)


@pytest.mark.parametrize("name", DATA_FILE)
def test_a_flipped_bit_in_compressed_voxels_is_refused(name: str, tmp_path: Path) -> None:
    path, data = packed(tmp_path / name), tmp_path / DATA_FILE[name]
    assert is_read(path)
    whole = data.read_bytes()
    first = {"a.nii.gz": 700, "a.mha": whole.find(b"LOCAL") + 40, "a.nrrd": whole.find(b"\n\n") + 40}.get(name, 40)
    for at in np.linspace(first, len(whole) - 1, 40).astype(int):  # gzip's last bytes are its checksum and size
        damaged = bytearray(whole)
        damaged[at] ^= 4
        data.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"^{data} (is damaged|is truncated|holds more)"):
            read_image(path)


@pytest.mark.parametrize("name", DATA_FILE)
@pytest.mark.parametrize("lost", [1, 9, 2000])
def test_compressed_voxels_without_their_end_are_refused(name: str, lost: int, tmp_path: Path) -> None:
    path, data = packed(tmp_path / name), tmp_path / DATA_FILE[name]
    data.write_bytes(data.read_bytes()[:-lost])
    with pytest.raises(DataError, match=r"is truncated: it ends after \d+ of \d+ bytes|CompressedDataSize is"):
        read_image(path)


@pytest.mark.parametrize("extra", [-1, 1])
@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr"])
def test_a_whole_stream_of_another_size_is_refused(name: str, extra: int, tmp_path: Path) -> None:
    path, data = packed(tmp_path / name), tmp_path / DATA_FILE[name]
    raw = (VOXELS.tobytes() + b"x")[: VOXELS.nbytes + extra]
    path.write_text(
        META.format(extra="", data="a.zraw\n") if name == "a.mhd" else NRRD.format(extra="data file: a.raw.gz\n")
    )
    data.write_bytes(zlib.compress(raw) if name == "a.mhd" else gzip.compress(raw))
    with pytest.raises(DataError, match=r"is truncated: it ends after 14399 of|holds more than the 14400 bytes"):
        read_image(path)


def test_all_that_itk_unpacks_is_read(tmp_path: Path) -> None:
    raw = VOXELS.tobytes()
    streams = {
        "voxels.z": zlib.compress(raw),
        "later.z": b"x" * 100 + zlib.compress(raw),
        "voxels.gz": gzip.compress(raw),
        "members.gz": gzip.compress(raw[:999]) + gzip.compress(raw[999:]) + bytes(512),
        "bytes.gz": gzip.compress(b"y" * 50 + raw),
        "lines.gz": b"a\nb\n" + gzip.compress(raw),
    }
    streams |= {f"slice{number}.z": zlib.compress(plane_yx.tobytes()) for number, plane_yx in enumerate(VOXELS)}
    for name, stream in streams.items():
        (tmp_path / name).write_bytes(stream)
    size = len(streams["voxels.z"])
    slices = "".join(f"slice{number}.z\n" for number in range(len(VOXELS)))
    headers = {
        "whole.mhd": META.format(extra="", data="voxels.z\n"),
        "sized.mhd": META.format(extra=f"CompressedDataSize = {size}\n", data="voxels.z\n"),
        "later.mhd": META.format(extra=f"HeaderSize = 100\nCompressedDataSize = {size}\n", data="later.z\n"),
        "gzip.mhd": META.format(extra="", data="voxels.gz\n"),
        "list.mhd": META.format(extra="", data=f"LIST\n{slices}"),
        "whole.nhdr": NRRD.format(extra="data file: voxels.gz\n"),
        "members.nhdr": NRRD.format(extra="data file: members.gz\n"),
        "bytes.nhdr": NRRD.format(extra="byte skip: 50\ndata file: bytes.gz\n"),
        "end.nhdr": NRRD.format(extra="byte skip: -1\ndata file: bytes.gz\n"),
        "lines.nhdr": NRRD.format(extra="line skip: 2\ndata file: lines.gz\n"),
    }
    for name, text in headers.items():
        (tmp_path / name).write_text(text)
        assert is_read(tmp_path / name), name


def test_a_compressed_volume_larger_than_a_header_may_be_is_read(tmp_path: Path) -> None:
    noise_zyx = np.random.default_rng(1).integers(-(2**15), 2**15, (12, 200, 300)).astype(np.int16)
    for name in DATA_FILE:
        sitk.WriteImage(sitk.GetImageFromArray(noise_zyx), str(tmp_path / name), useCompression=True)
        assert (tmp_path / DATA_FILE[name]).stat().st_size > 2**20
        assert np.array_equal(to_array(read_image(tmp_path / name)), noise_zyx)
