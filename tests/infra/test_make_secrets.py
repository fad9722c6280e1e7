"""infra/kubernetes/make_secrets.py on a stand-in for the cluster: it is what lies outside this machine."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from infra.deployment_files import INFRA
from infra.kubectl_stand_in import install

SCRIPT = INFRA / "kubernetes" / "make_secrets.py"


class Cluster:
    """A cluster with these namespaces, and the script that asks it."""

    def __init__(self, folder: Path, *namespaces: str) -> None:
        self.variables = install(folder)
        self.file = folder / "cluster.json"
        self.write([{"kind": "Namespace", "metadata": {"name": name}} for name in namespaces])

    def write(self, objects: list[dict[str, Any]]) -> None:
        self.file.write_text(json.dumps(objects))

    def objects(self) -> list[dict[str, Any]]:
        return list(json.loads(self.file.read_text()))

    def make_secrets(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), *words]
        return subprocess.run(command, env=self.variables, capture_output=True, text=True)

    def made(self, *words: str) -> list[dict[str, Any]]:
        done = self.make_secrets(*words)
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout)["items"])

    def create(self) -> None:
        """The command of the documents; what is there already is refused."""
        given = json.dumps({"items": self.made()})
        subprocess.run(
            ["kubectl", "create", "-f", "-"], input=given, env=self.variables, text=True, capture_output=True
        )

    def remove(self, name: str) -> None:
        self.write([one for one in self.objects() if one["metadata"]["name"] != name])

    def secret(self, name: str) -> dict[str, str]:
        (found,) = [one["data"] for one in self.objects() if one["metadata"]["name"] == name]
        return {key: base64.b64decode(value).decode() for key, value in found.items()}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path, "hepar", "hepar-runs")


def check_that_the_server_knows_all_keys(cluster: Cluster) -> None:
    users = json.loads(cluster.secret("s3-identities")["identities.json"])["identities"]
    known = {user["name"]: user["credentials"] for user in users}
    assert set(known) == {"operator", "mlflow", "pipeline", "backup"}
    for user, credentials in known.items():
        own = cluster.secret(f"s3-{user}")
        assert credentials == [{"accessKey": own["access-key"], "secretKey": own["secret-key"]}]


def test_a_secret_that_is_made_later_has_the_key_that_the_server_knows(cluster: Cluster) -> None:
    cluster.create()
    check_that_the_server_knows_all_keys(cluster)
    before = cluster.objects()
    cluster.create()
    assert cluster.objects() == before
    cluster.remove("s3-pipeline")  # as with its namespace
    cluster.create()
    check_that_the_server_knows_all_keys(cluster)


@pytest.mark.parametrize("missing", ["hepar", "hepar-runs"])
def test_no_secret_is_made_while_a_namespace_is_missing(missing: str, tmp_path: Path) -> None:
    done = Cluster(tmp_path, *{"hepar", "hepar-runs"} - {missing}).make_secrets()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"make_secrets: the cluster has no namespace {missing}: create it first\n"


def test_keys_that_the_server_cannot_know_are_not_added_to(cluster: Cluster) -> None:
    cluster.create()
    cluster.remove("s3-identities")
    done = cluster.make_secrets()
    assert (done.returncode, done.stdout) == (1, "")
    assert "the namespace hepar has the Secret s3-operator, but hepar has no s3-identities" in done.stderr
    for user in ("operator", "mlflow", "backup"):
        cluster.remove(f"s3-{user}")
    assert "the namespace hepar-runs has the Secret s3-pipeline" in cluster.make_secrets().stderr


def test_a_user_that_the_server_does_not_know_is_named(cluster: Cluster) -> None:
    content = base64.b64encode(json.dumps({"identities": []}).encode()).decode()
    metadata = {"name": "s3-identities", "namespace": "hepar"}
    cluster.write([*cluster.objects(), {"kind": "Secret", "metadata": metadata, "data": {"identities.json": content}}])
    assert (
        cluster.make_secrets().stderr == "make_secrets: the Secret s3-identities has no user operator: add one to it\n"
    )


def test_a_cluster_out_of_reach_is_one_sentence(cluster: Cluster) -> None:
    (cluster.file.parent / "kubectl").write_text("#!/bin/sh\necho noise >&2\necho 'it was refused' >&2\nexit 1\n")
    done = cluster.make_secrets()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "make_secrets: kubectl get namespace fails: it was refused\n"


def test_named_secrets_alone_are_printed(cluster: Cluster) -> None:
    assert [one["metadata"]["name"] for one in cluster.made("s3-identities")] == ["s3-identities"]
    assert cluster.make_secrets("s3").stderr == "make_secrets: the manifests name no Secret s3\n"


def test_secrets_are_new_each_time(cluster: Cluster) -> None:
    once, again = cluster.made(), cluster.made()
    values = [set(secret["stringData"].values()) for secret in (*once, *again)]
    assert len(set.union(*values)) == sum(map(len, values))
    assert all(len(value) >= 20 for found in values for value in found)
    (key,) = [one["stringData"]["encryption-key"] for one in once if one["metadata"]["name"] == "mlflow-webhooks"]
    Fernet(key)  # MLflow does not start with another
