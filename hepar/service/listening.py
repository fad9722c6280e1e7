"""Predicting what arrives in Orthanc: each complete CT or MR series once, also across restarts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hepar.errors import ArtifactError, DataError, StorageError
from hepar.prediction.folder import PredictionFolder
from hepar.prediction.predicted_scan import Predictor, predict_scan, shown
from hepar.prediction.scans import open_scans
from hepar.prediction.storing import store_objects
from hepar.prediction.writing import write_prediction
from hepar.runtime.artifacts import write_json
from hepar.service.orthanc import OrthancServer

MAX_TRIES = 10  # of a series whose server fails
PLACE = "listener.json"


@dataclass
class FeedPlace:
    """How far the feed was read, and the series to try again with the tries so far, by their keys; kept in a file."""

    path: Path
    last: int
    tries: dict[str, int] = field(default_factory=dict)

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
            return cls(path, int(stored["last"]), {str(key): int(count) for key, count in stored["tries"].items()})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ArtifactError(f"{path} is damaged: remove it to start at the newest series") from None

    def save(self) -> None:
        """Write it, whole or not at all."""
        write_json(self.path, {"last": self.last, "tries": self.tries})


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
    ) -> None:
        self.server, self.predictor, self.folder, self.place = server, predictor, folder, place
        self.tell, self.show = tell, show

    def look(self) -> None:
        """Try again what failed, then predict all that is complete now. Raises StorageError if Orthanc fails."""
        for key in list(self.place.tries):
            self._handle(key)
        done = False
        while not done:
            arrivals, last, done = self.server.arrivals(self.place.last)
            for arrival in arrivals:
                self._handle(arrival.key)
                self.place.last = arrival.number
                self.place.save()
            self.place.last = last
            self.place.save()

    def _handle(self, key: str) -> None:
        """Predict a series. If the server fails it is noted to be tried again, a limited number of times."""
        try:
            self._predict(key)
        except StorageError as error:
            count = self.place.tries.get(key, 0) + 1
            self.tell(f"{error}; try {count} of {MAX_TRIES} for series {key}")
            if count < MAX_TRIES:
                self.place.tries[key] = count
                self.place.save()
                return
        except DataError as error:
            self.tell(f"series {key} is left out: {error}")
        if self.place.tries.pop(key, None) is not None:
            self.place.save()

    def _predict(self, key: str) -> None:
        source = self.server.source(key)
        if not source:
            return
        with open_scans(source) as found:
            for left_out in found.left_out:
                self.tell(f"series {key}: {left_out.name} is left out: {left_out.reason}")
            for scan in found.scans:
                with scan.fetched() as here:
                    predicted = predict_scan(self.predictor, here)
                    written = PredictionFolder(self.folder / key / scan.name)
                    if problem := write_prediction(predicted, written.folder):
                        self.tell(f"series {key}: {problem}")
                stored = store_objects(self.server.dicomweb, written)
                found_there = shown(predicted.measurements())
                self.show({"series": key, "folder": str(written.folder), **found_there, "stored": stored})
