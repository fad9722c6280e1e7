"""The listener and `hepar predict --store`, against an Orthanc that the test starts and stops."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests
from dicom_files import phantom_voxels, write_series
from predicted import predictor
from services import orthanc_server
from toy_model import constant_weights, write_model
from typer.testing import CliRunner

import hepar.prediction.opening
from hepar.cli.main import app
from hepar.errors import ArtifactError, DataError, StorageError
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.params import Params
from hepar.prediction.folder import PredictionFolder
from hepar.service.listening import PLACE, FeedPlace, Listener
from hepar.service.orthanc import OrthancServer


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

    def __init__(self, orthanc: str, folder: Path, root: str = "dicom-web", from_start: bool = False) -> None:
        server = OrthancServer(orthanc, root)
        self.place = FeedPlace.load(folder, server.last, from_start)
        self.sentences: list[str] = []
        self.shown: list[dict[str, Any]] = []
        self.listener = Listener(server, predictor(), folder, self.place, self.sentences.append, self.shown.append)


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


def test_a_wrong_address_and_a_damaged_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must begin with http"):
        OrthancServer("localhost:8042", "dicom-web")
    with pytest.raises(DataError, match="must not hold a user name"):
        OrthancServer("http://me:secret@localhost:8042", "dicom-web")
    with pytest.raises(StorageError, match=r"^http://localhost:1 does not answer \(connection refused\)$"):
        OrthancServer("http://localhost:1", "dicom-web").last()
    (tmp_path / PLACE).write_text("{")
    with pytest.raises(ArtifactError, match="is damaged: remove it"):
        FeedPlace.load(tmp_path, lambda: 0, False)
