"""The listener and `hepar predict --store`, against an Orthanc that the test starts and stops."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pydicom
import pytest
import requests
from dicom_files import STRAIGHT, Placement, phantom_voxels, write_series
from predicted import predictor
from pydicom.uid import generate_uid
from services import orthanc_server
from toy_model import constant_weights, write_model
from typer.testing import CliRunner

import hepar.prediction.opening
import hepar.prediction.storing
import hepar.service.listening
from hepar.cli.main import app
from hepar.errors import ArtifactError, DataError, StorageError
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.params import Params, Uneven
from hepar.prediction.folder import PredictionFolder
from hepar.prediction.predicted_scan import PredictedScan, Predictor, predict_scan
from hepar.prediction.scans import Scan
from hepar.prediction.storing import store_objects
from hepar.service.listening import MAX_TRIES, PLACE, FeedPlace, Listener, ScanState
from hepar.service.orthanc import Arrival, OrthancServer


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with orthanc_server(tmp_path_factory.mktemp("orthanc")) as address:
        yield address


def send(orthanc: str, paths: list[Path]) -> str:
    """Send a series to Orthanc and wait until it is complete; returns the UID of its study."""
    before = requests.get(f"{orthanc}/changes?last", timeout=30).json()["Last"]
    for path in paths:
        answer = requests.post(f"{orthanc}/instances", data=path.read_bytes(), timeout=30)
        answer.raise_for_status()
    sent = answer.json()
    complete = {("StableSeries", sent["ParentSeries"]), ("StableStudy", sent["ParentStudy"])}  # not of earlier tests
    end = time.monotonic() + 120
    while time.monotonic() < end:
        changes = requests.get(f"{orthanc}/changes?since={before}&limit=1000", timeout=30).json()["Changes"]
        if complete <= {(change["ChangeType"], change["ID"]) for change in changes}:
            return str(pydicom.dcmread(paths[0]).StudyInstanceUID)
        time.sleep(0.2)
    pytest.fail("the study does not become stable")


def modalities(orthanc: str, study: str) -> list[str]:
    """Those of the series of a study, sorted."""
    answer = requests.get(f"{orthanc}/dicom-web/studies/{study}/series", timeout=30)
    return sorted(series["00080060"]["Value"][0] for series in answer.json())


class Heard:
    """A listener and what it said. The phantom's spacing is that of the model, and its modality the only one."""

    def __init__(self, orthanc: str, folder: Path, root: str = "dicom-web", uneven: Uneven = "refuse") -> None:
        server = OrthancServer(orthanc, root)
        self.place = FeedPlace.load(folder, server.last, from_start=False)
        self.sentences: list[str] = []
        self.shown: list[dict[str, Any]] = []
        self.listener = Listener(
            server, predictor(), folder, self.place, self.sentences.append, self.shown.append, uneven
        )


def two_volumes(folder: Path, first: Placement = STRAIGHT) -> list[Path]:
    """A series of two acquisitions at the same place, of which the first may have slices of its own."""
    uids = {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid(), "SeriesNumber": 4}
    paths = write_series(folder, phantom_voxels(), first, names="a{:03d}", AcquisitionNumber=1, **uids)
    return paths + write_series(folder, phantom_voxels(seed=1), names="b{:03d}", AcquisitionNumber=2, **uids)


def test_what_arrives_is_predicted_once_and_its_results_never_are(orthanc: str, tmp_path: Path) -> None:
    send(orthanc, write_series(tmp_path / "old", phantom_voxels(seed=5)))
    folder = tmp_path / "out"
    heard = Heard(orthanc, folder)
    heard.listener.look()
    assert heard.shown == []  # it was there before

    study = send(orthanc, write_series(tmp_path / "ct", phantom_voxels()))
    send(orthanc, write_series(tmp_path / "mr", phantom_voxels(seed=1), modality="MR"))
    heard.listener.look()
    (found,) = heard.shown
    assert (found["modality"], found["lesions"], found["stored"]) == ("CT", 1, ["segmentation.dcm", "report.dcm"])
    assert modalities(orthanc, study) == ["CT", "SEG", "SR"]
    assert PredictionFolder(Path(found["folder"])).load_measurements()["scan"]["modality"] == "CT"
    (sentence,) = heard.sentences
    assert "MR" in sentence  # the model was not trained on it

    time.sleep(2.5)  # until what was stored is complete as well
    again = Heard(orthanc, folder)  # as after a restart
    assert again.place.last == heard.place.last
    again.listener.look()
    assert (again.shown, again.sentences) == ([], [])
    assert again.place.last > heard.place.last
    assert modalities(orthanc, study) == ["CT", "SEG", "SR"]


