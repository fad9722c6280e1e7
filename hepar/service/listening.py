"""Predicting what arrives in Orthanc: each complete CT or MR series once, also across restarts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from hepar.errors import ArtifactError, DataError, StorageError
from hepar.ingest.sources.dicom_volume import with_option
from hepar.params import Uneven
from hepar.prediction.folder import PredictionFolder
from hepar.prediction.predicted_scan import Predictor, predict_scan, shown
from hepar.prediction.scans import Scan, open_scans
from hepar.prediction.storing import store_objects
from hepar.prediction.writing import write_prediction
from hepar.runtime.artifacts import MANIFEST, write_json
from hepar.service.orthanc import Arrival, OrthancServer

MAX_TRIES = 10  # of a series whose server fails, or which ends the listener
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 10.0, 600.0  # after a try that failed; each pause is twice the last one
PLACE = "listener.json"


class ScanState(StrEnum):
    """What is done of a predicted scan."""

    WRITTEN = "written"  # its results lie in their folder and are to be stored
    FINISHED = "finished"  # they are stored, or the scan is left out


@dataclass
class FeedPlace:
    """How far the feed was read, and the series that are not finished, by their keys; kept in a file.

    `tries` counts how often each was begun, `scans` has the state of those of its scans that were predicted, by name.
    When a series is due again, in seconds of `clock`, is not kept: after a restart all are tried at once.
    """

    path: Path
    last: int
    tries: dict[str, int] = field(default_factory=dict)
    scans: dict[str, dict[str, ScanState]] = field(default_factory=dict)
    clock: Callable[[], float] = field(default=time.monotonic, compare=False)
    due: dict[str, float] = field(default_factory=dict, compare=False)

    @classmethod
    def load(cls, folder: Path, newest: Callable[[], int], from_start: bool) -> FeedPlace:
        """The place of an earlier listener in a folder, else the newest change, or the first one.

        Raises ArtifactError if the file is damaged.
        """
        path = folder / PLACE
        if not path.is_file():
            place = cls(path, 0 if from_start else newest())
            place.save()
            return place
        try:
            stored = json.loads(path.read_text())
            tries = {str(key): int(count) for key, count in stored["tries"].items()}
            scans = {
                str(key): {str(name): ScanState(state) for name, state in states.items()}
                for key, states in stored.get("scans", {}).items()  # which files of earlier versions lack
            }
            return cls(path, int(stored["last"]), tries, scans)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ArtifactError(f"{path} is damaged: remove it to start at the newest series") from None

    def add(self, arrival: Arrival) -> None:
        """Take a series as one to predict, from the beginning; its first try saves that."""
        self.last, self.tries[arrival.key] = arrival.number, 0
        self.scans.pop(arrival.key, None)
        self.due.pop(arrival.key, None)

    def is_due(self, key: str) -> bool:
        """Whether the pause after the last try of a series is over."""
        return self.clock() >= self.due.get(key, float("-inf"))

    def postpone(self, key: str) -> float:
        """Have a series that failed wait for its next try; returns for how many seconds."""
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** (self.tries[key] - 1))
        self.due[key] = self.clock() + pause
        return pause

    def begin(self, key: str) -> None:
        """Count a try of a series."""
        self.tries[key] += 1
        self.save()

    def note(self, key: str, name: str, state: ScanState) -> None:
        """Note the state of a scan of a series."""
        self.scans.setdefault(key, {})[name] = state
        self.save()

    def finish(self, key: str) -> None:
        """Forget a series."""
        del self.tries[key]
        self.scans.pop(key, None)
        self.due.pop(key, None)
        self.save()

    def save(self) -> None:
        """Write it, whole or not at all."""
        write_json(self.path, {"last": self.last, "tries": self.tries, "scans": self.scans})


class Listener:
    """Predicts the series that arrive, and stores SEG and SR beside them. `tell` receives sentences, `show` results."""

    def __init__(
        self,
        server: OrthancServer,
        predictor: Predictor,
        folder: Path,
        place: FeedPlace,
        tell: Callable[[str], None],
        show: Callable[[dict[str, Any]], None],
        uneven: Uneven = "refuse",
    ) -> None:
        self.server, self.predictor, self.folder, self.place = server, predictor, folder, place
        self.tell, self.show, self.uneven = tell, show, uneven

    def look(self) -> None:
        """Try again what failed and is due, then predict all that is complete now.

        Raises StorageError if Orthanc fails, which counts as a try of no series.
        """
        for key in [key for key in self.place.tries if self.place.is_due(key)]:
            self.server.last()
            self._handle(key)
        done = False
        while not done:
            arrivals, last, done = self.server.arrivals(self.place.last)
            for arrival in arrivals:
                self.place.add(arrival)
                self._handle(arrival.key)
            self.place.last = last
            self.place.save()

    def _handle(self, key: str) -> None:
        """Predict a series, a limited number of times if the server fails.

        The try is counted beforehand: one that ends the program, by a lack of memory or a bug, counts as well.
        """
        if self.place.tries[key] >= MAX_TRIES:
            self.tell(f"series {key} is given up: none of {MAX_TRIES} tries came to an end")
            self.place.finish(key)
            return
        self.place.begin(key)
        try:
            self._predict(key)
        except StorageError as error:
            tried = f"{error}; try {self.place.tries[key]} of {MAX_TRIES} for series {key}"
            if self.place.tries[key] < MAX_TRIES:
                self.tell(f"{tried}, the next one in {self.place.postpone(key):.0f} s")
                return
            self.tell(tried)
        except DataError as error:
            self.tell(f"series {key} is left out: {error}")
        self.place.finish(key)

    def _predict(self, key: str) -> None:
        """Predict the scans of a series that are not finished. Raises StorageError at the end if the server fails."""
        source = self.server.source(key)
        if not source:
            return
        failures: list[str] = []
        with open_scans(source, self.uneven) as found:
            for left_out in found.left_out:
                self.tell(f"series {key}: {left_out.name} is left out: {left_out.reason}")
            for scan in found.scans:
                try:
                    self._predict_one(key, scan)
                except StorageError as error:
                    failures.append(str(error))
                except DataError as error:
                    self.tell(f"series {key}: {scan.name} is left out: {with_option(error)}")
                    self.place.note(key, scan.name, ScanState.FINISHED)
        if failures:
            raise StorageError("; ".join(dict.fromkeys(failures)))

    def _predict_one(self, key: str, scan: Scan) -> None:
        """Predict a scan and store its results: those that are written already if storing them failed before.

        So the server gets objects of the same UIDs, which it keeps once.
        """
        state = self.place.scans.get(key, {}).get(scan.name)
        if state == ScanState.FINISHED:
            return
        written = PredictionFolder(self.folder / key / scan.name)
        if state is None or not (written.folder / MANIFEST).is_file():
            with scan.fetched() as here:
                if problem := write_prediction(predict_scan(self.predictor, here), written.folder).problem:
                    self.tell(f"series {key}: {problem}")
            self.place.note(key, scan.name, ScanState.WRITTEN)
        stored = store_objects(self.server.dicomweb, written)
        found_there = shown(written.load_measurements())
        self.show({"series": key, "folder": str(written.folder), **found_there, "stored": stored})
        self.place.note(key, scan.name, ScanState.FINISHED)
