#!/usr/bin/env python3
"""Print random secrets for the manifests, as JSON for kubectl; nothing is written to a file.

    python infra/kubernetes/make_secrets.py | kubectl create -f -

`create` refuses what exists, so a running site keeps its keys. If the cluster has `s3-identities`, the keys of S3 are
those that it holds, so a Secret that is added later has a key that the server knows. With names, these Secrets alone
are printed: `s3-identities`, piped to `kubectl replace -f -`, gives the users of a running site the rights below.

Keep a copy where your site keeps passwords: backups do not hold them. With another `hepar-patient-key` every patient
gets another pseudonym and perhaps another split, and with another key of `mlflow-webhooks` MLflow cannot read the
webhooks of a restored database.
"""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

SERVICES, RUNS = "hepar", "hepar-runs"
IDENTITIES, IDENTITIES_FILE = "s3-identities", "identities.json"
# what each user of S3 may do, in SeaweedFS's words; `operator` makes buckets and restores
ACTIONS = {
    "operator": ["Admin"],
    "mlflow": ["Read:mlflow", "Write:mlflow", "List:mlflow", "Tagging:mlflow"],
    "pipeline": ["Read:pools", "Write:pools", "List:pools", "Tagging:pools", "Read:scans", "List:scans"],
    "backup": ["Read:mlflow", "List:mlflow", "Read:pools", "List:pools"],
}


Keys = Mapping[str, Mapping[str, str]]  # of each user of S3: access-key and secret-key


class ClusterFailure(Exception):
    """Why no secrets can be made for the cluster, in one sentence."""


def main() -> int:
    """Print a list of Secrets, all or those of the command line; 1 and one sentence if the cluster is not ready."""
    try:
        found = make_secrets(keys_of_cluster() or new_keys())
        wanted = sys.argv[1:] or [one["metadata"]["name"] for one in found]
        if unknown := set(wanted) - {one["metadata"]["name"] for one in found}:
            raise ClusterFailure(f"the manifests name no Secret {min(unknown)}")
    except ClusterFailure as failure:
        print(f"make_secrets: {failure}", file=sys.stderr)
        return 1
    items = [one for one in found if one["metadata"]["name"] in wanted]
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1))
    return 0


def keys_of_cluster() -> Keys | None:
    """The keys of S3 that the cluster's server knows; None if it has no keys yet.

    Raises ClusterFailure if kubectl fails, a namespace is missing, or the cluster has keys that its server cannot know.
    """
    there = {one["metadata"]["name"] for one in existing("namespace", [SERVICES, RUNS])}
    for namespace in (SERVICES, RUNS):
        if namespace not in there:
            raise ClusterFailure(f"the cluster has no namespace {namespace}: create it first")
    if identities_secret := existing("secret", [IDENTITIES], SERVICES):
        content = base64.b64decode(identities_secret[0]["data"][IDENTITIES_FILE])
        return known_keys(json.loads(content)["identities"])
    names = [user_secret(user) for user in ACTIONS]
    for namespace in (SERVICES, RUNS):
        if orphans := existing("secret", names, namespace):
            raise ClusterFailure(
                f"the namespace {namespace} has the Secret {orphans[0]['metadata']['name']}, but {SERVICES} has no"
                f" {IDENTITIES}: restore that from your copy, or delete {', '.join(names)}"
            )
    return None


def existing(kind: str, names: list[str], namespace: str = SERVICES) -> list[dict[str, Any]]:
    """Those of the named objects that the cluster has. Raises ClusterFailure with kubectl's last words if it fails."""
    command = ["kubectl", "get", kind, *names, "--namespace", namespace, "--ignore-not-found", "--output", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise ClusterFailure("there is no kubectl: install it") from None
    if done.returncode:
        raise ClusterFailure(f"kubectl get {kind} fails: {done.stderr.strip().rpartition(chr(10))[2]}")
    found = json.loads(done.stdout or "{}")  # nothing, the only object, or a list
    return list(found.get("items", [found] if found else []))


def new_keys() -> Keys:
    """Random keys for each user of S3."""
    return {user: {"access-key": secrets.token_hex(10), "secret-key": secrets.token_hex(24)} for user in ACTIONS}


def known_keys(found: list[dict[str, Any]]) -> Keys:
    """The keys of identities as SeaweedFS reads them. Raises ClusterFailure if a user of the manifests is missing."""
    credentials = {one["name"]: one["credentials"][0] for one in found}
    for user in ACTIONS:
        if user not in credentials:
            raise ClusterFailure(f"the Secret {IDENTITIES} has no user {user}: add one to it")
    return {
        user: {"access-key": credentials[user]["accessKey"], "secret-key": credentials[user]["secretKey"]}
        for user in ACTIONS
    }


def make_secrets(keys: Keys) -> list[dict[str, Any]]:
    """Secrets with these keys of S3, else random values, under the names and keys that the manifests refer to."""
    found = [
        secret(RUNS if user == "pipeline" else SERVICES, user_secret(user), dict(values))
        for user, values in keys.items()
    ]
    return [
        *found,
        secret(SERVICES, IDENTITIES, {IDENTITIES_FILE: json.dumps({"identities": identities(keys)})}),
        secret(SERVICES, "postgres", {"password": secrets.token_hex(24)}),
        secret(SERVICES, "mlflow-webhooks", {"encryption-key": fernet_key()}),
        secret(SERVICES, "hepar-serve", {"token": secrets.token_hex(24)}),
        secret(RUNS, "hepar-patient-key", {"key": secrets.token_hex(32)}),
    ]


def user_secret(user: str) -> str:
    """The name of the Secret with the keys of a user of S3."""
    return f"s3-{user}"


def fernet_key() -> str:
    """A key as MLflow wants it: 32 bytes in the Base64 of URLs."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def identities(keys: Keys) -> list[dict[str, Any]]:
    """The users of S3 as SeaweedFS reads them."""
    return [
        {
            "name": user,
            "credentials": [{"accessKey": keys[user]["access-key"], "secretKey": keys[user]["secret-key"]}],
            "actions": actions,
        }
        for user, actions in ACTIONS.items()
    ]


def secret(namespace: str, name: str, values: dict[str, str]) -> dict[str, Any]:
    """A Secret of Kubernetes."""
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values}


if __name__ == "__main__":
    sys.exit(main())
