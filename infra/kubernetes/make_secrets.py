#!/usr/bin/env python3
"""Print new random secrets for the manifests, as JSON for kubectl; nothing is written to a file.

    python infra/kubernetes/make_secrets.py | kubectl create -f -

`create` refuses what exists, so a running site keeps its keys. Keep a copy where your site keeps passwords: backups do
not hold them. With another `hepar-patient-key` every patient gets another pseudonym and perhaps another split, and with
another key of `mlflow-webhooks` MLflow cannot read the webhooks of a restored database.
"""

from __future__ import annotations

import base64
import json
import secrets
from typing import Any

SERVICES, RUNS = "hepar", "hepar-runs"
# what each user of S3 may do, in SeaweedFS's words; `operator` makes buckets and restores
ACTIONS = {
    "operator": ["Admin"],
    "mlflow": ["Read:mlflow", "Write:mlflow", "List:mlflow", "Tagging:mlflow"],
    "pipeline": ["Read:pools", "Write:pools", "List:pools", "Tagging:pools"],
    "backup": ["Read:mlflow", "List:mlflow", "Read:pools", "List:pools"],
}


def main() -> None:
    """Print a list of Secrets."""
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": make_secrets()}, indent=1))


def make_secrets() -> list[dict[str, Any]]:
    """Secrets with random values, each under the name and keys by which the manifests refer to it."""
    keys = {user: {"access-key": secrets.token_hex(10), "secret-key": secrets.token_hex(24)} for user in ACTIONS}
    found = [secret(RUNS if user == "pipeline" else SERVICES, f"s3-{user}", values) for user, values in keys.items()]
    return [
        *found,
        secret(SERVICES, "s3-identities", {"identities.json": json.dumps({"identities": identities(keys)})}),
        secret(SERVICES, "postgres", {"password": secrets.token_hex(24)}),
        secret(SERVICES, "mlflow-webhooks", {"encryption-key": fernet_key()}),
        secret(SERVICES, "hepar-serve", {"token": secrets.token_hex(24)}),
        secret(RUNS, "hepar-patient-key", {"key": secrets.token_hex(32)}),
    ]


def fernet_key() -> str:
    """A key as MLflow wants it: 32 bytes in the Base64 of URLs."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def identities(keys: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
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
    main()
