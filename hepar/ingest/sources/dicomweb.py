"""Sources behind DICOMweb: `dicomweb+https://host/path`, with QIDO-RS attributes to search by as its query.

`?StudyDate=20240101-20241231` takes the series of a year, `?PatientID=` those of the patient whose id
HEPAR_DICOMWEB_QUERY gives (`PatientID=…`), so that it stays out of logs and files. Credentials come from `~/.netrc`, or
a bearer token in HEPAR_DICOMWEB_TOKEN. Opening a source reads headers only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import pydicom
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ExplicitVRLittleEndian

from hepar.errors import DataError, StorageError, one_line
from hepar.ingest.sources.dicom import RTSTRUCT, SEGMENTATION, TAGS
from hepar.runtime.progress import current_stage
from hepar.runtime.redaction import CREDENTIALS_RULE, QUERY_VARIABLE, has_credentials, redact, redact_address
from hepar.runtime.remote_cache import in_parallel

SCHEMES = ("dicomweb+http://", "dicomweb+https://")
TOKEN_VARIABLE = "HEPAR_DICOMWEB_TOKEN"
NOT_IDENTIFYING = ("BodyPartExamined", "Manufacturer", "ManufacturerModelName", "Modality", "SeriesDate", "StudyDate")
MODALITIES = ("CT", "MR", "SEG", "RTSTRUCT")
UID = re.compile(r"[0-9.]+")
ANY_SYNTAX = (("application/dicom", "*"),)


@dataclass(frozen=True)
class WebInstance:
    """One DICOM instance of a server. Changed content has another UID by the standard, so the URL is the version."""

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
        """Raises StorageError if the server does not return the instance."""
        with dicomweb_errors(self.url):
            instance = client(self.server).retrieve_instance(self.study, self.series, self.uid, media_types=ANY_SYNTAX)
        instance.save_as(target)


@dataclass(frozen=True, order=True)
class WebSeries:
    """One series that a search found. `instances` is None if the server does not count them."""

    study: str
    series: str
    instances: int | None = field(compare=False)


class Server:
    """A local folder with the headers, without pixels, of every series that a search finds.

    Raises DataError if the address holds credentials, an unknown attribute, or one without a value.
    """

    def __init__(self, root: Path, url: str) -> None:
        shown = redact_address(url)
        if has_credentials(url):
            raise DataError(f"source {shown}: {CREDENTIALS_RULE}")
        self.root, self.server = root.resolve(), server_of(url)
        given = dict(parse_qsl(os.environ.get(QUERY_VARIABLE, "")))
        asked = parse_qsl(urlsplit(url).query, keep_blank_values=True)
        self.filters = {name: value or given.get(name, "") for name, value in asked}
        if unknown := [name for name in self.filters if tag_for_keyword(name) is None]:
            raise DataError(f"source {shown}: {unknown[0]} is not a DICOM attribute")
        if empty := [name for name, value in self.filters.items() if not value]:
            raise DataError(f"source {shown}: {empty[0]} has no value, in the address or in {QUERY_VARIABLE}")
        self._known: dict[Path, WebInstance] = {}

    def search(self) -> list[WebSeries]:
        """The series of `MODALITIES`, each once, in order of their UIDs. Raises DataError if there is none."""
        with dicomweb_errors(self.server, self.filters.values()):
            found = {
                WebSeries(
                    str(value(item, "StudyInstanceUID")),
                    str(value(item, "SeriesInstanceUID")),
                    value(item, "NumberOfSeriesRelatedInstances"),
                )
                for modality in MODALITIES
                for item in client(self.server).search_for_series(
                    search_filters={**self.filters, "Modality": modality}, get_remaining=True
                )
            }
        if not found:
            raise DataError(f"source {self.server}: no {', '.join(MODALITIES[:-1])} or {MODALITIES[-1]} series found")
        return sorted(found)

    def mirror(self) -> Path:
        """Write the headers of all series that the search finds. Raises DataError if there is none."""
        series = list(enumerate(self.search()))
        with current_stage().counting(len(series), "series listed") as count:
            in_parallel(self._write_headers, series, count.advance)
        return self.root

    def remote(self, path: Path) -> WebInstance:
        """The instance that a path stands for."""
        return self._known[path]

    def _write_headers(self, numbered: tuple[int, WebSeries]) -> None:
        number, found = numbered
        study, series = found.study, found.series
        folder = self.root / f"{number:06d}"
        folder.mkdir()
        with dicomweb_errors(f"{self.server}/studies/{study}/series/{series}"):
            headers = client(self.server).retrieve_series_metadata(study, series)
        for header in headers:
            uid = str(value(header, "SOPInstanceUID"))
            if not UID.fullmatch(uid):
                raise StorageError(f"{self.server}: series {series} has an instance with the invalid UID {uid!r}")
            path = folder / f"{uid}.dcm"
            self._known[path] = instance = WebInstance(self.server, study, series, uid)
            if value(header, "SOPClassUID") in (SEGMENTATION, RTSTRUCT):
                instance.download(path)
            else:
                _write_header(header, path)


def server_of(source: str) -> str:
    """The address of the server behind `dicomweb+https://HOST/PATH?QUERY`, for a client."""
    parts = urlsplit(source.removeprefix("dicomweb+"))
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def without_identifiers(source: str) -> tuple[str, str]:
    """A source whose query keeps only values that identify no patient, and the others as HEPAR_DICOMWEB_QUERY takes
    them: empty if there are none, or if the source is not a DICOMweb server."""
    address, _, query = source.partition("?")
    asked = parse_qsl(query, keep_blank_values=True) if source.startswith(SCHEMES) else []
    identifying = {name: value for name, value in asked if name not in NOT_IDENTIFYING and value}
    if not identifying:
        return source, ""
    kept = [(name, "" if name in identifying else value) for name, value in asked]
    return f"{address}?{urlencode(kept)}", urlencode(identifying)


def value(header: Mapping[str, Any], keyword: str) -> Any:
    """The first value of an attribute in DICOM JSON; None if it has none."""
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
    """One client per process and server; it retries with growing pauses."""
    token = os.environ.get(TOKEN_VARIABLE)
    headers = {"Authorization": f"Bearer {token}"} if token else None
    return DICOMwebClient(server, headers=headers)


@contextmanager
def dicomweb_errors(url: str, searched: Iterable[str] = ()) -> Iterator[None]:
    """Turn errors of the HTTP client into a StorageError that names the address, but not what was `searched`."""
    try:
        yield
    except (requests.RequestException, OSError, ValueError) as error:
        raise StorageError(f"{url}: {redact(one_line(error), searched)}") from None