def test_a_series_whose_server_fails_is_tried_again(orthanc: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    broken = Heard(orthanc, folder, root="elsewhere")
    study = send(orthanc, write_series(tmp_path / "ct", phantom_voxels(seed=2)))
    broken.listener.look()
    assert "try 1 of 10" in broken.sentences[0]
    assert list(broken.place.tries.values()) == [1]
    mended = Heard(orthanc, folder)
    assert mended.place.tries == broken.place.tries
    mended.listener.look()
    assert mended.place.tries == {}
    assert modalities(orthanc, study) == ["CT", "SEG", "SR"]


def test_a_volume_that_breaks_a_rule_leaves_the_others_of_its_series_to_be_predicted(
    orthanc: str, tmp_path: Path
) -> None:
    refusing, resampling = (Heard(orthanc, tmp_path / uneven, uneven=uneven) for uneven in get_args(Uneven))
    heights_mm = [0, 3, 6, 9, 12, 15, 18, 22, 26, 30, 34, 38]
    study = send(orthanc, two_volumes(tmp_path / "ct", Placement(heights_mm=heights_mm)))
    refusing.listener.look()
    assert [(found["name"], found["stored"]) for found in refusing.shown] == [
        ("series-4-ct-portal-venous-2", ["segmentation.dcm", "report.dcm"])
    ]
    (sentence,) = refusing.sentences
    assert "series-4-ct-portal-venous is left out: slices are evenly spaced" in sentence
    assert "--uneven-slices resample" in sentence
    assert refusing.place.tries == {}
    assert modalities(orthanc, study) == ["CT", "SEG", "SR"]
    resampling.listener.look()
    names = ["series-4-ct-portal-venous", "series-4-ct-portal-venous-2"]
    assert [found["name"] for found in resampling.shown] == names


def test_a_retry_stores_only_what_is_not_stored_and_sends_the_same_objects(
    orthanc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard(orthanc, tmp_path / "out")
    study = send(orthanc, two_volumes(tmp_path / "ct"))
    sent: list[str] = []

    def answer_is_lost(server: str, prediction: PredictionFolder) -> list[str]:
        """The real function, whose first answer about the second volume is lost on its way."""
        sent.append(prediction.folder.name)
        names = store_objects(server, prediction)
        if sent == [first, second]:
            raise StorageError("the answer is lost")
        return names

    first, second = "series-4-ct-portal-venous", "series-4-ct-portal-venous-2"
    monkeypatch.setattr(hepar.service.listening, "store_objects", answer_is_lost)
    heard.listener.look()
    assert [found["name"] for found in heard.shown] == [first]
    assert "try 1 of 10" in heard.sentences[0]
    heard.listener.look()
    assert sent == [first, second]  # until the pause is over
    again = Heard(orthanc, tmp_path / "out")  # as after a restart
    again.listener.look()
    assert [(found["name"], found["stored"]) for found in again.shown] == [(second, ["segmentation.dcm", "report.dcm"])]
    assert sent == [first, second, second]
    assert modalities(orthanc, study) == ["CT", "SEG", "SEG", "SR", "SR"]
    assert (again.place.tries, again.place.scans) == ({}, {})


def test_a_series_that_ends_the_listener_is_given_up_and_the_feed_goes_on(
    orthanc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard(orthanc, tmp_path / "out")
    deadly = send(orthanc, write_series(tmp_path / "deadly", phantom_voxels(seed=11)))
    study = send(orthanc, write_series(tmp_path / "ct", phantom_voxels(seed=12)))

    def run_out_of_memory(model: Predictor, scan: Scan) -> PredictedScan:
        """The real function, except for one study."""
        assert scan.stack is not None
        if pydicom.dcmread(scan.stack.paths[0]).StudyInstanceUID == deadly:
            raise MemoryError
        return predict_scan(model, scan)

    monkeypatch.setattr(hepar.service.listening, "predict_scan", run_out_of_memory)
    for count in (1, MAX_TRIES):
        with pytest.raises(MemoryError):
            heard.listener.look()
        heard = Heard(orthanc, tmp_path / "out")  # as after a restart
        (key,) = heard.place.tries
        assert heard.place.tries == {key: count}
        heard.place.tries[key] = max(count, MAX_TRIES - 1)  # as after further ones
    heard.listener.look()
    (sentence,) = heard.sentences
    assert "is given up: none of 10 tries came to an end" in sentence
    assert [found["stored"] for found in heard.shown] == [["segmentation.dcm", "report.dcm"]]
    assert modalities(orthanc, study) == ["CT", "SEG", "SR"]
    assert heard.place.tries == {}


def test_the_command_follows_the_feed_from_one_look_to_the_next_and_predicts_all_windows_if_told_to(
    orthanc: str, tmp_path: Path, tiny: Params
) -> None:
    plan = PreprocessingPlan(spacing_zyx_mm=(3.0, 0.8, 0.7), window_hu=(-100.0, 300.0), mr_percentiles=(2.0, 98.0))
    write_model(tmp_path / "model", tiny, constant_weights(tiny, 0.9, 0.9), plan=plan, patch_zyx=(16, 16, 16))
    shown = []
    for number, options in enumerate(([], ["--whole"])):
        command = ["listen", orthanc, "-o", str(tmp_path / "out"), "--model", str(tmp_path / "model"), "--once"]
        first = CliRunner().invoke(app, [*command, *options], catch_exceptions=False)
        assert first.exit_code == 0, first.output
        assert first.stdout == ""  # what was there before the first look, or was predicted at the last one
        study = send(orthanc, write_series(tmp_path / str(number), phantom_voxels(seed=7 + number)))
        second = CliRunner().invoke(app, [*command, *options], catch_exceptions=False)
        shown.append(json.loads(second.stdout))  # a single line
        assert modalities(orthanc, study) == ["CT", "SEG", "SR"]
        time.sleep(2.5)  # until what was stored is complete as well
    measured = [PredictionFolder(Path(found["folder"])).load_measurements() for found in shown]
    assert [found["made_by"]["whole"] for found in measured] == [False, True]
    assert json.loads((tmp_path / "out" / PLACE).read_text())["tries"] == {}


def test_predict_stores_seg_and_sr_where_the_scan_comes_from(
    orthanc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hepar.prediction.opening, "open_predictor", lambda *_: predictor())
    study = send(orthanc, write_series(tmp_path / "ct", phantom_voxels(seed=3)))
    source = f"dicomweb+{orthanc}/dicom-web?StudyInstanceUID={study}"
    done = CliRunner().invoke(app, ["predict", source, "-o", str(tmp_path / "out"), "--store"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["stored"] == ["segmentation.dcm", "report.dcm"]
    assert modalities(orthanc, study) == ["CT", "SEG", "SR"]
    for arguments in (["scan.nii.gz"], [source, "--only", "masks"]):
        with pytest.raises(DataError, match="--store"):
            CliRunner().invoke(app, ["predict", *arguments, "-o", "out", "--store"], catch_exceptions=False)


def test_predict_goes_on_with_the_other_series_if_storing_the_results_of_one_fails(
    orthanc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hepar.prediction.opening, "open_predictor", lambda *_: predictor())
    refused: list[str] = []

    def refuse_first(server: str, prediction: PredictionFolder) -> list[str]:
        """The real function, on a server that refuses what it gets first."""
        if not refused:
            refused.append(prediction.folder.name)
            raise StorageError(f"{server} refuses segmentation.dcm")
        return store_objects(server, prediction)

    monkeypatch.setattr(hepar.prediction.storing, "store_objects", refuse_first)
    uid = generate_uid()
    write_series(tmp_path / "5", phantom_voxels(seed=13), StudyInstanceUID=uid, SeriesNumber=5)
    write_series(tmp_path / "6", phantom_voxels(seed=14), StudyInstanceUID=uid, SeriesNumber=6)
    study = send(orthanc, [*sorted((tmp_path / "5").iterdir()), *sorted((tmp_path / "6").iterdir())])
    source = f"dicomweb+{orthanc}/dicom-web?StudyInstanceUID={study}"
    done = CliRunner().invoke(app, ["predict", source, "-o", str(tmp_path / "out"), "--store"], catch_exceptions=False)
    assert done.exit_code == 2
    stored = json.loads(done.stdout)["name"]  # a single line
    assert sorted([*refused, stored]) == ["series-5-ct-portal-venous", "series-6-ct-portal-venous"]
    assert f"{refused[0]}: {orthanc}/dicom-web refuses segmentation.dcm" in done.stderr
    assert modalities(orthanc, study) == ["CT", "CT", "SEG", "SR"]


def test_while_orthanc_does_not_answer_no_try_counts(tmp_path: Path) -> None:
    FeedPlace(tmp_path / PLACE, 7, {"a": 0, "b": 3}, {"b": {"series-4-ct": ScanState.WRITTEN}}).save()
    heard = Heard("http://localhost:1", tmp_path)
    for _ in range(MAX_TRIES + 1):
        with pytest.raises(StorageError, match="does not answer"):
            heard.listener.look()
    assert heard.place == FeedPlace(tmp_path / PLACE, 7, {"a": 0, "b": 3}, {"b": {"series-4-ct": ScanState.WRITTEN}})
    assert heard.sentences == []


class Refusing(OrthancServer):
    """One that answers, but not about its series."""

    def last(self) -> int:
        return 7

    def arrivals(self, since: int) -> tuple[list[Arrival], int, bool]:
        return [], since, True

    def source(self, key: str) -> str:
        raise StorageError("500 Internal Server Error")


def test_the_tries_of_a_series_that_fails_are_ever_further_apart(tmp_path: Path) -> None:
    now, sentences, tried = 0.0, [], []
    place = FeedPlace(tmp_path / PLACE, 7, {"a": 0}, clock=lambda: now)
    server = Refusing("http://localhost:1", "dicom-web")
    listener = Listener(server, predictor(), tmp_path, place, sentences.append, lambda _: None)
    while place.tries:
        assert now < 3600
        before = place.tries["a"]
        listener.look()
        if place.tries.get("a") != before:
            tried.append(now)
        now += 5
    assert [later - earlier for earlier, later in pairwise(tried)] == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert sentences[1] == "500 Internal Server Error; try 2 of 10 for series a, the next one in 20 s"
    assert sentences[-1] == "500 Internal Server Error; try 10 of 10 for series a"
    assert place.due == {}
    place.add(Arrival(8, "a"))
    assert place.is_due("a")


def test_a_wrong_address_and_a_damaged_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must begin with http"):
        OrthancServer("localhost:8042", "dicom-web")
    with pytest.raises(DataError, match="must not hold a user name"):
        OrthancServer("http://me:secret@localhost:8042", "dicom-web")
    with pytest.raises(StorageError, match=r"^http://localhost:1 does not answer \(connection refused\)$"):
        OrthancServer("http://localhost:1", "dicom-web").last()
    for damaged in ("{", '{"last": 3}', '{"last": 3, "tries": {}, "scans": {"a": {"series": "lost"}}}'):
        (tmp_path / PLACE).write_text(damaged)
        with pytest.raises(ArtifactError, match="is damaged: remove it"):
            FeedPlace.load(tmp_path, lambda: 0, False)


def test_a_place_is_read_as_it_was_written_and_also_as_before_scans_were_noted(tmp_path: Path) -> None:
    place = FeedPlace(tmp_path / PLACE, 7, {"a": 2}, {"a": {"series-4-ct": ScanState.WRITTEN}})
    place.save()
    assert FeedPlace.load(tmp_path, lambda: 0, False) == place
    (tmp_path / PLACE).write_text('{"last": 3, "tries": {"a": 2}}')
    assert FeedPlace.load(tmp_path, lambda: 0, False) == FeedPlace(tmp_path / PLACE, 3, {"a": 2})
