"""Messages of MLflow's webhooks, signed by its own function; tests/retraining/test_rehearsal.py has a real server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mlflow.webhooks.delivery import _generate_hmac_signature
from typer.testing import CliRunner

from hepar.cli.main import app
from hepar.errors import DataError
from hepar.registry.webhooks import NewChampion, Webhook, WebhookRefused, add_webhook, read_message

SECRET, NOW = "a secret of sixteen", 1_800_000_000
CHAMPION = {"name": "hepar-universal", "alias": "champion", "version": "7"}


def message(entity: str = "model_version_alias", action: str = "created", **data: str) -> bytes:
    return json.dumps({"entity": entity, "action": action, "data": {**CHAMPION, **data}}).encode()


def signed(body: bytes, sent: int = NOW, secret: str = SECRET) -> dict[str, str]:
    signature = _generate_hmac_signature(secret, "delivery", str(sent), body.decode())
    names = ("X-MLflow-Signature", "X-MLflow-Timestamp", "X-MLflow-Delivery-Id")
    return dict(zip(names, (signature, str(sent), "delivery"), strict=True))


def read(headers: dict[str, str], body: bytes, now: float = NOW) -> NewChampion | None:
    return read_message(headers, body, SECRET, lambda: now)


def test_a_signed_message_tells_of_a_new_champion() -> None:
    body = message()
    expected = NewChampion("hepar-universal", "7")
    assert read(signed(body), body) == expected
    lower_case = {name.lower(): value for name, value in signed(body).items()}  # as HTTP/2 has them
    assert read(lower_case, body, NOW + 299) == expected


@pytest.mark.parametrize(
    "body", [message(alias="challenger"), message(action="deleted"), message(entity="model_version")]
)
def test_other_news_are_none(body: bytes) -> None:
    assert read(signed(body), body) is None


@pytest.mark.parametrize(
    ("headers", "now"),
    [
        ({}, NOW),
        (signed(message(), secret="another secret of it"), NOW),
        (signed(message(version="8")), NOW),  # the signature of another message
        ({**signed(message()), "X-MLflow-Timestamp": str(NOW + 1)}, NOW),
        ({**signed(message()), "X-MLflow-Delivery-Id": "another"}, NOW),
        ({**signed(message()), "X-MLflow-Signature": "v1,Ünsigned"}, NOW),
        (signed(message()), NOW + 301),
        (signed(message()), NOW - 301),
    ],
)
def test_a_message_that_the_server_did_not_send_now_is_refused(headers: dict[str, str], now: float) -> None:
    with pytest.raises(WebhookRefused):
        read(headers, message(), now)


@pytest.mark.parametrize("body", [b"", b"[]", b"no json", b'{"entity": "model_version_alias", "action": "created"}'])
def test_a_signed_message_of_another_form_is_refused(body: bytes) -> None:
    with pytest.raises(WebhookRefused, match="not an event of MLflow's registry"):
        read(signed(body), body)


@pytest.mark.parametrize(
    ("url", "secret", "expected"),
    [
        ("https://viewer.example.org", "short", "has 5 characters but must have at least 16"),
        ("https://me:pass@viewer.example.org", SECRET, "must not hold a user name or password"),
        ("https://viewer.example.org", SECRET, "is a database without an MLflow server"),
    ],
)
def test_a_webhook_that_would_not_work_is_refused(url: str, secret: str, expected: str) -> None:
    with pytest.raises(DataError, match=expected) as refused:
        add_webhook(Webhook("viewer", url), secret)
    assert "pass@" not in str(refused.value)


def test_the_secret_comes_from_a_variable() -> None:
    asked: Any = CliRunner().invoke(app, ["webhook", "add", "https://viewer.example.org"])
    assert "HEPAR_WEBHOOK_SECRET is not set" in str(asked.exception)
