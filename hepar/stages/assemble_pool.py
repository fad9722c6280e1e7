"""Stage 4: manual livers, pseudo-livers and tumour labels become one mixed-label pool of prepared arrays.

Writes `pool.parquet` (what is known of each case, and from where), `plan.json` and `cases/<case>/`. Test patients
are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hepar.artifacts import read_manifest, writing
from hepar.cases import Case, Cohort, Split
from hepar.errors import ArtifactError, DataError
from hepar.params import AssemblePoolParams, PreparationParams
from hepar.pool import Pool, PseudoLiver, write_entry
from hepar.preparation import make_plan
from hepar.progress import current, stage

KIND = "pool"


def run(cohort: Path, pseudo: Path, pool: Path, preparation: PreparationParams, params: AssemblePoolParams) -> None:
    """Assemble the pool of training and validation patients by the strategy in `params`."""
    with stage("assemble-pool"):
        parents = {
            "cohort": read_manifest(cohort, "cohort").hash,
            "pseudo-labels": (pseudo_manifest := read_manifest(pseudo, "pseudo-labels")).hash,
        }
        if pseudo_manifest.parents["cohort"] != parents["cohort"]:
            raise ArtifactError(
                f"{pseudo} labels cohort {pseudo_manifest.parents['cohort']}, but {cohort} is {parents['cohort']}"
            )
        cases = Cohort.load(cohort)
        plan = make_plan(cases.cases, preparation)
        chosen = [case for case in cases if case.split != Split.TEST and case.modality in params.modalities]
        livers = _pseudo_livers(pseudo) if params.labels == "mixed" else {}
        with writing(pool, KIND, parents) as folder, current().counting(len(chosen), "cases") as count:
            entries = []
            for case in chosen:
                entry = write_entry(
                    folder,
                    case,
                    cases.folder,
                    plan,
                    params.unknown_tumour,
                    params.margin_mm,
                    pseudo=livers.get(case.case_id),
                    use_liver=_uses_liver(case, params),
                )
                entries.append(entry)
                count.advance(case=case.case_id, liver=str(entry.liver_state))
            assembled = Pool(folder, plan, tuple(entries))
            if not assembled.select(Split.TRAIN):
                raise DataError(
                    f"the pool teaches nothing: no training case of {', '.join(params.modalities)} has a label"
                    f" under assemble_pool.labels {params.labels}"
                )
            assembled.save()


def _uses_liver(case: Case, params: AssemblePoolParams) -> bool:
    """Manual livers are used unless the strategy is tumour labels only; validation patients keep theirs to score."""
    return params.labels != "tumour" or case.split == Split.VAL


def _pseudo_livers(pseudo: Path) -> dict[str, PseudoLiver]:
    rows: Sequence[Mapping[Any, Any]] = pd.read_parquet(pseudo / "quality.parquet").to_dict(orient="records")
    return {
        row["case_id"]: PseudoLiver(
            mask=pseudo / "masks" / row["case_id"] / "liver.nii.gz",
            uncertain=pseudo / "masks" / row["case_id"] / "uncertain.nii.gz",
            weight=float(row["weight"]),
            gate=row["gate"],
            reasons=row["reasons"],
            teacher=row["teacher"],
        )
        for row in rows
    }
