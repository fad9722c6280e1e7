"""Unpacking an uploaded zip: every file gets a number for a name, so that none of the user's is ever used."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from hepar.errors import DataError, StorageError
from hepar.ingest.sources.mask_series import named_structure
from hepar.service.uploads import UploadKind

COPY_BYTES = 2**20
ENDINGS = (UploadKind.PACKED_NIFTI, UploadKind.NIFTI, UploadKind.NRRD, UploadKind.METAIMAGE)


def unpack_numbered(archive: Path, folder: Path) -> None:
    """Unpack a checked zip into a new folder: one folder for each of the zip's, and a number for each file.

    A folder of masks is still recognised by its name, and a volume by its extension. Raises DataError if
    a file is damaged, StorageError if the disk is too small.
    """
    folder.mkdir()
    places: dict[PurePosixPath, Path] = {}
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            if (total := sum(member.file_size for member in members)) > shutil.disk_usage(folder).free:
                raise StorageError(f"the zip unpacks to {total} bytes, more than the disk of the service has left")
            for number, member in enumerate(members, start=1):
                path = PurePosixPath(member.filename)
                if path.parent not in places:
                    places[path.parent] = place = folder / _folder_name(path.parent, len(places) + 1)
                    place.mkdir()
                ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), "")
                with opened.open(member) as stream, (places[path.parent] / f"{number:06d}{ending}").open("wb") as out:
                    shutil.copyfileobj(stream, out, COPY_BYTES)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        raise DataError("the zip is damaged: a file in it cannot be unpacked") from None


def _folder_name(path: PurePosixPath, number: int) -> str:
    return f"{named_structure(path.name) or 'folder'}-{number}"
