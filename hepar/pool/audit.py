"""What must hold of every pool, checked on the pool itself: each audit gives the cases that break its rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hepar.runtime.artifacts import read_manifest, sha256_json
from hepar.cases import Cohort, LabelState, Modality, Split
from hepar.pool.building import hashes_of
from hepar.errors import HeparError, ParamsError
from hepar.ingest.perceptual_hash import FILE as PERCEPTUAL_HASHES
from hepar.ingest.perceptual_hash import Seen, load_perceptual_hashes
from hepar.inference.patients import hash_patient, patients_seen
from hepar.pool.table import Pool


@dataclass(frozen=True)
class Subject:
    """What is audited: a pool, the cohort that it was assembled from, and the teachers by modality."""

    pool: Pool
    cohort: Cohort
    teachers: Mapping[Modality, Path]


@dataclass(frozen=True)
class Finding:
    """A case that breaks a rule, and how."""

    audit: str
    case_id: str
    what: str


Audit = Callable[[Subject], Iterator[tuple[str, str]]]  # case and what is wrong with it


def no_test_patient(subject: Subject) -> Iterator[tuple[str, str]]:
    """No patient of the test split is in the pool."""
    held_out = {case.patient_id for case in subject.cohort if case.split == Split.TEST}
    for entry in subject.pool.entries:
        if entry.split == Split.TEST or entry.patient_id in held_out:
            yield entry.case_id, f"patient {entry.patient_id} belongs to the test split"


def teacher_unseen(subject: Subject) -> Iterator[tuple[str, str]]:
    """No pseudo-label is by a teacher that saw a label of that patient."""
    seen = {modality: patients_seen(folder) for modality, folder in subject.teachers.items()}
    hashes = {modality: read_manifest(folder, "model").hash for modality, folder in subject.teachers.items()}
    for entry in subject.pool.entries:
        if entry.liver_state != LabelState.PSEUDO:
            continue
        if entry.modality not in seen:
            yield entry.case_id, f"the {entry.modality} teacher is not there to be asked"
        elif hashes[entry.modality] != entry.teacher:
            yield entry.case_id, f"it is by teacher {entry.teacher[:12]}, but {hashes[entry.modality][:12]} is there"
        elif hash_patient(entry.patient_id) in seen[entry.modality]:
            yield entry.case_id, f"the {entry.modality} teacher saw a label of patient {entry.patient_id}"


def no_duplicate(subject: Subject) -> Iterator[tuple[str, str]]:
    """No scan is in two splits, under whatever name, spacing or range of values."""
    prints = load_perceptual_hashes(subject.cohort.folder / PERCEPTUAL_HASHES)
    split_of = {case.case_id: case.split for case in subject.cohort}
    seen = Seen()
    for case in subject.cohort:
        found, twins = prints.get(case.case_id), [*seen.same(case)]
        if found is None:
            yield case.case_id, "has no perceptual hash, by which it could be told from others"
        elif (alike := seen.alike(case, found)) is not None:
            twins.append(alike.case_id)
        seen.add(case, found)
        if elsewhere := [twin for twin in twins if split_of[twin] != case.split]:
            yield case.case_id, f"is in {case.split}, and as {elsewhere[0]} in {split_of[elsewhere[0]]}"


def tumour_in_liver(subject: Subject) -> Iterator[tuple[str, str]]:
    """What is taught as tumour is taught as liver, or nothing is taught of the liver there."""
    for entry in subject.pool.entries:
        arrays = subject.pool.arrays(entry).loaded()
        liver, tumour, liver_weight, _ = arrays.palette.T
        outside = int(np.count_nonzero(((tumour > 0) & (liver == 0) & (liver_weight > 0)).take(arrays.code)))
        if outside:
            yield entry.case_id, f"{outside} voxels of tumour are taught as outside the liver"


def unknown_is_unknown(subject: Subject) -> Iterator[tuple[str, str]]:
    """An unknown label is never taught as background, nor called known: not inside the liver, not without a liver."""
    cases = {case.case_id: case for case in subject.cohort}
    for entry in subject.pool.entries:
        case = cases.get(entry.case_id)
        if case is None:
            yield entry.case_id, "is no case of the cohort, which could say what is known of it"
        else:
            if entry.tumour_state not in (case.tumour_state, LabelState.UNKNOWN):
                yield entry.case_id, f"the tumour is {case.tumour_state} in the cohort, but {entry.tumour_state} here"
            drawn = entry.liver_origin and (entry.liver_state == LabelState.PSEUDO or entry.review)
            if entry.liver_state not in (case.liver_state, LabelState.UNKNOWN) and not drawn:
                yield entry.case_id, f"the liver is {case.liver_state} in the cohort, but {entry.liver_state} here"
        arrays = subject.pool.arrays(entry).loaded()
        liver, tumour, liver_weight, tumour_weight = (column.take(arrays.code) for column in arrays.palette.T)
        if entry.liver_state == LabelState.UNKNOWN and (known := int(np.count_nonzero(liver_weight))):
            yield entry.case_id, f"the liver is unknown, but {known} voxels are taught"
        if entry.tumour_state != LabelState.UNKNOWN:
            continue
        near = True if entry.liver_state == LabelState.UNKNOWN else liver > 0
        if known := int(np.count_nonzero((tumour_weight > 0) & near & (tumour == 0))):
            yield entry.case_id, f"the tumour is unknown, but {known} voxels of the liver are taught as free of it"


def as_assembled(subject: Subject) -> Iterator[tuple[str, str]]:
    """The arrays are those that were assembled."""
    for entry in subject.pool.entries:
        try:
            changed = sha256_json(list(hashes_of(subject.pool.folder / entry.file).values())) != entry.sha256
        except (HeparError, OSError, RuntimeError):
            changed = True
        if changed:
            yield entry.case_id, "its arrays were changed or damaged since"


AUDITS: dict[str, Audit] = {
    "as-assembled": as_assembled,
    "no-test-patient": no_test_patient,
    "teacher-unseen": teacher_unseen,
    "no-duplicate": no_duplicate,
    "tumour-in-liver": tumour_in_liver,
    "unknown-is-unknown": unknown_is_unknown,
}


def audit(subject: Subject, names: Sequence[str] = ()) -> dict[str, list[Finding]]:
    """The findings of some audits, or of all, by audit. Raises ParamsError for a name that is none."""
    if strange := sorted(set(names) - set(AUDITS)):
        raise ParamsError(f"there is no audit {strange[0]!r}, only {', '.join(AUDITS)}")
    chosen = [name for name in AUDITS if not names or name in names]
    return {name: [Finding(name, case, what) for case, what in AUDITS[name](subject)] for name in chosen}


def rule(name: str) -> str:
    """What an audit asks for, in words."""
    return (AUDITS[name].__doc__ or "").strip()
