"""Chunked arrays: whole and partial reads return what was written, and the hash depends on content only."""

from __future__ import annotations

from pathlib import Path

import blosc2
import numpy as np
import pytest

from hepar.errors import ArtifactError
from hepar.runtime.chunked import open_chunked, read_metadata, sha256_chunked, write_chunked


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 65, 130), (70, 20, 64)])
@pytest.mark.parametrize("dtype", [np.float16, np.uint8])
def test_any_slice_is_read_as_written(shape: tuple[int, ...], dtype: type, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    array = rng.integers(0, 200, shape).astype(dtype)
    write_chunked(tmp_path / "deep" / "a.b2nd", array, scale=-1.5, palette=[[1, 2]])
    stored = open_chunked(tmp_path / "deep" / "a.b2nd")
    assert read_metadata(stored) == {"scale": -1.5, "palette": [[1, 2]]}
    assert stored[:].dtype == dtype
    assert np.array_equal(stored[:], array)
    for _ in range(20):
        low = [int(rng.integers(n)) for n in shape]
        part = tuple(slice(a, int(rng.integers(a, n)) + 1) for a, n in zip(low, shape, strict=True))
        assert np.array_equal(stored[part], array[part])


def test_reading_a_patch_decompresses_only_its_chunks(tmp_path: Path) -> None:
    array = np.random.default_rng(1).integers(0, 255, (128, 256, 256), np.uint8)
    write_chunked(tmp_path / "a.b2nd", array)
    with (tmp_path / "a.b2nd").open("r+b") as stream:  # a patch at the start must not read the damaged bytes
        size = (tmp_path / "a.b2nd").stat().st_size
        stream.seek(size // 2)
        stream.write(bytes(size // 4))
    assert np.array_equal(open_chunked(tmp_path / "a.b2nd")[:20, :20, :20], array[:20, :20, :20])


def test_the_hash_covers_voxels_and_metadata_but_not_compression(tmp_path: Path) -> None:
    array = np.arange(6 * 70 * 80, dtype=np.float16).reshape(6, 70, 80)
    write_chunked(tmp_path / "a.b2nd", array, scale=0.0)
    wanted = sha256_chunked(tmp_path / "a.b2nd")
    first = open_chunked(tmp_path / "a.b2nd")
    weak = blosc2.asarray(
        array, urlpath=str(tmp_path / "b.b2nd"), mode="w", chunks=first.chunks, blocks=(2, 9, 9), cparams={"clevel": 1}
    )
    weak.schunk.vlmeta["hepar"] = {"scale": 0.0}
    assert (tmp_path / "a.b2nd").read_bytes() != (tmp_path / "b.b2nd").read_bytes()
    assert sha256_chunked(tmp_path / "b.b2nd") == wanted
    write_chunked(tmp_path / "c.b2nd", array, scale=0.5)
    write_chunked(tmp_path / "d.b2nd", array.reshape(6, 80, 70), scale=0.0)
    array[5, 69, 79] = -1
    write_chunked(tmp_path / "e.b2nd", array, scale=0.0)
    assert wanted not in {sha256_chunked(tmp_path / f"{name}.b2nd") for name in "cde"}


def test_equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    array = np.random.default_rng(1).normal(size=(40, 70, 80)).astype(np.float16)
    for name in ("a", "b"):
        write_chunked(tmp_path / f"{name}.b2nd", array, scale=0.0)
    assert (tmp_path / "a.b2nd").read_bytes() == (tmp_path / "b.b2nd").read_bytes()


@pytest.mark.parametrize("threads", [1, 3, 64])
def test_the_number_of_cores_is_not_in_the_bytes(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array_zyx = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    write_chunked(tmp_path / "here.b2nd", array_zyx)
    monkeypatch.setattr(blosc2, "nthreads", threads)
    write_chunked(tmp_path / "there.b2nd", array_zyx)
    assert (tmp_path / "here.b2nd").read_bytes() == (tmp_path / "there.b2nd").read_bytes()


def test_a_damaged_or_missing_file_raises_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.b2nd").write_bytes(b"not a chunked array")
    for name in ("a.b2nd", "missing.b2nd"):
        with pytest.raises(ArtifactError, match=f"{name} is not a chunked array"):
            open_chunked(tmp_path / name)
