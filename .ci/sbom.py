"""Write what an image of the stages holds, as CycloneDX JSON; run by `make sbom`.

`python .ci/sbom.py --image IMAGE --out FILE LOCK...` lists the packages of the locks, which the image installs with
these hashes. Where a Docker Engine has the image, its Debian packages are added, and the ID of the image; otherwise a
property of the document and a line on standard error say that they are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CYCLONEDX = str(Path(sys.executable).with_name("cyclonedx-py"))
LISTING = "${binary:Package}\\t${Version}\\t${Architecture}\\n"
PROPERTY = "hepar:debian-packages"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--image", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("locks", type=Path, nargs="+", metavar="LOCK")
    given = parser.parse_args()
    document = python_packages(given.locks)
    inspected = docker("image", "inspect", "--format", "{{.Id}}", given.image)
    listed = docker("run", "--rm", "--network", "none", given.image, "dpkg-query", "-W", "-f", LISTING)
    if inspected is None or listed is None:
        print(f"no Docker Engine with the image {given.image}: its Debian packages are not listed", file=sys.stderr)
        note(document, "not listed: there was no Docker Engine with the image")
    else:
        document["components"] += debian_packages(listed)
        note(document, f"listed by dpkg-query in the image {inspected.strip()}")
    partial = given.out.with_name(f".{given.out.name}")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(given.out)
    return 0


def python_packages(locks: list[Path]) -> dict[str, Any]:
    """The CycloneDX document of the packages in lock files, with their hashes."""
    with tempfile.TemporaryDirectory() as scratch:
        joined = Path(scratch) / "requirements.txt"
        joined.write_text("".join(lock.read_text() for lock in locks))
        made = [CYCLONEDX, "requirements", "--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible"]
        quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
        done = subprocess.run([*made, str(joined)], env=quiet, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"cyclonedx-py fails: {done.stderr.strip()}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def docker(*words: str) -> str | None:
    """The output of a command of docker; None if there is no Docker Engine, or it fails."""
    try:
        done = subprocess.run(["docker", *words], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def debian_packages(listed: str) -> list[dict[str, str]]:
    """The components of a listing by dpkg-query: name, version and architecture, separated by tabs."""
    found = []
    for line in listed.splitlines():
        name, version, architecture = line.split("\t")
        name = name.partition(":")[0]
        purl = f"pkg:deb/debian/{name}@{version.replace('+', '%2B').replace(':', '%3A')}?arch={architecture}"
        found.append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    return found


def note(document: dict[str, Any], text: str) -> None:
    document["metadata"].setdefault("properties", []).append({"name": PROPERTY, "value": text})


if __name__ == "__main__":
    sys.exit(main())
