"""The files of .github/workflows/ as tests read them."""

from __future__ import annotations

from typing import Any

import yaml
from conftest import ROOT


def loaded(name: str) -> dict[Any, Any]:
    """A workflow by the name of its file."""
    found: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yaml").read_text())
    return found


def triggers(name: str) -> dict[str, Any]:
    """What starts a workflow."""
    found: dict[str, Any] = loaded(name)[True]  # YAML 1.1 reads `on` so
    return found


def step(name: str, title: str) -> dict[str, Any]:
    """A step of a workflow of one job, by its name."""
    (job,) = loaded(name)["jobs"].values()
    (found,) = [one for one in job["steps"] if one.get("name") == title]
    return dict(found)
