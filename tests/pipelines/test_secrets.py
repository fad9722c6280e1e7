"""Planted passwords, tokens and patient ids reach no command line, message, log or file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, quote, urlsplit

import pytest
import yaml
from commands import Shell
from conftest import TINY, call
from watched_secrets import Watch

from hepar.errors import DataError, StorageError
from hepar.ingest.listing import list_source
from hepar.params import dump_params, load_params
from hepar.runtime import s3_client

pytestmark = pytest.mark.slow


class LoopbackServer:
    """A server that knows no DICOM series and no MLflow run, and the patients that it was asked for."""

    def __init__(self) -> None:
        self.patients = patients = list[str]()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                patients.extend(parse_qs(urlsplit(self.path).query).get("PatientID", []))
                tracking = self.path.startswith("/api/")
                self.send_response(200 if tracking else 404)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps({} if tracking else {"asked": self.path}).encode())

            do_POST = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    running = LoopbackServer()
    yield running
    running.close()


def write_params(path: Path, source: str) -> None:
    path.write_text(yaml.safe_dump({**dump_params(load_params(TINY)), "source": source}))


def test_a_failed_run_reveals_neither_passwords_nor_the_patient(server: LoopbackServer, tmp_path: Path) -> None:
    """The source is a search for a patient, which the server answers with an error that quotes it."""
    watch, folder = Watch(), tmp_path / "run"
    folder.mkdir()
    write_params(tmp_path / "own.yaml", f"dicomweb+http://{server.address}/web?PatientID={quote(watch.patient)}")
    tracking = f"http://user:{watch.password}@{server.address}"
    with watch:
        command = ("hepar", "run", "--params", "../own.yaml", "--workdir", "work")
        ended = call(*command, cwd=folder, MLFLOW_TRACKING_URI=tracking, **watch.environment)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("hepar: check: http://127.0.0.1:")
    assert set(server.patients) == {watch.patient}
    assert (folder / "work" / "progress" / "check.json").is_file()
    assert watch.found_in(folder, ended.stdout, ended.stderr) == []


@pytest.mark.parametrize("command", ["ingest", "run", "list-source --out source.csv", "params"])
def test_credentials_in_the_source_are_refused_and_not_shown(command: str, tmp_path: Path) -> None:
    watch = Watch()
    write_params(tmp_path / "own.yaml", f"dicomweb+http://user:{watch.password}@127.0.0.1:9/web")
    folder = tmp_path / "here"
    folder.mkdir()
    ended = Shell(folder).run(f"hepar {command} --params ../own.yaml")
    assert ended.code == 2
    assert ended.stderr.startswith("hepar: ../own.yaml: source is 'dicomweb+http://…@127.0.0.1:9/web': ")
    assert "they belong in ~/.netrc" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert watch.found_in(folder, ended.stdout, ended.stderr) == []


@pytest.mark.parametrize("option", ["source", "split-from"])
def test_credentials_in_an_option_are_refused_and_not_shown(option: str, tmp_path: Path) -> None:
    watch = Watch()
    ended = Shell(tmp_path).run(f"hepar ingest --params {TINY} --{option} s3://user:{watch.password}@bucket/x")
    assert (ended.code, ended.stderr.startswith(f"hepar: --{option} is s3://…@bucket/x: ")) == (2, True)
    assert watch.found_in(tmp_path, ended.stdout, ended.stderr) == []


def test_a_store_that_fails_reveals_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    for name, value in watch.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{watch.password}@127.0.0.1:9")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    s3_client.client.cache_clear()
    with pytest.raises(StorageError, match=r"^s3://bucket/scans: .*127\.0\.0\.1:9") as failed:
        list_source("s3://bucket/scans")
    s3_client.client.cache_clear()
    assert watch.found_in(tmp_path, str(failed.value)) == []


def test_messages_about_a_search_do_not_name_the_patient(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch()
    monkeypatch.setenv("HEPAR_PATIENT_KEY", "a key of the tests")
    address = f"dicomweb+http://{server.address}/web"
    with pytest.raises(StorageError, match="404 Client Error") as failed:
        list_source(f"{address}?PatientID={quote(watch.patient)}")
    with pytest.raises(DataError, match="Patient is not a DICOM attribute") as unknown:
        list_source(f"{address}?Patient={quote(watch.patient)}")
    with pytest.raises(DataError, match="PatientID has no value, in the address or in HEPAR_DICOMWEB_QUERY"):
        list_source(f"{address}?PatientID=")
    monkeypatch.setenv("HEPAR_DICOMWEB_QUERY", f"PatientID={quote(watch.patient)}")
    with pytest.raises(StorageError, match="404 Client Error") as given:
        list_source(f"{address}?PatientID=")
    assert server.patients == [watch.patient] * 2
    assert watch.found_in(tmp_path, str(failed.value), str(unknown.value), str(given.value)) == []
