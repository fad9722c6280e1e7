"""Compressed voxels of a file, unpacked to the end and checked before ITK reads them.

ITK ignores errors in a compressed stream and leaves whatever memory held. Both gzip and zlib end a stream with a
checksum, which it does not reach or not compare.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hepar.errors import DataError

GZIP, GZIP_OR_ZLIB = 31, 47  # of zlib's `wbits`
READ_BYTES, UNPACKED_BYTES = 2**18, 2**20  # of a block


@dataclass(frozen=True)
class PackedVoxels:
    """Where a compressed stream lies in a file, and how many bytes it holds: `unpacked_bytes`, and up to `spare_bytes`.

    If `stored_bytes` is None, it goes to the end of the file. A gzip file may have several members; those that begin
    after its voxels are ignored. Other streams are one.
    """

    unpacked_bytes: int
    spare_bytes: int = 0
    wbits: int = GZIP
    offset: int = 0
    skipped_lines: int = 0
    stored_bytes: int | None = None

    def check(self, path: Path) -> None:
        """Raise DataError unless the stream in a file is whole, passes its checksum and has the size it should have."""
        found_bytes = 0
        with path.open("rb") as file:
            file.seek(self.offset)
            for _ in range(self.skipped_lines):
                if not file.readline():
                    break
            try:
                for member in self._members(file):
                    for count in member:
                        found_bytes += count
                        if found_bytes > self.unpacked_bytes + self.spare_bytes:
                            raise DataError(f"{path} holds more than the {self.unpacked_bytes} bytes of its size")
                    if found_bytes >= self.unpacked_bytes:
                        return
            except EOFError:
                pass
            except zlib.error:
                raise DataError(f"{path} is damaged: its compressed voxels cannot be unpacked") from None
        raise DataError(f"{path} is truncated: it ends after {found_bytes} of {self.unpacked_bytes} bytes")

    def _members(self, file: BinaryIO) -> Iterator[Iterator[int]]:
        """The sizes of each member's unpacked blocks. Raises EOFError if one does not end, zlib.error if damaged."""
        blocks = self._blocks(file)
        rest = next(blocks, b"")

        def member(stream: zlib._Decompress) -> Iterator[int]:
            nonlocal rest
            while not stream.eof:
                if not rest and not (rest := next(blocks, b"")):
                    raise EOFError
                yield len(stream.decompress(rest, UNPACKED_BYTES))
                rest = stream.unconsumed_tail
            rest = stream.unused_data or next(blocks, b"")

        yield member(zlib.decompressobj(self.wbits))
        while self.wbits == GZIP and rest.startswith(b"\x1f"):  # zlib takes anything else for padding
            yield member(zlib.decompressobj(self.wbits))

    def _blocks(self, file: BinaryIO) -> Iterator[bytes]:
        left_bytes = self.stored_bytes
        while block := file.read(READ_BYTES if left_bytes is None else min(left_bytes, READ_BYTES)):
            left_bytes = None if left_bytes is None else left_bytes - len(block)
            yield block
