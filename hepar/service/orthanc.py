"""What arrives in an Orthanc server: its feed of changes, and the series behind them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import requests

from hepar.errors import DataError, StorageError, one_line
from hepar.ingest.sources.dicomweb import TOKEN_VARIABLE
from hepar.runtime.redaction import CREDENTIALS_RULE, has_credentials, redact, redact_address

PAGE = 100  # changes in an answer
SECONDS = 30.0  # for an answer
COMPLETE = "StableSeries"  # no instance has arrived for the server's StableAge
PREDICTED = ("CT", "MR")


@dataclass(frozen=True)
class Arrival:
    """A series that is complete, by its key in Orthanc, which is a hash; `number` is its place in the feed."""

    number: int
    key: str


class OrthancServer:
    """Orthanc's own interface and its DICOMweb. Credentials come from `~/.netrc`, or a token in the environment."""

    def __init__(self, url: str, root: str) -> None:
        """`root` is the path of DICOMweb below `url`. Raises DataError if the address is none or holds credentials."""
        if not url.startswith(("http://", "https://")):
            raise DataError(f"the address of Orthanc is {redact_address(url)} but must begin with http:// or https://")
        if has_credentials(url):
            raise DataError(f"the address of Orthanc is {redact_address(url)}: {CREDENTIALS_RULE}")
        self.url = url.rstrip("/")
        self.dicomweb = f"{self.url}/{root.strip('/')}"
        self._session = requests.Session()
        if token := os.environ.get(TOKEN_VARIABLE):
            self._session.headers["Authorization"] = f"Bearer {token}"

    def last(self) -> int:
        """The number of the newest change."""
        return int(self._get("/changes?last")["Last"])

    def arrivals(self, since: int) -> tuple[list[Arrival], int, bool]:
        """The series that became complete after a change, the last change looked at, and whether there are no more."""
        page = self._get(f"/changes?since={since}&limit={PAGE}")
        found = [
            Arrival(int(change["Seq"]), str(change["ID"]))
            for change in page["Changes"]
            if change["ChangeType"] == COMPLETE
        ]
        return found, int(page["Last"]), bool(page["Done"])

    def source(self, key: str) -> str:
        """The DICOMweb address of a series that can be predicted; empty for another kind, or one that was deleted.

        What hepar stores is a SEG and an SR, so it never predicts that.
        """
        series = self._get(f"/series/{key}", missing={})
        tags = series.get("MainDicomTags", {})
        if tags.get("Modality") not in PREDICTED:
            return ""
        study = self._get(f"/series/{key}/study")["MainDicomTags"]["StudyInstanceUID"]
        return f"dicomweb+{self.dicomweb}?StudyInstanceUID={study}&SeriesInstanceUID={tags['SeriesInstanceUID']}"

    def _get(self, path: str, missing: dict[str, Any] | None = None) -> dict[str, Any]:
        """An answer; `missing` if there is none by 404. Raises StorageError if the server fails."""
        try:
            answer = self._session.get(f"{self.url}{path}", timeout=SECONDS)
            if answer.status_code == requests.codes.not_found and missing is not None:
                return missing
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
        except requests.ConnectionError as error:
            raise StorageError(f"{self.url} does not answer ({_system_reason(error)})") from None
        except (requests.RequestException, ValueError) as error:
            raise StorageError(f"{self.url}: {redact(one_line(error))}") from None
        return found


def _system_reason(error: BaseException) -> str:
    """What the system said, such as "connection refused", below the words of each layer; else the last of these."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return redact(one_line(getattr(error, "strerror", None) or error)).lower()
