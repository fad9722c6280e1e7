"""Arrays on disk of which a part is read without the rest: in chunks, compressed by Blosc2."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import blosc2
import numpy as np
import numpy.typing as npt

from hepar.errors import ArtifactError

SUFFIX = ".b2nd"
CHUNK_ZYX, BLOCK_ZYX = (64, 64, 64), (16, 32, 32)  # a chunk is looked up, a block unpacked
LEVEL = 5
FACTS = "hepar"


class Sliceable(Protocol):
    """An array in memory or on disk; a slice of it is an array in memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, key: Any) -> Any: ...


def write_chunked(path: Path, array: npt.NDArray[Any], **facts: Any) -> None:
    """Write an array zyx, and some numbers or lists of numbers that are read back by `read_facts`."""
    chunks = _within(CHUNK_ZYX, array.shape)
    blocks = _within(BLOCK_ZYX, chunks)
    settings = {"codec": blosc2.Codec.ZSTD, "clevel": LEVEL, "nthreads": 1}
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = blosc2.asarray(
        np.ascontiguousarray(array), urlpath=str(path), mode="w", chunks=chunks, blocks=blocks, cparams=settings
    )
    stored.schunk.vlmeta[FACTS] = facts


def open_chunked(path: Path) -> Any:
    """The array as a `Sliceable` that maps its file; not to be shared by threads. Raises ArtifactError for none."""
    try:
        return blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
    except (OSError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"{path} is no chunked array: {' '.join(str(error).split())}") from None


def read_facts(array: Any) -> dict[str, Any]:
    """What was written with an opened array."""
    return dict(array.schunk.vlmeta[FACTS])


def sha256_chunked(path: Path) -> str:
    """SHA-256 of type, shape, facts and voxels: builds of a codec may compress the same voxels differently."""
    array = open_chunked(path)
    facts = sorted(read_facts(array).items())
    digest = hashlib.sha256(f"{array.dtype} {tuple(array.shape)} {facts}".encode())
    steps = [range(0, size, step) for size, step in zip(array.shape, array.chunks, strict=True)]
    for start in itertools.product(*steps):
        part = tuple(slice(first, first + step) for first, step in zip(start, array.chunks, strict=True))
        digest.update(np.ascontiguousarray(array[part]).tobytes())
    return digest.hexdigest()


def _within(sizes: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(min(size, n) for size, n in zip(sizes, shape, strict=True))
