"""A program `kubectl` whose cluster is a file: it gets namespaces and secrets, and creates secrets, as the real one."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

CLUSTER = "CLUSTER_OF_THE_TEST"


def install(folder: Path) -> dict[str, str]:
    """Put `kubectl` into a folder; the variables with which a command finds it and an empty cluster."""
    program, cluster = folder / "kubectl", folder / "cluster.json"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} "$@"\n')
    program.chmod(0o755)
    cluster.write_text("[]")
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", CLUSTER: str(cluster)}


def place_of(one: dict[str, Any]) -> tuple[str, str, str]:
    namespace = "" if one["kind"] == "Namespace" else one["metadata"]["namespace"]
    return one["kind"].lower(), namespace, one["metadata"]["name"]


def get(cluster: list[dict[str, Any]], kind: str, names: list[str], namespace: str) -> str:
    """Nothing, the object if one name was given, or a list."""
    wanted = [(kind, "" if kind == "namespace" else namespace, name) for name in names]
    found = [one for one in cluster if place_of(one) in wanted]
    if not found:
        return ""
    return json.dumps(found[0] if len(names) == 1 else {"kind": "List", "items": found})


def create(cluster: list[dict[str, Any]], given: list[dict[str, Any]]) -> list[str]:
    """Add what is new and has a namespace; the complaints about the others."""
    complaints = []
    for one in given:
        kind, namespace, name = place_of(one)
        if place_of(one) in map(place_of, cluster):
            complaints.append(f'Error from server (AlreadyExists): {kind} "{name}" already exists')
        elif namespace and ("namespace", "", namespace) not in map(place_of, cluster):
            complaints.append(f'Error from server (NotFound): namespaces "{namespace}" not found')
        else:
            values = {key: base64.b64encode(value.encode()).decode() for key, value in one["stringData"].items()}
            cluster.append({"kind": one["kind"], "metadata": one["metadata"], "data": values})
    return complaints


def main() -> int:
    file = Path(os.environ[CLUSTER])
    cluster = json.loads(file.read_text())
    if sys.argv[1] == "get":
        names = sys.argv[3 : sys.argv.index("--namespace")]
        print(get(cluster, sys.argv[2], names, sys.argv[sys.argv.index("--namespace") + 1]), end="")
        return 0
    assert sys.argv[1:] == ["create", "-f", "-"]
    complaints = create(cluster, json.load(sys.stdin)["items"])
    file.write_text(json.dumps(cluster))
    print("\n".join(complaints), file=sys.stderr)
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main())
