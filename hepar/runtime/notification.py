"""News of a run or of a retraining, sent to HEPAR_NOTIFY_URL as a JSON POST.

The body is `{"event", "outcome", "subject", "details", "links"}`, all text but `details`, a list, and `links`, an
object of names and addresses. With HEPAR_NOTIFY_FORMAT=slack it is `{"text": …}`, as incoming webhooks of Slack and
Mattermost take it; with github the body of `repository_dispatch`, which starts the workflow `report`. Secrets are left
out. Whoever sends goes on if the server does not answer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from hepar.runtime.redaction import redact

URL_VARIABLE, FORMAT_VARIABLE = "HEPAR_NOTIFY_URL", "HEPAR_NOTIFY_FORMAT"
JSON, SLACK, GITHUB = "json", "slack", "github"
EVENT_TYPE = "hepar-finished"  # of `repository_dispatch`
SUCCEEDED = "SUCCEEDED"  # an outcome, as KFP names it; FAILED and CANCELLED are others
MAX_MESSAGE = 500  # characters of a line from elsewhere
TIMEOUT_SECONDS = 10.0

Event = Literal["run", "retraining"]


@dataclass(frozen=True)
class Notification:
    """What happened to what: `outcome` in one word, such as SUCCEEDED, the `subject` in a line, then the details."""

    event: Event
    outcome: str
    subject: str
    details: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)

    def body(self, form: str) -> dict[str, Any]:
        """The JSON to send, without secrets; `form` is json, slack or github."""
        plain = asdict(self) | {"details": list(self.details), "links": dict(self.links)}
        body: dict[str, Any] = _redacted(plain)
        if form == GITHUB:
            return {"event_type": EVENT_TYPE, "client_payload": body}
        return {"text": _as_slack(body)} if form == SLACK else body


def send(notification: Notification) -> str:
    """Send a notification; returns why it was not sent, empty if it was or if HEPAR_NOTIFY_URL is not set."""
    if not (url := os.environ.get(URL_VARIABLE, "")):
        return ""
    form = os.environ.get(FORMAT_VARIABLE) or JSON
    if form not in (JSON, SLACK, GITHUB):
        return f"{FORMAT_VARIABLE} is {form!r} but must be {JSON}, {SLACK} or {GITHUB}"
    import requests

    try:
        answer = requests.post(url, json=notification.body(form), timeout=TIMEOUT_SECONDS)
    except requests.RequestException as error:  # its message would show the address, which may hold a secret
        return f"{URL_VARIABLE} does not answer ({type(error).__name__})"
    return "" if answer.ok else f"{URL_VARIABLE} answers {answer.status_code}"


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return {key: _redacted(item) for key, item in value.items()}


def _as_slack(body: Mapping[str, Any]) -> str:
    """The text of a message, in which `&`, `<` and `>` are escaped, as Slack asks."""
    lines = [f"*{_escaped(body['outcome'])}*: {_escaped(body['subject'])}"]
    lines += [f"• {_escaped(detail)}" for detail in body["details"]]
    lines += [f"<{_escaped(address)}|{_escaped(name)}>" for name, address in body["links"].items()]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
