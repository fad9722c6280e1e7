"""Sources behind DICOMweb: `dicomweb+https://host/path`, with QIDO-RS attributes to search by as its query.

`?StudyDate=20240101-20241231` takes the series of a year, `?PatientID=…` those of a patient. Who asks is told by
`~/.netrc`, or by a bearer token in HEPAR_DICOMWEB_TOKEN. Only headers are read when a source is listed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import pydicom
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ExplicitVRLittleEndian

from hepar.errors import DataError, StorageError
from hepar.ingest.sources.dicom import RTSTRUCT, SEGMENTATION, TAGS
from hepar.ingest.sources.remote_cache import in_parallel
from hepar.runtime.progress import current

SCHEMES = ("dicomweb+http://", "dicomweb+https://")
TOKEN_VARIABLE = "HEPAR_DICOMWEB_TOKEN"
MODALITIES = ("CT", "MR", "SEG", "RTSTRUCT")
UID = re.compile(r"[0-9.]+")
ANY_SYNTAX = (("application/dicom", "*"),)


@dataclass(frozen=True)
class WebInstance:
    """One DICOM instance of a server. The standard gives other content another UID, so the URL names its state."""

    server: str
    study: str
    series: str
    uid: str

    @property
    def url(self) -> str:
        return f"{self.server}/studies/{self.study}/series/{self.series}/instances/{self.uid}"

    @property
    def version(self) -> str:
        return self.url

    def download(self, target: Path) -> None:
        """Raises StorageError where the server does not give the instance."""
        with _said(self.url):
            instance = client(self.server).retrieve_instance(self.study, self.series, self.uid, media_types=ANY_SYNTAX)
        instance.save_as(target)


class Server:
    """A folder in which every series that a search finds lies as DICOM headers without pixels."""

    def __init__(self, root: Path, url: str) -> None:
        parts = urlsplit(url.removeprefix("dicomweb+"))
        self.root = root.resolve()
        self.server = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
        self.filters = dict(parse_qsl(parts.query))
        if unknown := [name for name in self.filters if tag_for_keyword(name) is None]:
            raise DataError(f"source {url}: {unknown[0]} is no DICOM attribute to search by")
        self._known: dict[Path, WebInstance] = {}

    def mirror(self) -> Path:
        """Find the series and write their headers. Raises DataError where the search finds none."""
        with _said(self.server):
            found = [
                (str(value(item, "StudyInstanceUID")), str(value(item, "SeriesInstanceUID")))
                for modality in MODALITIES
                for item in client(self.server).search_for_series(
                    search_filters={**self.filters, "Modality": modality}, get_remaining=True
                )
            ]
        if not found:
            raise DataError(f"source {self.server}: no series of {', '.join(MODALITIES)} is found")
        series = list(enumerate(sorted(set(found))))
        with current().counting(len(series), "series listed") as count:
            in_parallel(self._series, series, count.advance)
        return self.root

    def remote(self, path: Path) -> WebInstance:
        """The instance that a path stands for."""
        return self._known[path]

    def _series(self, numbered: tuple[int, tuple[str, str]]) -> None:
        number, (study, series) = numbered
        folder = self.root / f"{number:06d}"
        folder.mkdir()
        with _said(f"{self.server}/studies/{study}/series/{series}"):
            headers = client(self.server).retrieve_series_metadata(study, series)
        for header in headers:
            uid = str(value(header, "SOPInstanceUID"))
            if not UID.fullmatch(uid):
                raise StorageError(f"{self.server}: {uid!r} is given as the UID of an instance of series {series}")
            path = folder / f"{uid}.dcm"
            self._known[path] = instance = WebInstance(self.server, study, series, uid)
            if value(header, "SOPClassUID") in (SEGMENTATION, RTSTRUCT):
                instance.download(path)
            else:
                _write_header(header, path)


def value(header: Mapping[str, Any], keyword: str) -> Any:
    """The first value of an attribute in DICOM's JSON; None without one."""
    values = header.get(f"{tag_for_keyword(keyword):08X}", {}).get("Value") or [None]
    return values[0]


def _write_header(header: Mapping[str, Any], path: Path) -> None:
    wanted = {f"{tag_for_keyword(keyword):08X}" for keyword in TAGS}
    dataset = pydicom.Dataset.from_json({tag: item for tag, item in header.items() if tag in wanted})
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)


@cache
def client(server: str) -> Any:
    """One client a process and server, which retries with growing pauses."""
    token = os.environ.get(TOKEN_VARIABLE)
    headers = {"Authorization": f"Bearer {token}"} if token else None
    return DICOMwebClient(server, headers=headers)


@contextmanager
def _said(url: str) -> Iterator[None]:
    try:
        yield
    except (requests.RequestException, OSError, ValueError) as error:
        raise StorageError(f"{url}: {' '.join(str(error).split())}") from None
