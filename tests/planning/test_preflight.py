"""The check before a run: what is merged, what is refused, and what it leaves behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hepar.errors import DataError, HeparError, ParamsError, StorageError
from hepar.params import Params, PipelineParams, dump_sections
from hepar.planning import preflight

Sections = dict[str, Any]


@pytest.fixture
def sections(tiny: Params) -> Sections:
    """The sections of a run as KFP passes them: whole numbers as floats."""
    kept = {field.alias or name for name, field in PipelineParams.model_fields.items()}
    values = {name: value for name, value in dump_sections(tiny).items() if name in kept}
    values["evaluate"] |= {"threads": float(values["evaluate"]["threads"])}
    return values


@pytest.fixture
def in_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEPAR_EPHEMERAL", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HEPAR_STORE", str(tmp_path / "store"))


def test_overrides_are_merged_key_by_key_and_the_store_is_left_as_it_was(
    sections: Sections, in_container: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = preflight.run(sections, {"evaluate": {"overlap": 0.75, "min_lesion_ml": "null"}})
    assert (found.evaluate.overlap, found.evaluate.min_lesion_ml) == (0.75, None)
    assert found.evaluate.bootstrap_resamples == sections["evaluate"]["bootstrap_resamples"]
    assert found.train_universal.training.steps == sections["train_universal"]["training"]["steps"]
    assert f"check: store: {tmp_path / 'store'} can be written" in " ".join(capsys.readouterr().err.split())
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        ({"evaluate": {"overlpa": 0.75}}, r"^overrides: .*evaluate\.overlpa"),
        ({"evalaute": {"overlap": 0.75}}, "^overrides: unknown key evalaute"),
        ({"train_liver": {"training": {"steps": 0}}}, r"^overrides: train_liver\.training\.steps is 0"),
        ({"modalities": ["CT"], "train_universal": {"warm_start": "MR"}}, "warm_start is MR, but modalities is CT"),
        ({"network.config.heds": 3}, r"^network\.config of medformer: .*heds"),
        ({"train_liver.training.patch_zyx": [31, 32, 32]}, r"^training\.patch_zyx is \(31, 32, 32\)"),
        ({"ingest": {"layout": "lists"}}, "^ingest.layout is 'lists' but must be one of auto, "),
        ({"ingest": {"split_from": "nowhere.csv"}}, "^ingest.split_from nowhere.csv: no such table"),
        ({"assemble_pool": {"reviews": "nowhere"}}, "nowhere"),
        ({"source": "nowhere"}, "^source nowhere: no such file or folder"),
        ({"source": "dicomweb+https://host/web?PatientID=7"}, "names a patient: leave the value empty and set HEPAR_"),
    ],
)
def test_what_is_wrong_is_named_before_anything_runs(sections: Sections, overrides: Sections, refused: str) -> None:
    with pytest.raises(HeparError, match=refused):
        preflight.run(sections, overrides)


def test_other_folds_than_have_steps_are_refused_before_anything_is_reached(sections: Sections) -> None:
    unreachable = {"source": "nowhere"}
    refused = r"^train_liver\.folds is 2, but the pipeline has the steps of 3 folds: compile it with 2$"
    with pytest.raises(ParamsError, match=refused):
        preflight.run(sections, {"train_liver": {"folds": 2}, **unreachable}, compiled_folds=3)
    found = preflight.run(sections, {"train_liver.folds": 3}, compiled_folds=3)
    assert found == preflight.run(sections, {"train_liver.folds": 3}, compiled_folds=1), "one step trains them all"


def test_a_source_needs_files_and_in_a_container_a_key_if_it_may_hold_dicom(
    sections: Sections, in_container: None, phantom_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    with pytest.raises(DataError, match=r"^source .*scans has no files$"):
        preflight.run(sections, {"source": str(scans)})
    (scans / "1.dcm").touch()
    (tmp_path / "SCANS.ZIP").touch()
    for source in (scans, tmp_path / "SCANS.ZIP"):
        with pytest.raises(DataError, match=r"^no patient key is given"):
            preflight.run(sections, {"source": str(source)})
    monkeypatch.setenv("HEPAR_PATIENT_KEY", "a key of the tests")
    preflight.run(sections, {"source": str(scans)})
    monkeypatch.delenv("HEPAR_PATIENT_KEY")
    preflight.run(sections, {"source": str(phantom_source)})  # a table
    preflight.run(sections, {"source": str(phantom_source / "cohort.csv")})
    assert not list(tmp_path.rglob("patient.key"))


def test_mlflow_and_the_store_must_answer(
    sections: Sections, in_container: None, database: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"^models:/nobody@champion is not in the registry"):
        preflight.run(sections, {"train_universal": {"warm_start": "models:/nobody@champion"}})
    (tmp_path / "file").touch()
    monkeypatch.setenv("HEPAR_STORE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="/file"):
        preflight.run(sections, {})
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(StorageError, match=r"^MLFLOW_TRACKING_URI is not set"):
        preflight.run(sections, {})


def test_a_server_that_does_not_answer_is_given_up_soon(sections: Sections, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow itself would retry for more than four minutes; what comes after the check has its own number again."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    asked = []

    def connect() -> None:
        asked.append(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
        raise StorageError("no answer")

    monkeypatch.setattr(preflight, "connect", connect)
    for given in (None, "5"):
        if given:
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", given)
        with pytest.raises(StorageError, match="no answer"):
            preflight.run(sections, {})
        assert os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES") == given
    assert int(asked[0]) <= 3
    assert asked[1] == "5"


def test_a_check_leaves_no_database_on_a_laptop(sections: Sections, tmp_path: Path) -> None:
    preflight.run(sections, {})
    assert not (tmp_path / "mlflow.db").exists()


def test_a_section_that_is_not_known_is_refused(sections: Sections) -> None:
    with pytest.raises(ParamsError, match="surplus"):
        preflight.run({**sections, "surplus": 1}, {})
