"""Arrays on disk in chunks compressed by Blosc2: a part is read without the rest."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hepar.errors import ArtifactError, one_line
from hepar.runtime.whole_files import write_bytes

if TYPE_CHECKING:
    import numpy.typing as npt  # like blosc2 slow to import, and every command imports the artifacts

SUFFIX = ".b2nd"
CHUNK_ZYX, BLOCK_ZYX = (64, 64, 64), (16, 32, 32)  # a chunk is looked up, a block is decompressed
COMPRESSION_LEVEL = 5
METADATA_KEY = "hepar"


class Sliceable(Protocol):
    """An array in memory or on disk. Slicing it gives an array in memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, key: Any) -> Any: ...


def write_chunked(path: Path, array_zyx: npt.NDArray[Any], **metadata: Any) -> None:
    """Write an array zyx of any dtype, with numbers or lists of numbers that `read_metadata` returns.

    Raises StorageError if the disk is full.
    """
    import blosc2
    import numpy as np

    chunks = _clip(CHUNK_ZYX, array_zyx.shape)
    blocks = _clip(BLOCK_ZYX, chunks)
    stored = blosc2.asarray(
        np.ascontiguousarray(array_zyx),
        contiguous=True,
        chunks=chunks,
        blocks=blocks,
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": COMPRESSION_LEVEL, "nthreads": 1},
        dparams={"nthreads": 1},  # it stands in the file, and would be the number of cores
    )
    stored.schunk.vlmeta[METADATA_KEY] = metadata
    write_bytes(path, stored.to_cframe())  # the bytes that Blosc2 would write itself, without a look at the disk


def open_chunked(path: Path) -> Any:
    """A `Sliceable` that maps the file; threads cannot share it. Raises ArtifactError if it is not a chunked array."""
    import blosc2

    try:
        return blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
    except (OSError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"{path} is not a chunked array: {one_line(error)}") from None


def read_metadata(array: Any) -> dict[str, Any]:
    """The metadata written with an opened array."""
    return dict(array.schunk.vlmeta[METADATA_KEY])


def sha256_chunked(path: Path) -> str:
    """SHA-256 of dtype, shape, metadata and voxels: builds of a codec may compress the same voxels differently."""
    import numpy as np

    array = open_chunked(path)
    metadata = sorted(read_metadata(array).items())
    digest = hashlib.sha256(f"{array.dtype} {tuple(array.shape)} {metadata}".encode())
    steps = [range(0, size, step) for size, step in zip(array.shape, array.chunks, strict=True)]
    for start in itertools.product(*steps):
        part = tuple(slice(first, first + step) for first, step in zip(start, array.chunks, strict=True))
        digest.update(np.ascontiguousarray(array[part]).tobytes())
    return digest.hexdigest()


def _clip(sizes: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(min(size, n) for size, n in zip(sizes, shape, strict=True))
