"""Text without secrets. Messages, logs and status files pass through `redact`, above all those of other libraries.

Secrets are user names and passwords in addresses, whatever a query searches for, and the values of `SECRET_VARIABLES`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, quote, quote_plus

QUERY_VARIABLE = "HEPAR_DICOMWEB_QUERY"  # attributes of a DICOMweb search that identify a patient, `NAME=VALUE&…`
SECRET_VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *(
        "HEPAR_DICOMWEB_TOKEN",
        "HEPAR_KFP_TOKEN",
        "HEPAR_NOTIFY_URL",
        "HEPAR_PATIENT_KEY",
        "HEPAR_SERVE_TOKEN",
        "HEPAR_WEBHOOK_SECRET",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY",
    ),
)
CREDENTIALS_RULE = (
    "an address must not hold a user name or password, because it is copied into logs and files; for HTTP they belong"
    " in ~/.netrc or HEPAR_DICOMWEB_TOKEN, for S3 in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws"
)
HIDDEN = "…"
_PATTERNS = (
    # a password may hold a slash; the key of an S3 object may hold an @
    (re.compile(r"(s3://)[^\s/'\"<>]*@"), rf"\1{HIDDEN}@"),
    (re.compile(r"((?<!s3)://)[^\s'\"<>]*@"), rf"\1{HIDDEN}@"),
    (re.compile(r"\?[\w.%+~-]+=[^\s'\"<>]*"), f"?{HIDDEN}"),
    (re.compile(r"(?i)\b(password|passwd|pwd|secret|token)=[^\s&;,'\"]+"), rf"\1={HIDDEN}"),
    (re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?)(?:(?:basic|bearer)\s+)?[^\s'\"]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b(bearer\s+)[^\s'\"]{8,}"), rf"\1{HIDDEN}"),
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` with `…` in place of its secrets and of the further `secrets`, also where they are percent-encoded."""
    for secret in sorted({*secrets, *_from_environment()} - {""}, key=len, reverse=True):
        for form in {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}:
            text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", HIDDEN, text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_address(address: str) -> str:
    """An address without its credentials and without what it searches for, which may hold any characters."""
    place, mark, query = address.partition("?")
    return redact(place) + (f"?{HIDDEN}" if "=" in query else mark + query)


def has_credentials(address: str) -> bool:
    """Whether an address `SCHEME://…` holds a user name or password; false for a path."""
    scheme, mark, rest = address.partition("://")
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    port = host.rpartition("]")[2].partition(":")[2]  # behind the brackets of IPv6
    # what is no port was cut from a password that holds a slash or the like
    return bool(mark) and ("@" in host or (scheme != "s3" and "@" in rest and bool(port) and not port.isdigit()))


def _from_environment() -> list[str]:
    searched = parse_qsl(os.environ.get(QUERY_VARIABLE, ""))
    return [os.environ.get(name, "") for name in SECRET_VARIABLES] + [value for _, value in searched]
