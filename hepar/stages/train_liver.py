"""Stage 2: a liver teacher of one modality, from the cases whose liver was drawn by hand."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hepar.artifacts import read_manifest
from hepar.cases import Cohort, LabelState, Modality, Split
from hepar.params import NetworkParams, PreparationParams, TrainLiverParams
from hepar.pool import Pool, write_entry
from hepar.preparation import make_plan
from hepar.progress import current, stage
from hepar.training.fit import Recipe, fit_model


def run(
    cohort: Path,
    model: Path,
    modality: Modality,
    preparation: PreparationParams,
    network: NetworkParams,
    params: TrainLiverParams,
) -> None:
    """Train on the cohort's manual livers of `modality` and write the folder `model`. Test patients are never read."""
    with stage(f"train-liver-{modality}"), tempfile.TemporaryDirectory(prefix="hepar-") as scratch:
        manifest = read_manifest(cohort, "cohort")
        cases = Cohort.load(cohort)
        plan = make_plan(cases.cases, preparation)
        chosen = [
            case for case in cases.select(modality, (Split.TRAIN, Split.VAL)) if case.liver_state == LabelState.MANUAL
        ]
        folder, entries = Path(scratch), []
        with current().counting(len(chosen), "preparing") as count:
            for case in chosen:
                entries.append(write_entry(folder, case, cases.folder, plan, "ignored", 0.0, use_tumour=False))
                count.advance()
        fit_model(
            pool=Pool(folder, plan, tuple(entries)),
            model=model,
            recipe=Recipe(network=network, training=params.training, modalities=(modality,)),
            origin={"cohort": manifest.hash, "role": f"liver teacher {modality}"},
        )
