"""Ingest and pool building where torch cannot be imported: `python without_torch.py PARAMS FOLDER`.

A test runs it in this environment, with torch hidden, and `tests/infra/test_registry_roundtrip.py` in the image `data`,
which has none. The pool is that of manual labels alone: pseudo-livers are predicted by a step that has torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.modules["torch"] = None  # type: ignore[assignment]  # importing it raises ImportError, as where it is not installed
sys.modules["monai"] = None  # type: ignore[assignment]  # which imports torch

import components.pool_versions  # noqa: E402  the components import it
import components.stages  # noqa: E402, F401
import hepar.stages.assemble_pool  # noqa: E402
import hepar.stages.ingest  # noqa: E402
from hepar.cases import Cohort  # noqa: E402
from hepar.params import load_params  # noqa: E402
from hepar.pool.table import Pool  # noqa: E402
from hepar.pseudo_labels.folder import PseudoLabels  # noqa: E402
from hepar.runtime.artifacts import read_manifest, write_artifact  # noqa: E402


def main(params_file: Path, folder: Path) -> None:
    params = load_params(params_file)
    cohort, pseudo, pool = folder / "cohort", folder / "pseudo", folder / "pool"
    hepar.stages.ingest.run("phantoms", cohort, params.ingest, params.modalities)
    with write_artifact(pseudo, PseudoLabels.KIND, {Cohort.KIND: read_manifest(cohort, Cohort.KIND).hash}) as partial:
        PseudoLabels(partial).save_table([])
    hepar.stages.assemble_pool.run(cohort, pseudo, pool, params.modalities, params.preprocessing, params.assemble_pool)
    print(f"{len(Cohort.load(cohort).cases)} cases, {len(Pool.load(pool).entries)} in the pool")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
