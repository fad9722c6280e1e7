"""A case as its source declares it, before any voxel is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import SimpleITK as sitk

from hepar.cases import STRUCTURES, LabelState, Modality, Split
from hepar.errors import DataError, Refusal
from hepar.imaging import headers
from hepar.imaging.volumes import check_inside, read_image
from hepar.runtime.remote_cache import RemoteFile

ABSENT_IF_EMPTY = dict.fromkeys(STRUCTURES, LabelState.ABSENT)  # where experts looked at every case


class Volume(Protocol):
    """An image or a mask that a reader found."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that the voxels come from."""

    def read(self) -> sitk.Image:
        """The volume as stored. Raises DataError if a file is missing, unreadable or breaks a rule."""


@dataclass(frozen=True)
class VolumeFile:
    """A volume of NIfTI, NRRD or MetaImage. If not `spacing_known`, its header may lack the voxel size."""

    path: Path
    spacing_known: bool = True

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, and those of its voxels if the header names others."""
        if self.path.name.lower().endswith(headers.NIFTI):
            return (self.path,)
        try:
            return (self.path, *headers.read_header(self.path).data_files)
        except DataError:  # reading says why
            return (self.path,)

    def read(self) -> sitk.Image:
        everywhere = Path(self.path.anchor)  # where files may lie is a matter of the case: `check_files`
        return read_image(self.path, spacing_known=self.spacing_known, inside=everywhere)


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

    `if_empty` gives the state of a structure whose MANUAL mask is empty; without one an empty mask refuses the case.
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
    if_empty: Mapping[str, LabelState] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)  # of the header, without identifiers
    remote: Mapping[Path, RemoteFile] = field(default_factory=dict)  # placeholders to the files that they stand for
    fault: Refusal | None = None  # why the source itself refuses the case
    roots: tuple[Path, ...] = ()  # folders in which all its files lie; anywhere if there are none

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of the case, once."""
        volumes = [volume for volume in (self.image, self.liver, self.tumour) if volume is not None]
        return tuple(sorted({path for volume in volumes for path in volume.files}))

    def check_files(self) -> None:
        """Raise DataError unless every file is regular, and lies in `roots` when links are followed."""
        check_inside([path for path in self.files if path not in self.remote], self.roots or (Path("/"),))
        for path in self.remote:
            if self.roots and not any(path.is_relative_to(root) for root in self.roots):
                raise DataError(f"{path} leads out of the source")


def refused_case(case_id: str, where: Path, fault: Refusal) -> SourceCase:
    """A case of which the source tells no more than why it is refused; `where` is the file that should describe it."""
    return SourceCase(
        case_id=case_id,
        patient_id="",
        modality=Modality.CT,
        sequence="",
        image=VolumeFile(where),
        liver=None,
        tumour=None,
        liver_state=LabelState.UNKNOWN,
        tumour_state=LabelState.UNKNOWN,
        split=None,
        source="",
        licence="",
        fault=fault,
    )
