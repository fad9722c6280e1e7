"""Whether two local runs gave the same results: `python -m pipelines.compare RUN_A RUN_B`."""

from __future__ import annotations

import sys
from pathlib import Path

from hepar.cases import Cohort
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.pool.table import Pool
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.runtime.artifacts import read_manifest
from pipelines.results import PLACES

COMPARED = {
    PLACES[Cohort.KIND]: Cohort.KIND,
    PLACES[PseudoLabels.KIND]: PseudoLabels.KIND,
    PLACES[Pool.KIND]: Pool.KIND,
    PLACES[ModelFolder.UNIVERSAL]: ModelFolder.KIND,
}


def differences(a: Path, b: Path) -> list[str]:
    """Differences in content hashes and metrics between two working directories of `hepar run`; empty if none."""
    found = []
    for place, kind in COMPARED.items():
        hash_a, hash_b = (read_manifest(run / place, kind).hash for run in (a, b))
        if hash_a != hash_b:
            found.append(f"{place}: {hash_a[:12]} in {a} but {hash_b[:12]} in {b}")
    metrics_a, metrics_b = (Report(run / PLACES[Report.KIND]).metrics() for run in (a, b))
    if metrics_a != metrics_b:
        found.append(f"{Report.METRICS} of {a} and {b} differ")
    return found


def main() -> None:
    a, b = map(Path, sys.argv[1:3])
    found = differences(a, b)
    pool = read_manifest(a / PLACES[Pool.KIND], Pool.KIND).hash
    print("\n".join(found) or f"{a} and {b} agree: pool {pool}, same metrics")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
