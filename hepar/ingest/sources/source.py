"""A case as its source declares it, before any voxel is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import SimpleITK as sitk

from hepar.cases import LabelState, Modality, Split
from hepar.errors import Refusal
from hepar.imaging.volumes import read_image
from hepar.ingest.sources.remote_cache import RemoteFile

DETACHED = {  # MetaImage and NRRD headers that may name another file for their voxels
    ".mhd": re.compile(rb"^ElementDataFile\s*=\s*(.+)$", re.MULTILINE),
    ".nhdr": re.compile(rb"^data file:\s*(.+)$", re.MULTILINE | re.IGNORECASE),
}
HEADER_BYTES = 2**16


class Volume(Protocol):
    """An image or a mask that a reader found."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that the voxels come from."""

    def read(self) -> sitk.Image:
        """The volume as stored. Raises DataError if a file is missing, unreadable or breaks a rule."""


@dataclass(frozen=True)
class VolumeFile:
    """One file that SimpleITK reads: NIfTI, NRRD, MetaImage."""

    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, and the file of its voxels if a header names another."""
        pattern = DETACHED.get(self.path.suffix.lower())
        if pattern is None or not self.path.is_file():
            return (self.path,)
        found = pattern.search(self.path.read_bytes()[:HEADER_BYTES])
        name = Path(found[1].decode(errors="replace").strip()).name if found else "LOCAL"
        return (self.path,) if name in ("LOCAL", "LIST") else (self.path, self.path.with_name(name))

    def read(self) -> sitk.Image:
        return read_image(self.path)


@dataclass(frozen=True)
class LabelMap:
    """A mask of the voxels whose label is in `values`. `declared` are all labels of the layout."""

    volume: Volume
    values: frozenset[int]
    declared: frozenset[int]

    @property
    def files(self) -> tuple[Path, ...]:
        return self.volume.files

    def read(self) -> sitk.Image:
        labels = self.volume.read()
        labels_zyx = sitk.GetArrayFromImage(labels)
        if strange := sorted(set(np.unique(labels_zyx).tolist()) - self.declared):
            known = ", ".join(map(str, sorted(self.declared)))
            raise Refusal(f"a label map contains only declared values ({known})", f"value {strange[0]:g}")
        mask = sitk.GetImageFromArray(np.isin(labels_zyx, list(self.values)).astype(np.uint8))
        mask.CopyInformation(labels)
        return mask


@dataclass(frozen=True)
class Union:
    """The union of several masks on one grid."""

    volumes: tuple[Volume, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for volume in self.volumes for path in volume.files)

    def read(self) -> sitk.Image:
        union = self.volumes[0].read() != 0
        for volume in self.volumes[1:]:
            mask = volume.read()
            if mask.GetSize() != union.GetSize():
                raise Refusal("the masks of a structure have the same size", f"{mask.GetSize()} and {union.GetSize()}")
            union = union | (mask != 0)
        return union


@dataclass(frozen=True)
class SourceCase:
    """Volumes and declarations of one case. `split` is None if the source names none.

    If `empty_is_absent`, an empty MANUAL mask means that the expert found none of the structure.
    """

    case_id: str
    patient_id: str
    modality: Modality
    sequence: str
    image: Volume
    liver: Volume | None
    tumour: Volume | None
    liver_state: LabelState
    tumour_state: LabelState
    split: Split | None
    source: str
    licence: str
    distances_known: bool = True
    empty_is_absent: bool = False
    facts: Mapping[str, str] = field(default_factory=dict)  # of the header, without identifiers
    remote: Mapping[Path, RemoteFile] = field(default_factory=dict)  # placeholders to the files that they stand for

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of the case, once."""
        volumes = [volume for volume in (self.image, self.liver, self.tumour) if volume is not None]
        return tuple(sorted({path for volume in volumes for path in volume.files}))
