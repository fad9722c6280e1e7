"""Messages to the user, on standard error."""

from __future__ import annotations

from rich.console import Console


def print_message(text: str) -> None:
    """Print one line on standard error, however narrow the terminal is."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"hepar: {text}", markup=False)
