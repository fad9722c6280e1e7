"""The preprocessed image and the targets of one case, chunked on disk so that a patch reads only its own chunks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hepar.pool.targets import Targets
from hepar.runtime.artifacts import sha256_json
from hepar.runtime.chunked import Sliceable, open_chunked, read_metadata, sha256_chunked, write_chunked


@dataclass(frozen=True)
class PreprocessedArrays:
    """One case in memory or on disk: `image_zyx` float16, `code_zyx` uint8.

    A code is a row of `palette_n4`, uint8: liver, tumour, liver weight, tumour weight. Few combinations of the four
    occur in a case.
    """

    image_zyx: Sliceable
    code_zyx: Sliceable
    palette_n4: npt.NDArray[np.uint8]

    IMAGE = "image.b2nd"
    LABELS = "labels.b2nd"
    FILES = (IMAGE, LABELS)

    @classmethod
    def encode(cls, image_zyx: npt.NDArray[np.float32], targets: Targets) -> PreprocessedArrays:
        """The arrays as they are stored. Raises ValueError if more than 256 combinations occur."""
        columns = (targets.liver_zyx, targets.tumour_zyx, targets.liver_weight_zyx, targets.tumour_weight_zyx)
        shifts = (24, 16, 8, 0)
        packed_zyx = sum(column.astype(np.uint32) << shift for column, shift in zip(columns, shifts, strict=True))
        values_n, code = np.unique(np.asarray(packed_zyx), return_inverse=True)
        if len(values_n) > 256:
            raise ValueError(
                f"{len(values_n)} combinations of labels and weights in one case, at most 256 can be stored"
            )
        palette_n4 = np.stack([(values_n >> shift & 255).astype(np.uint8) for shift in shifts], axis=1)
        return cls(image_zyx.astype(np.float16), code.reshape(image_zyx.shape).astype(np.uint8), palette_n4)

    @classmethod
    def open(cls, folder: Path) -> PreprocessedArrays:
        """The arrays on disk; a slice reads only its chunks. Raises ArtifactError if a file is missing or damaged."""
        image_zyx, code_zyx = open_chunked(folder / cls.IMAGE), open_chunked(folder / cls.LABELS)
        palette_n4 = np.array(read_metadata(code_zyx)["palette"], np.uint8)
        return cls(image_zyx, code_zyx, palette_n4)

    def save(self, folder: Path) -> None:
        """Writes the two files."""
        write_chunked(folder / self.IMAGE, np.asarray(self.image_zyx[:]))
        write_chunked(folder / self.LABELS, np.asarray(self.code_zyx[:]), palette=self.palette_n4.tolist())

    def loaded(self) -> PreprocessedArrays:
        """The same arrays in memory."""
        image_zyx, code_zyx = np.asarray(self.image_zyx[:]), np.asarray(self.code_zyx[:])
        return PreprocessedArrays(image_zyx, code_zyx, self.palette_n4)

    @property
    def liver_zyx(self) -> npt.NDArray[np.uint8]:
        """The target of the liver, 0 or 1."""
        return self.palette_n4[:, 0].take(np.asarray(self.code_zyx[:]))

    @property
    def tumour_zyx(self) -> npt.NDArray[np.uint8]:
        """The target of the tumour, 0 or 1."""
        return self.palette_n4[:, 1].take(np.asarray(self.code_zyx[:]))

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return 3 * int(np.prod(self.image_zyx.shape))


def hash_files(folder: Path) -> dict[str, str]:
    """Content hashes of the arrays in the folder of a case, by file name."""
    return {name: sha256_chunked(folder / name) for name in PreprocessedArrays.FILES}


def hash_arrays(file_hashes: Mapping[str, str]) -> str:
    """One hash for the arrays of a case, from those of `hash_files`."""
    return sha256_json([file_hashes[name] for name in PreprocessedArrays.FILES])
