"""What `redact` leaves out of a text, what it keeps, and which addresses hold credentials."""

from __future__ import annotations

import pytest

from hepar.runtime.redaction import QUERY_VARIABLE, has_credentials, redact, redact_address


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET http://user:pw@host/path failed", "GET http://…@host/path failed"),
        ("GET http://user:p/w@host/path failed", "GET http://…@host/path failed"),
        ("postgresql+psycopg2://hepar:pw@db:5432/mlflow", "postgresql+psycopg2://…@db:5432/mlflow"),
        ("404 for url: http://host/series?PatientID=7&Modality=CT", "404 for url: http://host/series?…"),
        (
            "exceeded with url: /dicom-web/series?PatientID=7 (Caused by x)",
            "exceeded with url: /dicom-web/series?… (Caused by x)",
        ),
        ("{'Authorization': 'Basic dXNlcjpwdw=='}", "{'Authorization': '…'}"),
        ("Authorization: Bearer abcdefgh", "Authorization: …"),
        ("connection failed: host=db password=pw user=x", "connection failed: host=db password=… user=x"),
    ],
)
def test_secrets_are_left_out(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "case ct-007: liver mask is 512×512×77 but the image is 512×512×78",
        "s3://bucket/a@b/image.nii.gz: no such object",
        "models:/hepar@champion cannot be fetched from sqlite:///runs/demo/mlflow.db",
        "the Basic Offset Table is empty. Why? x = 1",
        "authorization failed",
        "AuthorizationError: access denied",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_values_of_secret_variables_and_searched_values_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a/b+c")
    monkeypatch.setenv(QUERY_VARIABLE, "PatientID=7&PatientName=Doe%20John")
    assert redact("key a/b+c, a%2Fb%2Bc; Doe John, Doe+John, Doe%20John; 7 of 77") == "key …, …; …, …, …; … of 77"
    assert redact("series of 4711 and 47110", ["4711"]) == "series of … and 47110"


@pytest.mark.parametrize("name", ["HEPAR_WEBHOOK_SECRET", "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"])
def test_what_signs_and_encrypts_webhooks_is_left_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "sixteen-letters-")
    assert redact("signed by sixteen-letters-, twice") == "signed by …, twice"


def test_an_address_is_shown_without_credentials_and_query() -> None:
    shown = redact_address("dicomweb+https://user:pw@host/path?PatientName=O'Brien (John)")
    assert shown == "dicomweb+https://…@host/path?…"
    assert redact_address("scans/what?") == "scans/what?"


@pytest.mark.parametrize(
    ("address", "holds"),
    [
        ("dicomweb+http://user:pw@host/path", True),
        ("dicomweb+http://user@host/path", True),
        ("dicomweb+http://user:p/w@host/path", True),
        ("dicomweb+http://user:p#w@host/path", True),
        ("s3://KEY:SECRET@bucket/x", True),
        ("s3://bucket/a@b", False),
        ("dicomweb+https://host:8042/path?PatientID=a@b", False),
        ("dicomweb+https://[::1]:8042/path", False),
        ("scans/user:pw@host", False),
        ("phantoms", False),
    ],
)
def test_credentials_in_an_address_are_recognised(address: str, holds: bool) -> None:
    assert has_credentials(address) == holds
