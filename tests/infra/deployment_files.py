"""The files of infra/ as tests read them: the services of compose, and what `kubectl kustomize` renders."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import services
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
COMPOSE, EXAMPLE = INFRA / "compose" / "compose.yaml", INFRA / "compose" / ".env.example"
OVERLAYS = ("cpu", "gpu", "restore", "retrain", "serve")
VARIABLE = re.compile(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}")
STORAGE = INFRA / "services" / "storage.py"  # the image has it as hepar-storage


def example_variables() -> dict[str, str]:
    """The variables of `.env.example`, most of them empty."""
    pairs = (line.split("=", 1) for line in EXAMPLE.read_text().splitlines() if re.match(r"\w+=", line))
    return dict(pairs)


@dataclass(frozen=True)
class ComposeFile:
    """The services, with `variables` in the place of `${…}` as compose puts them."""

    services: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(cls, variables: Mapping[str, str]) -> ComposeFile:
        def value(found: re.Match[str]) -> str:
            name, operator, other = found.groups()
            if given := variables.get(name):
                return given
            assert operator != ":?", other
            return other or ""

        return cls(yaml.safe_load(VARIABLE.sub(value, COMPOSE.read_text()))["services"])

    def command(self, service: str) -> list[str]:
        return list(self.services[service]["command"])

    def environment(self, service: str) -> dict[str, str]:
        return dict(self.services[service].get("environment", {}))

    def health(self, service: str, ports: Mapping[str, str]) -> int:
        """The exit code of the health check, run on this machine with other ports."""
        kind, *words = self.services[service]["healthcheck"]["test"]
        assert kind == "CMD"
        for port, own in ports.items():
            assert any(port in word for word in words)
            words = [word.replace(port, own) for word in words]
        done = subprocess.run([services.program(words[0]), *words[1:]], capture_output=True, timeout=30)
        return done.returncode


def rendered(folder: Path) -> str:
    """What `kubectl kustomize` makes of an overlay."""
    done = subprocess.run([services.program("kubectl"), "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def container(manifests: list[dict[str, Any]], kind: str, name: str, own_name: str = "") -> dict[str, Any]:
    """The container of a workload that has the workload's name, or that of this name, which may run before it."""
    (found,) = [one for one in manifests if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    spec = found["spec"]["jobTemplate"]["spec"] if kind == "CronJob" else found["spec"]
    pod = spec["template"]["spec"]
    own_name = own_name or name
    (own,) = [one for one in (*pod.get("initContainers", ()), *pod["containers"]) if one["name"] == own_name]
    return dict(own)


def load_script(path: Path) -> ModuleType:
    """A script of infra/ as a module."""
    spec = importlib.util.spec_from_file_location(f"infra_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # where dataclasses look for it
    spec.loader.exec_module(loaded)
    return loaded
