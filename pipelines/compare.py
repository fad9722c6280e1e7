"""Whether two runs of the pipeline came to the same: `python -m pipelines.compare RUN_A RUN_B`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hepar.runtime.artifacts import read_manifest

ARTIFACTS = {"cohort": "cohort", "pseudo": "pseudo-labels", "pool": "pool", "models/universal": "model"}


def differences(a: Path, b: Path) -> list[str]:
    """What two working directories of `hepar run` disagree about: content hashes and metrics. Empty if nothing."""
    found = []
    for place, kind in ARTIFACTS.items():
        hashes = [read_manifest(run / place, kind).hash for run in (a, b)]
        if hashes[0] != hashes[1]:
            found.append(f"{place}: {hashes[0]} in {a} but {hashes[1]} in {b}")
    metrics = [json.loads((run / "report" / "metrics.json").read_text()) for run in (a, b)]
    if metrics[0] != metrics[1]:
        found.append(f"metrics.json of {a} and {b} differ")
    return found


def main() -> None:
    a, b = map(Path, sys.argv[1:3])
    found = differences(a, b)
    print("\n".join(found) or f"{a} and {b} agree: pool {read_manifest(a / 'pool', 'pool').hash}, same metrics")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
