"""What is installed beside `hepar`, which imports neither pipelines nor DVC: it is found by its entry points."""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import EntryPoint
from typing import Any

from hepar.errors import HeparError


def entry_points(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name; none without what provides them."""
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=group)}


def load_entry_point(group: str, name: str) -> Any:
    """What an entry point names. Raises HeparError if it is not installed."""
    found = entry_points(group)
    if name not in found:
        raise HeparError("hepar is installed without its pipelines: install it again, as by 'make setup'")
    return found[name].load()
