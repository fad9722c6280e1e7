"""Audits of a pool: the rules that every pool must follow, checked on the finished pool itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hepar.cases import Case, Cohort, LabelState, Modality, Split
from hepar.errors import HeparError, ParamsError
from hepar.inference.model_folder import ModelFolder, hash_patient
from hepar.ingest.near_duplicates import ScanIndex, load_perceptual_hashes
from hepar.pool.arrays import PreprocessedArrays, hash_arrays, hash_files
from hepar.pool.table import Pool, PoolEntry
from hepar.runtime.artifacts import read_manifest


@dataclass(frozen=True)
class AuditContext:
    """A pool, the cohort it was assembled from, and the model folders of the teachers by modality."""

    pool: Pool
    cohort: Cohort
    teachers: Mapping[Modality, Path]


@dataclass(frozen=True)
class Violation:
    """A case that breaks the rule of an audit, and how."""

    case_id: str
    problem: str


Audit = Callable[[AuditContext], Iterator[Violation]]  # the docstring is its rule, which users read


def arrays_unchanged(context: AuditContext) -> Iterator[Violation]:
    """The arrays are unchanged since the pool was assembled."""
    for entry in context.pool.entries:
        try:
            found = hash_arrays(hash_files(context.pool.folder / entry.arrays.folder))
        except (HeparError, OSError, RuntimeError):
            found = "unreadable"
        if found != entry.arrays.sha256:
            yield Violation(entry.case_id, "the arrays were changed or damaged")


def no_test_patient(context: AuditContext) -> Iterator[Violation]:
    """No patient of the test split is in the pool."""
    test_patients = {case.patient_id for case in context.cohort if case.split == Split.TEST}
    for entry in context.pool.entries:
        if entry.split == Split.TEST or entry.patient_id in test_patients:
            yield Violation(entry.case_id, f"patient {entry.patient_id} belongs to the test split")


def no_teacher_leakage(context: AuditContext) -> Iterator[Violation]:
    """No pseudo-label comes from a teacher that has seen a label of the same patient."""
    seen = {modality: ModelFolder(folder).load_patients() for modality, folder in context.teachers.items()}
    hashes = {modality: read_manifest(folder, ModelFolder.KIND).hash for modality, folder in context.teachers.items()}
    for entry in context.pool.entries:
        modality, teacher = entry.modality, entry.liver.teacher
        if entry.liver.state != LabelState.PSEUDO:
            continue
        if modality not in seen:
            yield Violation(entry.case_id, f"there is no {modality} teacher to check against")
        elif hashes[modality] != teacher:
            problem = f"labelled by teacher {teacher[:12]}, but the {modality} teacher is {hashes[modality][:12]}"
            yield Violation(entry.case_id, problem)
        elif hash_patient(entry.patient_id) in seen[modality]:
            yield Violation(entry.case_id, f"the {modality} teacher has seen a label of patient {entry.patient_id}")


def no_duplicate_across_splits(context: AuditContext) -> Iterator[Violation]:
    """No scan is in two splits, even under another name, spacing or intensity range."""
    hashes = load_perceptual_hashes(context.cohort.file(Cohort.PERCEPTUAL_HASHES))
    split_of = {case.case_id: case.split for case in context.cohort}
    index = ScanIndex()
    for case in context.cohort:
        scan_hash, duplicates = hashes.get(case.case_id), [*index.same_voxels(case)]
        if scan_hash is None:
            yield Violation(case.case_id, "has no perceptual hash, so near duplicates cannot be found")
        elif (near := index.near_duplicate(case, scan_hash)) is not None:
            duplicates.append(near.case_id)
        index.add(case, scan_hash)
        if across := [duplicate for duplicate in duplicates if split_of[duplicate] != case.split]:
            yield Violation(case.case_id, f"is in {case.split}, but also in {split_of[across[0]]} as {across[0]}")


def tumour_in_liver(context: AuditContext) -> Iterator[Violation]:
    """Tumour voxels are labelled as liver, or the liver is unknown there."""
    for entry in context.pool.entries:
        arrays = context.pool.arrays(entry).loaded()
        liver_n, tumour_n, liver_weight_n, _ = arrays.palette_n4.T
        is_outside_n = (tumour_n > 0) & (liver_n == 0) & (liver_weight_n > 0)
        if outside := int(np.count_nonzero(is_outside_n.take(arrays.code_zyx))):
            yield Violation(entry.case_id, f"{outside} tumour voxels are labelled as outside the liver")


def unknown_stays_unknown(context: AuditContext) -> Iterator[Violation]:
    """An unknown label is never listed as known, nor used as background in the liver or without a liver mask."""
    cases = {case.case_id: case for case in context.cohort}
    for entry in context.pool.entries:
        problems = [*_state_problems(entry, cases.get(entry.case_id))]
        problems += _weight_problems(entry, context.pool.arrays(entry).loaded())
        yield from (Violation(entry.case_id, problem) for problem in problems)


def _state_problems(entry: PoolEntry, case: Case | None) -> Iterator[str]:
    if case is None:
        yield "is not in the cohort, so its label states cannot be checked"
        return
    if entry.tumour.state not in (case.tumour_state, LabelState.UNKNOWN):
        yield f"the tumour is {case.tumour_state} in the cohort but {entry.tumour.state} in the pool"
    has_own_mask = entry.liver.mask_sha256 and (entry.liver.state == LabelState.PSEUDO or entry.liver.review)
    if entry.liver.state not in (case.liver_state, LabelState.UNKNOWN) and not has_own_mask:
        yield f"the liver is {case.liver_state} in the cohort but {entry.liver.state} in the pool"


def _weight_problems(entry: PoolEntry, arrays: PreprocessedArrays) -> Iterator[str]:
    code_zyx = arrays.code_zyx
    liver_zyx, tumour_zyx, liver_weight_zyx, tumour_weight_zyx = (c.take(code_zyx) for c in arrays.palette_n4.T)
    liver_unknown = entry.liver.state == LabelState.UNKNOWN
    if liver_unknown and (known := int(np.count_nonzero(liver_weight_zyx))):
        yield f"the liver is unknown, but {known} voxels have a weight"
    if entry.tumour.state == LabelState.UNKNOWN:
        may_hold_tumour = True if liver_unknown else liver_zyx > 0
        if known := int(np.count_nonzero((tumour_weight_zyx > 0) & may_hold_tumour & (tumour_zyx == 0))):
            yield f"the tumour is unknown, but {known} voxels of the liver are labelled as tumour-free"


AUDITS: dict[str, Audit] = {
    "arrays-unchanged": arrays_unchanged,
    "no-test-patient": no_test_patient,
    "no-teacher-leakage": no_teacher_leakage,
    "no-duplicate-across-splits": no_duplicate_across_splits,
    "tumour-in-liver": tumour_in_liver,
    "unknown-stays-unknown": unknown_stays_unknown,
}


def run_audits(context: AuditContext, names: Sequence[str] = ()) -> dict[str, list[Violation]]:
    """Violations by audit, for the named audits or all. Raises ParamsError if a name is unknown."""
    if unknown := sorted(set(names) - set(AUDITS)):
        raise ParamsError(f"unknown audit {unknown[0]!r}; known audits: {', '.join(AUDITS)}")
    return {name: [*audit(context)] for name, audit in AUDITS.items() if not names or name in names}


def audit_rule(name: str) -> str:
    """The rule of an audit, one sentence."""
    return (AUDITS[name].__doc__ or "").strip()
