"""What tests of submissions share: the compiled pipeline, and a stand-in for a KFP server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from cluster.kfp_stand_in import DIGEST, SOURCE, KfpStandIn, kfp_stand_in
from conftest import ROOT, succeed

from hepar.cli.cluster import ACCOUNT_VARIABLE, NAMESPACE_VARIABLE, RunRequest
from pipelines import kfp_server, submission
from pipelines.kfp_server import ENDPOINT_VARIABLE, TOKEN_VARIABLE

OF_ONE_SERVER = ("address", "lock")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two-stage pipeline, compiled, with an image by digest."""
    path = tmp_path_factory.mktemp("compiled") / "two_stage.yaml"
    succeed(
        "kfp", "dsl", "compile", "--py", "pipelines/two_stage.py", "--output", str(path), cwd=ROOT, HEPAR_IMAGE=DIGEST
    )
    return path


@pytest.fixture(scope="session")
def running() -> Iterator[KfpStandIn]:
    with kfp_stand_in() as server:
        yield server


@pytest.fixture
def kfp(running: KfpStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KfpStandIn:
    """The stand-in, empty; nobody waits."""
    fresh = KfpStandIn()
    for name in {field.name for field in fields(KfpStandIn)}.difference(OF_ONE_SERVER):
        setattr(running, name, getattr(fresh, name))
    monkeypatch.setattr(kfp_server, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(submission, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'none.db'}")
    for name in (TOKEN_VARIABLE, NAMESPACE_VARIABLE, ACCOUNT_VARIABLE, ENDPOINT_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return running


@pytest.fixture
def request_(kfp: KfpStandIn, compiled: Path) -> RunRequest:
    return RunRequest(compiled, dict(SOURCE), "", kfp.address, "", "", wait=False, dry_run=False)
