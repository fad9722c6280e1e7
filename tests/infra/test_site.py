"""The site of infra/ on loopback: the commands and health checks of compose run as they are written, then a backup by
the command of the CronJob, and its restoration on new services that run as in Kubernetes.

Not run here: the images, the entry point of the PostgreSQL image, and Docker's and Kubernetes' own part.
"""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import psutil
import pytest
import services
import yaml
from botocore.exceptions import ClientError
from cryptography.fernet import Fernet
from infra.deployment_files import INFRA, STORAGE, ComposeFile, container, example_variables, load_script, rendered
from toy_model import toy_weights, write_model
from toy_pool import TOYS, content, finished_pool

from components import pool_versions
from hepar.params import Params
from hepar.service.access import TOKEN_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MODEL, WEBHOOK_KEY = "hepar-toy", "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"


@dataclass(frozen=True)
class Site:
    """Running services: variables of the clients of PostgreSQL and S3, and the address of MLflow."""

    database: Mapping[str, str]
    s3: Mapping[str, str]
    mlflow: str = ""

    @property
    def variables(self) -> dict[str, str]:
        return {**self.database, **self.s3}


def storage(words: list[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A command of the manifests with hepar-storage, which the image has from infra/services."""
    assert words[0] == "hepar-storage"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PG", "HEPAR_"))}
    path = os.pathsep.join([str(Path(services.program("pg_dump")).parent), os.environ["PATH"]])
    command = [sys.executable, str(STORAGE), *words[1:]]
    return subprocess.run(command, env={**kept, "PATH": path, **variables}, capture_output=True, text=True)


def done(words: list[str], variables: Mapping[str, str]) -> str:
    ended = storage(words, variables)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def compose() -> ComposeFile:
    hosts = example_variables()["MLFLOW_ALLOWED_HOSTS"]
    secrets = {"POSTGRES_PASSWORD": "p", "S3_ACCESS_KEY": "hepar-compose", "S3_SECRET_KEY": "a secret key"}
    secrets |= {WEBHOOK_KEY: Fernet.generate_key().decode(), TOKEN_VARIABLE: "a-token-of-the-test-of-infra"}
    folders = {"BACKUP_FOLDER": "/b", "WORKDIR": "/w", "REVIEWS": "/r", "REVIEWER": "an expert"}
    return ComposeFile.load({**secrets, **folders, "MLFLOW_ALLOWED_HOSTS": f"{hosts},localhost:*"})


@contextmanager
def mlflow_of(site: Site, folder: Path, command: list[str], variables: Mapping[str, str]) -> Iterator[Site]:
    with services.mlflow_server(folder, variables, command) as url:
        yield Site(site.database, site.s3, url)


@pytest.fixture(scope="module")
def site(compose: ComposeFile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """PostgreSQL, S3 with its buckets, and MLflow, by the commands of compose; ports and folders are the test's."""
    folder = tmp_path_factory.mktemp("site")
    keys = {name: compose.environment("s3")[name] for name in services.S3_KEYS}
    password = compose.environment("postgres")["POSTGRES_PASSWORD"]
    with (
        services.postgres_server(folder, compose.command("postgres"), password) as database,
        services.s3_server(folder / "s3", command=compose.command("s3"), keys=keys) as s3,
    ):
        own = Site(database, s3)
        assert set(compose.environment("buckets")) == set(s3)
        key = {WEBHOOK_KEY: compose.environment("mlflow")[WEBHOOK_KEY]}
        assert set(compose.environment("mlflow")) == {*own.variables, *key}
        done(compose.command("buckets"), s3)
        addresses = {"MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}  # such as 192.0.2.1, which nobody has
        variables = {**own.variables, **key, **addresses}
        with mlflow_of(own, folder, compose.command("mlflow"), variables) as running:
            yield running


def port_of(url: str) -> str:
    return str(urlsplit(url).port)


def test_the_services_are_healthy_by_their_own_checks(site: Site, compose: ComposeFile) -> None:
    (closed,) = services.free_ports(1)
    for service, port, own in (
        ("postgres", "5432", site.database["PGPORT"]),
        ("s3", "8333", port_of(site.s3["AWS_ENDPOINT_URL"])),
        ("mlflow", "5000", port_of(site.mlflow)),
    ):
        assert compose.health(service, {port: own}) == 0
        assert compose.health(service, {port: str(closed)}) != 0


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("mlflow:5000", 200),
        ("localhost:5000", 200),
        ("127.0.0.1:5000", 200),
        ("10.0.0.7:5000", 403),
        ("evil.test", 403),
    ],
)
def test_mlflow_answers_only_to_its_names(site: Site, host: str, status: int) -> None:
    assert status_of(int(port_of(site.mlflow)), "/api/2.0/mlflow/experiments/search?max_results=1", host) == status


def status_of(port: int, path: str, host: str = "127.0.0.1") -> int:
    """The status of the answer to a GET with that Host."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", path, headers={"Host": host})
        return connection.getresponse().status


def test_s3_asks_for_a_key_and_its_own_ports_stay_on_loopback(site: Site) -> None:
    port = int(port_of(site.s3["AWS_ENDPOINT_URL"]))
    assert status_of(port, "/mlflow?list-type=2") == 403
    listening = [found for found in psutil.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
    (server,) = {found.pid for found in listening if found.laddr.port == port}
    public = {found.laddr.port for found in listening if found.pid == server and found.laddr.ip != "127.0.0.1"}
    (grpc,) = [word for word in psutil.Process(server).cmdline() if word.startswith("-s3.port.grpc=")]
    assert public == {port, int(grpc.partition("=")[2])}


def fill(site: Site, folder: Path) -> tuple[Path, str]:
    """A registered model with two versions, one of them champion, and the pool that it learned from."""
    from mlflow import MlflowClient

    pool = finished_pool(folder / "pool", TOYS)
    pool_version = pool_versions.push(pool, "s3://pools/dvc")
    client: Any = MlflowClient(site.mlflow)
    experiment = client.create_experiment("toy")
    client.create_registered_model(MODEL, description="for a test")
    for number in (1, 2):
        run = client.create_run(experiment, tags={"hepar.model": f"m{number}"}).info
        client.log_param(run.run_id, "training.steps", "10")
        for step in range(3):
            client.log_metric(run.run_id, "loss", 1.0 / (step + number), step=step)
        weights = folder / f"weights-{number}"
        weights.mkdir()
        (weights / "weights.pt").write_bytes(os.urandom(200_000 * number))
        client.log_artifacts(run.run_id, str(weights), "model")
        tags = {"hepar.pool_version": pool_version}
        client.create_model_version(MODEL, f"{run.artifact_uri}/model", run.run_id, tags=tags)
    client.set_registered_model_alias(MODEL, "champion", "2")
    client.create_webhook("viewer", "https://192.0.2.1", ["model_version_alias.created"], secret="a secret of sixteen")
    return pool, pool_version


def registry(site: Site, folder: Path) -> dict[str, Any]:
    """All that MLflow knows of the models, runs, artifacts and webhooks; these cannot be read with another key."""
    from mlflow import MlflowClient

    client: Any = MlflowClient(site.mlflow)
    found: dict[str, Any] = {"models": [str(dict(model)) for model in client.search_registered_models()]}
    found["webhooks"] = [(hook.name, hook.url) for hook in client.list_webhooks()]
    for version in client.search_model_versions(f"name='{MODEL}'"):
        run = client.get_run(version.run_id)
        history = [(metric.step, metric.value) for metric in client.get_metric_history(version.run_id, "loss")]
        target = folder / version.version
        target.mkdir(parents=True)
        artifacts = content(Path(client.download_artifacts(version.run_id, "model", str(target))))
        found[version.version] = [str(version), run.to_dictionary(), history, artifacts]
    return found


def kustomized(overlay: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(rendered(INFRA / "kubernetes" / "overlays" / overlay)))


def secrets_of(found: Mapping[str, Any]) -> set[str]:
    """The secrets that the variables of a container come from."""
    return {one["valueFrom"]["secretKeyRef"]["name"] for one in found["env"] if "valueFrom" in one}


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    return kustomized("cpu")


@dataclass(frozen=True)
class SavedSite:
    """What the site held when it was backed up by the command of the CronJob, and the backup."""

    registry: Mapping[str, Any]
    pool: Path
    pool_version: str
    backup: Path
    words: list[str]  # the command, with the test's folder


@pytest.fixture(scope="module")
def saved(site: Site, manifests: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[SavedSite]:
    folder = tmp_path_factory.mktemp("saved")
    cron = container(manifests, "CronJob", "backup")
    assert {variable["name"] for variable in cron["env"]} == set(site.variables)
    assert secrets_of(cron) == {"postgres", "s3-backup"}
    assert cron["command"].count("/backup") == 1
    words = [str(folder / "backup") if word == "/backup" else word for word in cron["command"]]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in site.s3.items():
            patch.setenv(name, value)
        pool, version = fill(site, folder)
    found = registry(site, folder / "before")
    assert all(len(found[number][3]) == 1 for number in "12")  # its artifact
    done(words, site.variables)
    return SavedSite(found, pool, version, folder / "backup", words)


@pytest.fixture
def as_site(site: Site, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module infra/services/storage.py, run here as a client of the site."""
    for name, value in site.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(services.program('pg_dump')).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    return load_script(STORAGE)


def contents(backup: Path) -> dict[str, int]:
    """The stored contents and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in (backup / "objects").glob("*/*")}


def test_registry_and_pool_come_back_on_empty_services(
    saved: SavedSite,
    compose: ComposeFile,
    manifests: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On services as in Kubernetes, where each client of S3 has a key of its own; that of webhooks was kept."""
    script = load_script(MAKE_SECRETS)
    secrets = {one["metadata"]["name"]: one["stringData"] for one in script.make_secrets(script.new_keys())}
    identities = tmp_path / "identities.json"
    identities.write_text(secrets["s3-identities"]["identities.json"])
    command = container(manifests, "StatefulSet", "s3")["command"]
    assert command.count("-s3.config=/etc/s3/identities.json") == 1
    command = [f"-s3.config={identities}" if word.startswith("-s3.config=") else word for word in command]
    arguments = container(manifests, "StatefulSet", "postgres")["args"]
    with (
        services.postgres_server(tmp_path, arguments, secrets["postgres"]["password"]) as database,
        services.s3_server(tmp_path / "s3", command=command, keys={}) as address,
    ):
        users = {name: {**address, **as_variables(secrets[f"s3-{name}"])} for name in USERS}
        restore = container(kustomized("restore"), "Job", "restore")
        assert secrets_of(restore) == {"postgres", "s3-operator"}
        words = [str(saved.backup) if word == "/backup" else word for word in restore["command"]]
        done(words, {**database, **users["operator"]})
        served = container(manifests, "Deployment", "mlflow")
        assert secrets_of(served) == {"postgres", "s3-mlflow", "mlflow-webhooks"}
        words = served["command"]
        words = [f"{word},localhost:*" if word.startswith("--allowed-hosts=") else word for word in words]
        kept = {WEBHOOK_KEY: compose.environment("mlflow")[WEBHOOK_KEY]}
        with mlflow_of(Site(database, address), tmp_path, words, {**database, **users["mlflow"], **kept}) as restored:
            assert registry(restored, tmp_path / "after") == saved.registry
            for name, value in {**users["pipeline"], "MLFLOW_TRACKING_URI": restored.mlflow}.items():
                monkeypatch.setenv(name, value)
            pool_versions.pull(f"models:/{MODEL}@champion", tmp_path / "pool", "s3://pools/dvc")
            assert content(tmp_path / "pool") == content(saved.pool)
        done(container(manifests, "Deployment", "mlflow", "buckets")["command"], users["operator"])
        check_rights(users)
        again = [str(tmp_path / "again") if word == str(saved.backup) else word for word in saved.words]
        done(again, {**database, **users["backup"]})  # with a key that may only read
        assert contents(tmp_path / "again").keys() == contents(saved.backup).keys()


USERS = ("operator", "mlflow", "pipeline", "backup")
MAKE_SECRETS = INFRA / "kubernetes" / "make_secrets.py"


def as_variables(secret: Mapping[str, str]) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": secret["access-key"], "AWS_SECRET_ACCESS_KEY": secret["secret-key"]}


def check_rights(users: Mapping[str, Mapping[str, str]]) -> None:
    """Each user of S3 may do in each bucket what its work needs, and no more."""
    allowed = {
        "mlflow": {"mlflow": "rw"},
        "pipeline": {"pools": "rw", "scans": "r"},
        "backup": {"mlflow": "r", "pools": "r"},
    }
    for user, rights in allowed.items():
        client = services.s3_client(users[user])
        for bucket in ("mlflow", "pools", "scans"):
            own = rights.get(bucket, "")
            assert may(client.list_objects_v2, Bucket=bucket) == ("r" in own)
            assert may(client.get_object, Bucket=bucket, Key="scan.nii.gz") == ("r" in own)
            assert may(client.put_object, Bucket=bucket, Key="x", Body=b"x") == ("w" in own)
            if "w" in own:
                client.delete_object(Bucket=bucket, Key="x")
        assert not may(client.create_bucket, Bucket="more")


def may(call: Callable[..., Any], **arguments: Any) -> bool:
    try:
        call(**arguments)
    except ClientError as error:
        return bool(error.response["Error"]["Code"] != "AccessDenied")
    return True


def test_a_second_backup_stores_only_what_is_new(saved: SavedSite, site: Site, as_site: Any, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    shutil.copytree(saved.backup, backup)
    before, client = contents(backup), services.s3_client(site.s3)
    client.put_object(Bucket="mlflow", Key="new", Body=b"a new object")
    as_site.backup(backup, ["mlflow", "pools"], None)
    added = contents(backup).keys() - before.keys()
    assert {(backup / "objects" / name[:2] / name).read_bytes() for name in added} == {b"a new object"}
    assert {name: time for name, time in contents(backup).items() if name not in added} == before
    assert len(as_site.snapshots(backup)) == 2

    client.delete_object(Bucket="mlflow", Key="new")
    as_site.backup(backup, ["mlflow", "pools"], 1)
    assert contents(backup) == before  # the content of a deleted object goes with the last snapshot that has it
    (kept,) = as_site.snapshots(backup)
    as_site.verify(backup, as_site.Snapshot.load(kept))


def test_a_backup_that_breaks_off_leaves_no_snapshot(saved: SavedSite, as_site: Any, tmp_path: Path) -> None:
    with pytest.raises(as_site.StorageFailure, match="there is no bucket absent"):
        as_site.backup(tmp_path / "backup", ["absent"], None)
    assert as_site.snapshots(tmp_path / "backup") == []
    with pytest.raises(as_site.StorageFailure, match="has no snapshot"):
        as_site.find_snapshot(tmp_path / "backup", "")


def test_a_second_backup_at_the_same_time_is_refused(as_site: Any, tmp_path: Path) -> None:
    with as_site.only_one(tmp_path), pytest.raises(as_site.StorageFailure, match="another backup"):
        as_site.backup(tmp_path, ["mlflow"], None)


def test_a_damaged_backup_is_not_restored(saved: SavedSite, as_site: Any, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    shutil.copytree(saved.backup, backup)
    (snapshot,) = as_site.snapshots(backup)
    loaded = as_site.Snapshot.load(snapshot)
    (entry,) = [found for found in loaded.buckets["mlflow"] if found.size == 400_000]
    file = as_site.object_file(backup, entry.sha256)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(as_site.StorageFailure, match=rf"mlflow/{entry.key} is damaged"):
        as_site.restore(backup, loaded)
    file.unlink()
    with pytest.raises(as_site.StorageFailure, match=rf"mlflow/{entry.key} is missing"):
        as_site.verify(backup, loaded)


def test_nothing_is_restored_over_a_registry_in_use(saved: SavedSite, as_site: Any, site: Site) -> None:
    with pytest.raises(as_site.StorageFailure, match=r"the database has \d+ tables but must be empty"):
        as_site.restore(saved.backup, as_site.find_snapshot(saved.backup, ""))


def test_nothing_is_restored_into_a_bucket_in_use(
    saved: SavedSite, as_site: Any, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = services.s3_client(site.s3)
    client.put_object(Bucket="pools", Key="of another", Body=b"x")
    monkeypatch.setenv("PGDATABASE", "template1")  # an empty one
    with pytest.raises(as_site.StorageFailure, match="bucket pools is not empty: it has of another"):
        as_site.restore(saved.backup, as_site.find_snapshot(saved.backup, ""))
    client.delete_object(Bucket="pools", Key="of another")


def test_the_tool_says_in_one_sentence_what_is_wrong(site: Site, tmp_path: Path) -> None:
    wrong = {**site.variables, "PGPASSWORD": "wrong"}
    ended = storage(["hepar-storage", "backup", str(tmp_path), "--buckets", "mlflow"], wrong)
    assert ended.returncode == 1
    assert ended.stderr.startswith("hepar-storage: pg_dump ended with exit code 1: ")
    assert "password authentication failed" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_the_review_page_is_healthy_by_its_own_check(by_kfp: Path, compose: ComposeFile, tmp_path: Path) -> None:
    (port,) = services.free_ports(1)
    words = [word.replace("/reviews", str(tmp_path / "reviews")) for word in compose.command("review")]
    assert "--port=8765" in words
    for name in ("cohort", "pseudo"):
        shutil.copytree(by_kfp / name, tmp_path / name)
    command, own = [*words, f"--port={port}"], {"8765": str(port)}
    assert compose.health("review", own) != 0
    with services.started(command, lambda: compose.health("review", own) == 0, tmp_path / "review.log"):
        assert f"http://127.0.0.1:{port}/?token=" in (tmp_path / "review.log").read_text()


def test_the_prediction_service_serves_the_champion_and_is_healthy_by_its_own_check(
    site: Site, compose: ComposeFile, tiny: Params, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    write_model(tmp_path / "model", tiny, toy_weights(tiny))
    client: Any = MlflowClient(site.mlflow)
    run = client.create_run(client.create_experiment("served")).info
    client.log_artifacts(run.run_id, str(tmp_path / "model"), "model")
    client.create_registered_model("hepar-universal")
    client.create_model_version("hepar-universal", f"{run.artifact_uri}/model", run.run_id)
    client.set_registered_model_alias("hepar-universal", "champion", "1")

    words, variables = compose.command("serve"), compose.environment("serve")
    assert variables.pop("MLFLOW_TRACKING_URI") == "http://mlflow:5000"
    assert {"--model=models:/hepar-universal@champion", "--port=8000"} <= set(words)
    (port,) = services.free_ports(1)
    own, log = {"8000": str(port)}, tmp_path / "serve.log"
    assert compose.health("serve", own) != 0
    environment = {**variables, "MLFLOW_TRACKING_URI": site.mlflow, "TMPDIR": str(tmp_path)}
    with services.started([*words, f"--port={port}"], lambda: compose.health("serve", own) == 0, log, environment):
        assert status_of(port, "/") == 401
        assert status_of(port, f"/?token={variables[TOKEN_VARIABLE]}") == 200
