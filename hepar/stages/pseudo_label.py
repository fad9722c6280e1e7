"""Stage 3: liver masks for the cases that lack one, each judged by the gates.

Writes `quality.parquet` (one row a case: signals, outcome, weight, reasons) and `masks/<case>/liver.nii.gz` and
`uncertain.nii.gz` on the case's own grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from hepar.artifacts import Manifest, read_manifest, writing
from hepar.cases import Case, Cohort, LabelState, Modality, Split
from hepar.compute import pick_device, use_threads
from hepar.errors import ArtifactError
from hepar.inference import Model, keep_largest_component, load_model, predict_probabilities, to_grid
from hepar.params import PseudoLabelParams
from hepar.pool import Mask, fill_holes
from hepar.progress import current, stage
from hepar.quality import Signals, judge, measure
from hepar.training.losses import LIVER
from hepar.volumes import Geometry, read_image, to_array, to_image, write_image

KIND = "pseudo-labels"
TABLE = "quality.parquet"


def run(cohort: Path, teachers: Mapping[Modality, Path], pseudo: Path, params: PseudoLabelParams) -> None:
    """Label every case outside the test split whose liver is unknown, by the teacher of its modality."""
    with stage("pseudo-label"):
        use_threads(params.threads)
        parents = {"cohort": read_manifest(cohort, "cohort").hash}
        manifests = {modality: read_manifest(folder, "model") for modality, folder in teachers.items()}
        parents.update({f"teacher-{modality}": manifest.hash for modality, manifest in manifests.items()})
        models = {modality: load_model(folder, pick_device()) for modality, folder in teachers.items()}
        cases = Cohort.load(cohort)
        wanted = [case for case in cases if case.liver_state == LabelState.UNKNOWN and case.split != Split.TEST]
        _check_teachers(manifests, parents["cohort"])
        with writing(pseudo, KIND, parents) as folder, current().counting(len(wanted), "cases") as count:
            rows = []
            for case in wanted:
                if case.modality not in models:
                    raise ArtifactError(f"case {case.case_id}: there is no teacher for {case.modality}")
                signals = _label(case, cases, models[case.modality], folder, params)
                verdict = judge(signals, params.gates)
                teacher = manifests[case.modality].hash
                rows.append({"case_id": case.case_id, "teacher": teacher, **asdict(signals), **verdict.row()})
                count.advance(case=case.case_id, gate=verdict.gate)
            columns = None if rows else ["case_id", "teacher", "gate", "weight", "reasons"]
            pd.DataFrame(rows, columns=columns).to_parquet(folder / TABLE, index=False)


def _check_teachers(manifests: Mapping[Modality, Manifest], cohort_hash: str) -> None:
    for modality, manifest in manifests.items():
        if (made_from := manifest.parents.get("cohort")) != cohort_hash:
            raise ArtifactError(f"the {modality} teacher was made from cohort {made_from}, this one is {cohort_hash}")


def _label(case: Case, cohort: Cohort, model: Model, folder: Path, params: PseudoLabelParams) -> Signals:
    """Predict a liver under every variant, write mask and uncertain band, and measure what the gates look at."""
    image = read_image(cohort.file(case.image))
    own = Geometry.of(image)
    livers = []
    for variant in range(params.variants):
        probabilities, geometry = predict_probabilities(model, image, case.modality, params.overlap, variant)
        livers.append(to_grid(probabilities[LIVER], geometry, own))
    mean = np.mean(livers, axis=0)
    raw: Mask = mean > 0.5
    liver = fill_holes(keep_largest_component(raw))
    uncertain = (mean > params.uncertain[0]) & (mean < params.uncertain[1])
    for name, mask in (("liver", liver), ("uncertain", uncertain)):
        write_image(to_image(mask, own), folder / "masks" / case.case_id / f"{name}.nii.gz")
    tumour = to_array(read_image(cohort.file(case.tumour))) > 0 if case.tumour else None
    return measure(raw, liver, [probability > 0.5 for probability in livers], tumour, own.spacing_zyx_mm)
