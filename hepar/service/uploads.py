"""What somebody uploads: recognised by its first bytes, and checked before anything of it is unpacked to the disk.

An upload has no name of its own: it is stored under the name of its kind.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from hepar.errors import DataError, HeparError, Refusal
from hepar.imaging.grid_rules import size_text
from hepar.imaging.headers import GZIP_MAGIC, read_header
from hepar.imaging.volumes import check_size
from hepar.ingest.parallel import Died, parallel_map
from hepar.ingest.sources.archive import check_members
from hepar.service.limits import ServiceLimits

HEAD_BYTES = 540  # of a NIfTI-2 header, the longest of those looked at
TOO_LARGE, UNKNOWN_TYPE, DAMAGED = 413, 415, 422  # of HTTP
ACCEPTED = "NIfTI (.nii, .nii.gz), NRRD, MetaImage (.mha), a DICOM file or a zip of DICOM"
NIFTI_MAGICS = ((344, b"n+1\0"), (4, b"n+2\0"))
META_MAGICS = (b"ObjectType", b"NDims")
ENCRYPTED = 1  # of a member's flags


class UploadRefused(HeparError):
    """An upload breaks a rule; `status` is that of HTTP."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status

    def __reduce__(self) -> tuple[type[UploadRefused], tuple[int, str]]:
        return type(self), (self.status, str(self))  # an exception is otherwise rebuilt from its message alone


class UploadKind(StrEnum):
    """The kind of an upload, by the ending of its file."""

    PACKED_NIFTI = ".nii.gz"
    NIFTI = ".nii"
    NRRD = ".nrrd"
    METAIMAGE = ".mha"
    DICOM = ".dcm"
    ZIP = ".zip"


def kind_of(head: bytes) -> UploadKind:
    """The kind of a file by its first `HEAD_BYTES` bytes. Raises UploadRefused if it is none that is accepted."""
    signs: dict[UploadKind, bool] = {
        UploadKind.PACKED_NIFTI: head.startswith(GZIP_MAGIC),
        UploadKind.ZIP: head.startswith(b"PK\x03\x04"),
        UploadKind.NRRD: head.startswith(b"NRRD"),
        UploadKind.METAIMAGE: head.startswith(META_MAGICS),
        UploadKind.DICOM: head[128:132] == b"DICM",
        UploadKind.NIFTI: any(head[at : at + len(magic)] == magic for at, magic in NIFTI_MAGICS),
    }
    found = next((kind for kind, fits in signs.items() if fits), None)
    if found is None:
        raise UploadRefused(UNKNOWN_TYPE, f"the upload is not {ACCEPTED}")
    return found


def check_apart(upload: Path, limits: ServiceLimits) -> None:
    """Check an upload in a process of its own, which may crash, hang or run out of memory.

    Raises UploadRefused with the sentence for the user, in which the upload has no path.
    """
    with parallel_map(_Check(limits), [upload], lambda _: limits.check_seconds) as results:
        outcome = next(results)
    if isinstance(outcome, Died):
        raise UploadRefused(DAMAGED, f"the upload cannot be checked: {outcome.reason}")
    if outcome is not None:
        raise outcome


class _Check:
    """`check`, as a job of another process: an error is a result there."""

    def __init__(self, limits: ServiceLimits) -> None:
        self.limits = limits

    def __call__(self, upload: Path) -> UploadRefused | None:
        try:
            check(upload, self.limits)
        except UploadRefused as refused:
            return refused
        except DataError as error:
            return UploadRefused(DAMAGED, str(error).replace(str(upload), "the upload"))
        return None


def check(upload: Path, limits: ServiceLimits) -> None:
    """Raise UploadRefused or DataError if a stored upload is damaged or larger, unpacked, than allowed."""
    checks: dict[str, Callable[[Path, ServiceLimits], None]] = {UploadKind.ZIP: _check_zip, UploadKind.DICOM: _pass}
    checks.get(upload.suffix, _check_volume)(upload, limits)


def _pass(upload: Path, limits: ServiceLimits) -> None:
    """A file of DICOM is as large as it is, and is read apart from the service."""


def _check_volume(upload: Path, limits: ServiceLimits) -> None:
    header = read_header(upload)
    if header.data_files:
        raise UploadRefused(DAMAGED, "the upload names other files for its voxels: they must be in it")
    if header.voxels > limits.voxels or header.bytes_in_each > limits.unpacked_bytes:
        claimed = f"{size_text(header.size_xyz[::-1])} voxels of {header.voxel_bytes} bytes"
        raise UploadRefused(TOO_LARGE, f"the scan has {claimed} but may have {limits.voxels} voxels")
    check_size(upload, header)


def _check_zip(upload: Path, limits: ServiceLimits) -> None:
    try:
        with zipfile.ZipFile(upload) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        raise UploadRefused(DAMAGED, "the zip is damaged: its list of files cannot be read") from None
    if len(members) > limits.files:
        raise UploadRefused(TOO_LARGE, f"the zip holds {len(members)} files but may hold {limits.files}")
    if any(member.flag_bits & ENCRYPTED for member in members):
        raise UploadRefused(DAMAGED, "the zip is encrypted")
    if (total := sum(member.file_size for member in members)) > limits.unpacked_bytes:
        raise UploadRefused(TOO_LARGE, f"the zip unpacks to {total} bytes but may unpack to {limits.unpacked_bytes}")
    try:
        check_members(members, upload.stat().st_size, limits.unpacked_bytes)
    except Refusal as fault:
        raise UploadRefused(DAMAGED, f"the zip cannot be unpacked: {fault.value}") from None
