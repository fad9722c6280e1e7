"""Hand-made cases of a cohort without files, and what a champion's records would know about them."""

from __future__ import annotations

from hepar.cases import Case, LabelState, Modality, Split
from hepar.retraining.case_changes import KnownCase


def a_case(
    case_id: str,
    liver_state: LabelState = LabelState.MANUAL,
    tumour_state: LabelState = LabelState.MANUAL,
    split: Split = Split.TRAIN,
    modality: Modality = Modality.CT,
    source: str = "LiTS",
) -> Case:
    """A case of a patient of the same name, whose hashes are derived from it."""
    liver, tumour = liver_state == LabelState.MANUAL, tumour_state == LabelState.MANUAL
    return Case(
        case_id=case_id,
        patient_id=case_id,
        source=source,
        modality=modality,
        sequence="",
        image="image.nii.gz",
        liver="liver.nii.gz" if liver else "",
        tumour="tumour.nii.gz" if tumour else "",
        liver_state=liver_state,
        tumour_state=tumour_state,
        split=split,
        spacing_mm=(2.0, 2.0, 2.0),
        size=(16, 16, 16),
        image_sha256=f"image of {case_id}",
        liver_sha256=f"liver of {case_id}" if liver else "",
        tumour_sha256=f"tumour of {case_id}" if tumour else "",
    )


def known(case: Case) -> KnownCase:
    """What the record of a cohort with this case tells."""
    states = (case.liver_state, case.tumour_state)
    return KnownCase(case.case_id, case.image_sha256, states, (case.liver_sha256, case.tumour_sha256))
