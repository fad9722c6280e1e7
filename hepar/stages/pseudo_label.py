"""Stage 3: predict the missing livers and judge them by the gates.

Writes a folder `PseudoLabels`. A stopped run resumes after its last case; with HEPAR_STORE, on an empty disk too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hepar.cases import Case, Cohort, LabelState, Modality, Split
from hepar.errors import ArtifactError
from hepar.inference.model_folder import ModelFolder
from hepar.inference.prediction import load_ensemble
from hepar.params import PseudoLabelParams
from hepar.pseudo_labels.finished import FinishedLivers
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.pseudo_labels.gates import ACCEPT, REJECT, REVIEW
from hepar.pseudo_labels.labelling import Labeller, Teacher
from hepar.runtime.artifacts import Manifest, check_made_from, read_manifest, sha256_json, write_artifact
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
        unlabelled = _unlabelled(cohort)
        cohort_manifest = read_manifest(cohort, Cohort.KIND)
        given = _teachers(teachers, cohort, cohort_manifest, unlabelled)
        parents = {Cohort.KIND: cohort_manifest.hash}
        parents |= {PseudoLabels.teacher(modality): manifest.hash for modality, manifest in given.items()}
        # the key leaves out the gates: with other gates, finished predictions are judged again
        predicting = params.model_dump(mode="json", exclude={"gates", "threads"})
        finished = FinishedLivers(checkpoint_folder(pseudo, sha256_json([parents, predicting])))
        with (
            write_artifact(pseudo, PseudoLabels.KIND, parents) as folder,
            current_stage().counting(len(unlabelled), "cases") as count,
        ):
            labels, rows = PseudoLabels(folder), list[dict[str, Any]]()
            labeller = Labeller(labels, finished, cohort, params, _load(teachers, given, unlabelled))
            for case in unlabelled:
                rows.append(labeller.label(case))
                count.advance(case=case.case_id, gate=rows[-1]["gate"])
            if rows:
                counts = Counter(row["gate"] for row in rows)
                current_stage().log(", ".join(f"{counts[gate]} {outcome}" for gate, outcome in OUTCOMES.items()))
            labels.save_table(rows)
        if handover is not None:
            handover.finish(pseudo)
        finished.remove([case.case_id for case in unlabelled])


def _unlabelled(cohort: Path) -> list[Case]:
    """The cases outside the test split whose liver is unknown; their files are those of the table."""
    cases = Cohort.load(cohort)
    found = [case for case in cases if case.liver_state == LabelState.UNKNOWN and case.split != Split.TEST]
    cases.verify(found)
    return found


def _teachers(
    folders: Mapping[Modality, Path], cohort: Path, cohort_manifest: Manifest, unlabelled: Sequence[Case]
) -> dict[Modality, Manifest]:
    """The manifests of the teachers. Raises ArtifactError if one is missing or was trained on another cohort."""
    manifests = {modality: read_manifest(folder, ModelFolder.KIND) for modality, folder in folders.items()}
    for case in unlabelled:
        if case.modality not in manifests:
            raise ArtifactError(f"case {case.case_id}: no teacher for {case.modality} was given")
    for modality, manifest in manifests.items():
        check_made_from(folders[modality], manifest, cohort, cohort_manifest, "train-liver")
    return manifests


def _load(
    folders: Mapping[Modality, Path], manifests: Mapping[Modality, Manifest], unlabelled: Sequence[Case]
) -> dict[Modality, Teacher]:
    """The teachers of the modalities that have something to label."""
    device = pick_device()
    return {
        modality: Teacher(
            manifests[modality].hash,
            ModelFolder(folders[modality]).load_patients(),
            load_ensemble(folders[modality], device),
        )
        for modality in {case.modality for case in unlabelled}
    }
