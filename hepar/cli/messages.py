"""Messages to the user, on standard error."""

from __future__ import annotations

from rich.console import Console

from hepar.runtime.redaction import redact


def print_message(text: str) -> None:
    """Print one line without secrets on standard error, however narrow the terminal is."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"hepar: {redact(text)}", markup=False)
