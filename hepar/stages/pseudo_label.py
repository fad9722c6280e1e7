"""Stage 3: predict the missing livers and judge them by the gates.

Writes a folder `PseudoLabels`. A stopped run resumes after its last case; with HEPAR_STORE, on an empty disk too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hepar.cases import Cohort, LabelState, Modality, Split
from hepar.errors import ArtifactError
from hepar.inference.model_folder import ModelFolder, hash_patient
from hepar.inference.prediction import load_ensemble
from hepar.params import PseudoLabelParams
from hepar.pseudo_labels.finished import FinishedLivers
from hepar.pseudo_labels.folder import LabelledCase, PseudoLabels
from hepar.pseudo_labels.gates import ACCEPT, REJECT, REVIEW, judge
from hepar.pseudo_labels.prediction import load_signals, predict_pseudo_liver
from hepar.runtime.artifacts import check_made_from, read_manifest, sha256_file, sha256_json, write_artifact
from hepar.runtime.device import pick_device, use_threads
from hepar.runtime.progress import current_stage, stage
from hepar.runtime.stored_versions import Handover
from hepar.runtime.unfinished import checkpoint_folder

OUTCOMES = {ACCEPT: "accepted", REVIEW: "for review", REJECT: "rejected"}


def run(
    cohort: Path,
    teachers: Mapping[Modality, Path],
    pseudo: Path,
    params: PseudoLabelParams,
    handover: Handover | None = None,
) -> None:
    """Label every case outside the test split whose liver is unknown with the teacher of its modality.

    `handover`, if given, comes after that, inside the stage: if it fails, the stage fails.
    Raises ArtifactError if a teacher is missing or was trained on another cohort.
    """
    with stage("pseudo-label"):
        use_threads(params.threads)
        cohort_manifest = read_manifest(cohort, Cohort.KIND)
        parents = {Cohort.KIND: cohort_manifest.hash}
        manifests = {modality: read_manifest(folder, ModelFolder.KIND) for modality, folder in teachers.items()}
        parents.update({PseudoLabels.teacher(modality): manifest.hash for modality, manifest in manifests.items()})
        cases = Cohort.load(cohort)
        unlabelled = [case for case in cases if case.liver_state == LabelState.UNKNOWN and case.split != Split.TEST]
        cases.verify(unlabelled)
        for case in unlabelled:
            if case.modality not in manifests:
                raise ArtifactError(f"case {case.case_id}: no teacher for {case.modality} was given")
        for modality, manifest in manifests.items():
            check_made_from(teachers[modality], manifest, cohort, cohort_manifest, "train-liver")
        modalities, device = {case.modality for case in unlabelled}, pick_device()
        models = {modality: load_ensemble(teachers[modality], device) for modality in modalities}
        seen = {modality: ModelFolder(teachers[modality]).load_patients() for modality in modalities}
        # the key leaves out the gates: with other gates, finished predictions are judged again
        predicting = params.model_dump(mode="json", exclude={"gates", "threads"})
        finished = FinishedLivers(checkpoint_folder(pseudo, sha256_json([parents, predicting])))
        rows: list[dict[str, Any]] = []
        with (
            write_artifact(pseudo, PseudoLabels.KIND, parents) as folder,
            current_stage().counting(len(unlabelled), "cases") as count,
        ):
            labels = PseudoLabels(folder)
            for case in unlabelled:
                liver = finished.find(case.case_id)
                if liver is None:
                    predicted = predict_pseudo_liver(case, cohort, models[case.modality], params)
                    liver = finished.keep(case.case_id, predicted)
                labels.link_masks(case.case_id, liver)
                signals = load_signals(liver)
                verdict = judge(signals, case.modality, params.gates)
                labelled = LabelledCase(
                    case_id=case.case_id,
                    modality=str(case.modality),
                    teacher=manifests[case.modality].hash,
                    teacher_saw_patient=hash_patient(case.patient_id) in seen[case.modality],
                    mask_sha256=sha256_file(labels.liver(case.case_id)),
                )
                rows.append(asdict(labelled) | asdict(signals) | verdict.row())
                count.advance(case=case.case_id, gate=verdict.gate)
            if rows:
                counts = Counter(row["gate"] for row in rows)
                current_stage().log(", ".join(f"{counts[gate]} {outcome}" for gate, outcome in OUTCOMES.items()))
            labels.save_table(rows)
        if handover is not None:
            handover.finish(pseudo)
        finished.remove([case.case_id for case in unlabelled])
