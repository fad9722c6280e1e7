"""Webhooks of the MLflow server: deployments are told when the alias champion is given to a version.

The server signs what it sends with a secret that it shares with the receiver. A message is news, not a command: it may
come twice, late or never, so a receiver asks the registry which version is the champion now.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from hepar.errors import DataError, HeparError
from hepar.params import CHAMPION
from hepar.registry.tracking import connect, mlflow_errors, server, tracking_uri
from hepar.runtime.redaction import CREDENTIALS_RULE, has_credentials, redact_address

EVENT = ("model_version_alias", "created")  # entity and action, as messages name them
SIGNATURE, TIMESTAMP, DELIVERY = "x-mlflow-signature", "x-mlflow-timestamp", "x-mlflow-delivery-id"
SIGNATURE_VERSION = "v1"
MAX_AGE_SECONDS = 300.0  # of a message: an old one may have been recorded and sent again
MIN_SECRET = 16  # characters


class WebhookRefused(HeparError):
    """A message that the server did not send, or not lately."""


@dataclass(frozen=True)
class Webhook:
    """A webhook of the server: its name there, and where it sends to."""

    name: str
    url: str


@dataclass(frozen=True)
class NewChampion:
    """What a message says: the version of the model that has become champion."""

    model: str
    version: str


def add_webhook(webhook: Webhook, secret: str) -> None:
    """Let the server send the address a signed message whenever a version becomes champion.

    Raises DataError if the name is taken, the secret is short, the address has credentials in it, or no server is
    there to send anything, StorageError if the server refuses the address.
    """
    if len(secret) < MIN_SECRET:
        raise DataError(f"the secret of a webhook has {len(secret)} characters but must have at least {MIN_SECRET}")
    if has_credentials(webhook.url):
        raise DataError(f"the webhook is {redact_address(webhook.url)}: {CREDENTIALS_RULE}")
    if urlsplit(tracking_uri()).scheme not in ("http", "https"):
        raise DataError(f"{server()} is a database without an MLflow server, so nobody would send a webhook")
    with mlflow_errors():
        client = connect().MlflowClient()
        if any(found.name == webhook.name for found in client.list_webhooks()):
            raise DataError(f"the MLflow server has a webhook {webhook.name!r} already: remove it first")
        client.create_webhook(webhook.name, webhook.url, [".".join(EVENT)], secret=secret)


def list_webhooks() -> tuple[Webhook, ...]:
    """The webhooks of the server that tell of aliases, by name. Raises StorageError if it does not answer."""
    with mlflow_errors():
        found = connect().MlflowClient().list_webhooks()
    own = [hook for hook in found if any((str(e.entity), str(e.action)) == EVENT for e in hook.events)]
    return tuple(sorted((Webhook(hook.name, hook.url) for hook in own), key=lambda hook: hook.name))


def remove_webhook(name: str) -> None:
    """Remove a webhook. Raises DataError if no webhook has this name, StorageError if the server fails."""
    with mlflow_errors():
        client = connect().MlflowClient()
        ids = [hook.webhook_id for hook in client.list_webhooks() if hook.name == name]
        for webhook_id in ids:
            client.delete_webhook(webhook_id)
    if not ids:
        raise DataError(f"the MLflow server at {server()} has no webhook {name!r}")


def read_message(headers: Mapping[str, str], body: bytes, secret: str, now: Callable[[], float]) -> NewChampion | None:
    """What a signed message says; None if it is about another alias or event.

    `body` is what was received, byte by byte; `now` gives seconds since 1970. Raises WebhookRefused if the message is
    not signed with the secret, is older than `MAX_AGE_SECONDS` or from the future, or cannot be read.
    """
    given = {name.lower(): value for name, value in headers.items()}
    delivery, sent = given.get(DELIVERY, ""), given.get(TIMESTAMP, "")
    signed = b".".join((delivery.encode(), sent.encode(), body))
    digest = base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest()).decode()
    expected = f"{SIGNATURE_VERSION},{digest}"
    if not hmac.compare_digest(expected.encode(), given.get(SIGNATURE, "").encode()):
        raise WebhookRefused("the message is not signed with the secret of this webhook")
    if not sent.isdecimal() or abs(now() - int(sent)) > MAX_AGE_SECONDS:
        raise WebhookRefused(f"the message is from {sent!r}, more than {MAX_AGE_SECONDS:g} s away from now")
    try:
        message = json.loads(body)
        if (message["entity"], message["action"]) != EVENT or message["data"]["alias"] != CHAMPION:
            return None
        return NewChampion(str(message["data"]["name"]), str(message["data"]["version"]))
    except (ValueError, KeyError, TypeError):
        raise WebhookRefused("the message is signed but not an event of MLflow's registry") from None
