"""Stage 3: liver masks for the cases that lack one, each judged by the gates.

Writes `quality.parquet` (one row a case: signals, outcome, weight, reasons) and `masks/<case>/liver.nii.gz` and
`uncertain.nii.gz` on the case's own grid. A run that was stopped goes on after the last case that it finished.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from hepar.cases import Case, Cohort, LabelState, Modality, Split
from hepar.errors import ArtifactError
from hepar.imaging.volumes import to_image, write_image
from hepar.inference.patients import hash_patient, patients_seen
from hepar.inference.prediction import Model, load_ensemble
from hepar.params import PseudoLabelParams
from hepar.pseudo_labels.gates import ACCEPT, REJECT, REVIEW, TABLE, Signals, judge
from hepar.pseudo_labels.prediction import label_case
from hepar.runtime.artifacts import Manifest, link, read_manifest, sha256_file, sha256_json, writing
from hepar.runtime.device import pick_device, use_threads
from hepar.runtime.progress import current, stage
from hepar.training.checkpoint import checkpoint_folder

KIND = "pseudo-labels"
IN_WORDS = {ACCEPT: "accepted", REVIEW: "wait for review", REJECT: "rejected"}
LIVER, UNCERTAIN, SIGNALS = "liver.nii.gz", "uncertain.nii.gz", "signals.json"
COLUMNS = ["case_id", "modality", "teacher", "teacher_saw_patient", "mask_sha256", *Signals.names()]


def run(cohort: Path, teachers: Mapping[Modality, Path], pseudo: Path, params: PseudoLabelParams) -> None:
    """Label every case outside the test split whose liver is unknown, by the teacher of its modality."""
    with stage("pseudo-label"):
        use_threads(params.threads)
        parents = {"cohort": read_manifest(cohort, "cohort").hash}
        manifests = {modality: read_manifest(folder, "model") for modality, folder in teachers.items()}
        parents.update({f"teacher-{modality}": manifest.hash for modality, manifest in manifests.items()})
        cases = Cohort.load(cohort)
        wanted = [case for case in cases if case.liver_state == LabelState.UNKNOWN and case.split != Split.TEST]
        _check_teachers(manifests, parents["cohort"], {case.modality: case.case_id for case in wanted})
        device = pick_device()
        models = {
            modality: load_ensemble(teachers[modality], device) for modality in {case.modality for case in wanted}
        }
        seen = {modality: patients_seen(teachers[modality]) for modality in models}
        predicting = params.model_dump(mode="json", exclude={"gates", "threads"})
        finished = checkpoint_folder(pseudo, sha256_json([parents, predicting]))
        with writing(pseudo, KIND, parents) as folder, current().counting(len(wanted), "cases") as count:
            rows = []
            for case in wanted:
                place = finished / case.case_id
                if not place.is_dir():
                    _label(case, cohort, models[case.modality], place, params)
                for name in (LIVER, UNCERTAIN):
                    link(place / name, folder / "masks" / case.case_id / name)
                signals = Signals(**json.loads((place / SIGNALS).read_text()))
                verdict = judge(signals, case.modality, params.gates)
                origin = {
                    "teacher": manifests[case.modality].hash,
                    "teacher_saw_patient": hash_patient(case.patient_id) in seen[case.modality],
                    "mask_sha256": sha256_file(place / LIVER),
                }
                rows.append(_row(case, origin, signals) | verdict.row())
                count.advance(case=case.case_id, gate=verdict.gate)
            columns = None if rows else [*COLUMNS, "gate", "weight", "reasons", "predicted_dice"]
            if rows:
                counts = Counter(row["gate"] for row in rows)
                current().say(", ".join(f"{counts[gate]} {word}" for gate, word in IN_WORDS.items()))
            pd.DataFrame(rows, columns=columns).to_parquet(folder / TABLE, index=False)
        shutil.rmtree(finished, ignore_errors=True)


def _row(case: Case, origin: Mapping[str, Any], signals: Signals) -> dict[str, Any]:
    return {"case_id": case.case_id, "modality": str(case.modality), **origin, **asdict(signals)}


def _check_teachers(manifests: Mapping[Modality, Manifest], cohort_hash: str, first: Mapping[Modality, str]) -> None:
    for modality, case_id in first.items():
        if modality not in manifests:
            raise ArtifactError(f"case {case_id}: there is no teacher for {modality}")
    for modality, manifest in manifests.items():
        if (made_from := manifest.parents.get("cohort")) != cohort_hash:
            raise ArtifactError(f"the {modality} teacher was made from cohort {made_from}, this one is {cohort_hash}")


def _label(case: Case, cohort: Path, teachers: list[Model], place: Path, params: PseudoLabelParams) -> None:
    """Label one case and put what it gave into the folder `place`, whole or not at all."""
    labelled = label_case(case, cohort, teachers, params)
    partial = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    write_image(to_image(labelled.liver, labelled.geometry), partial / LIVER)
    write_image(to_image(labelled.uncertain, labelled.geometry), partial / UNCERTAIN)
    (partial / SIGNALS).write_text(json.dumps(asdict(labelled.signals)))
    partial.rename(place)
