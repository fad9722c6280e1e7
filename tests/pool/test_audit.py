"""Each audit finds a pool that breaks its rule, and passes one that breaks none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import call
from toy_pool import Toy, toy_pool, with_columns

from hepar.cases import Case, Cohort, LabelState, Modality, Split
from hepar.errors import ParamsError
from hepar.inference.model_folder import ModelFolder, hash_patient
from hepar.ingest.near_duplicates import ScanIndex
from hepar.pool.arrays import PreprocessedArrays
from hepar.pool.audit import AUDITS, AuditContext, audit_rule, run_audits
from hepar.pool.table import Pool
from hepar.pool.targets import FULL
from hepar.runtime.artifacts import read_manifest, write_artifact

TOYS = [
    Toy("a"),
    Toy("b", tumour_state=LabelState.UNKNOWN, level=1.0),
    Toy("c", liver_state=LabelState.PSEUDO, level=2.0),
    Toy("d", liver_state=LabelState.UNKNOWN, level=3.0),
]


def cohort_of(folder: Path, pool: Pool, template: Case) -> Cohort:
    """A cohort with the cases of the pool and one test case, all different scans, and their perceptual hashes."""
    cases = [
        replace(
            template,
            case_id=e.case_id,
            patient_id=e.patient_id,
            split=e.split,
            voxels_sha256=e.case_id,
            liver_state=LabelState.UNKNOWN if e.liver.state == LabelState.PSEUDO else e.liver.state,
            tumour_state=e.tumour.state,
        )
        for e in pool.entries
    ]
    cases.append(replace(template, case_id="t", patient_id="t", split=Split.TEST, voxels_sha256="t"))
    index, rng = ScanIndex(), np.random.default_rng(1)
    for case in cases:
        index.add(case, rng.integers(-127, 128, (12, 16, 16)).astype(np.int8))
    index.save(folder / Cohort.PERCEPTUAL_HASHES)
    return Cohort(folder, tuple(cases))


@pytest.fixture
def context(tmp_path: Path, case: Case) -> AuditContext:
    pool = toy_pool(tmp_path, TOYS)
    context = AuditContext(pool, cohort_of(tmp_path, pool, case), {Modality.CT: tmp_path / "teacher"})
    return with_teacher(context, ["a", "b"])


def with_teacher(context: AuditContext, patients: list[str]) -> AuditContext:
    """The context with a teacher, trained on these patients, that made the pseudo-labels of the pool."""
    teacher = context.teachers[Modality.CT]
    with write_artifact(teacher, ModelFolder.KIND, {}) as folder:
        ModelFolder(folder).save_patients(map(hash_patient, patients))
    return with_entry(context, "c", teacher=read_manifest(teacher, ModelFolder.KIND).hash, liver_mask_sha256="drawn")


def found(context: AuditContext, name: str) -> list[tuple[str, str]]:
    return [(violation.case_id, violation.problem) for violation in run_audits(context, [name])[name]]


def with_entry(context: AuditContext, case_id: str, **columns: object) -> AuditContext:
    entries = (with_columns(e, **columns) if e.case_id == case_id else e for e in context.pool.entries)
    return replace(context, pool=replace(context.pool, entries=tuple(entries)))


def rewrite_labels(context: AuditContext, case_id: str, palette: list[list[int]]) -> None:
    """Replaces the palette of a case, and uses each of its rows for one voxel."""
    entry = next(entry for entry in context.pool.entries if entry.case_id == case_id)
    arrays = context.pool.arrays(entry).loaded()
    code_zyx = np.zeros_like(arrays.code_zyx)
    code_zyx[0, 0, : len(palette)] = range(len(palette))
    rewritten = PreprocessedArrays(arrays.image_zyx, code_zyx, np.array(palette, np.uint8))
    rewritten.save(context.pool.folder / entry.arrays.folder)


def test_a_correct_pool_passes_every_audit(context: AuditContext) -> None:
    assert run_audits(context) == {name: [] for name in AUDITS}


def test_a_test_patient_in_the_pool_is_found(context: AuditContext) -> None:
    assert found(with_entry(context, "a", patient_id="t"), "no-test-patient") == [
        ("a", "patient t belongs to the test split")
    ]
    assert found(with_entry(context, "b", split=Split.TEST), "no-test-patient")


def test_a_teacher_that_has_seen_the_patient_is_found(context: AuditContext) -> None:
    assert found(with_teacher(context, ["a", "c"]), "no-teacher-leakage") == [
        ("c", "the CT teacher has seen a label of patient c")
    ]
    assert found(replace(context, teachers={}), "no-teacher-leakage") == [
        ("c", "there is no CT teacher to check against")
    ]


def test_a_pseudo_label_of_another_teacher_is_found(context: AuditContext) -> None:
    (finding,) = found(with_entry(context, "c", teacher="f" * 64), "no-teacher-leakage")
    assert finding[0] == "c"
    assert finding[1].startswith("labelled by teacher ffffffffffff, but the CT teacher is ")


def test_a_scan_in_two_splits_is_found_by_its_voxels_and_by_its_perceptual_hash(context: AuditContext) -> None:
    cases = list(context.cohort)
    cases[-1] = replace(cases[-1], voxels_sha256=cases[0].voxels_sha256)
    same = replace(context, cohort=Cohort(context.cohort.folder, tuple(cases)))
    assert found(same, "no-duplicate-across-splits") == [("t", "is in test, but also in train as a")]

    with np.load(context.cohort.file(Cohort.PERCEPTUAL_HASHES)) as file:
        hashes = dict(zip(file["case_id"].tolist(), file["perceptual_hash"], strict=True))
    hashes["t"] = np.flip(hashes["b"].reshape(12, 16, 16), 1).ravel()  # mirrored
    np.savez(
        context.cohort.file(Cohort.PERCEPTUAL_HASHES),
        case_id=np.array(list(hashes)),
        perceptual_hash=np.stack(list(hashes.values())),
    )
    assert found(context, "no-duplicate-across-splits") == [("t", "is in test, but also in train as b")]


def test_without_perceptual_hashes_equal_voxels_are_still_found(context: AuditContext) -> None:
    cases = list(context.cohort)
    cases[1] = replace(cases[1], voxels_sha256=cases[0].voxels_sha256)  # in the same split: no violation,
    cases[-1] = replace(cases[-1], voxels_sha256=cases[0].voxels_sha256)  # which must not hide the one across splits
    context.cohort.file(Cohort.PERCEPTUAL_HASHES).unlink()
    without_hashes = replace(context, cohort=Cohort(context.cohort.folder, tuple(cases)))
    violations = found(without_hashes, "no-duplicate-across-splits")
    assert ("t", "is in test, but also in train as a") in violations
    without_hash = [case_id for case_id, problem in violations if problem.startswith("has no perceptual hash")]
    assert without_hash == ["a", "b", "c", "d", "t"]


def test_a_state_that_contradicts_the_cohort_is_found(context: AuditContext) -> None:
    (finding,) = found(with_entry(context, "b", tumour_state=LabelState.ABSENT), "unknown-stays-unknown")
    assert finding == ("b", "the tumour is unknown in the cohort but absent in the pool")
    listed_as_manual = with_entry(context, "c", liver_state=LabelState.MANUAL)
    assert ("c", "the liver is unknown in the cohort but manual in the pool") in found(
        listed_as_manual, "unknown-stays-unknown"
    )
    corrected = with_entry(context, "c", liver_state=LabelState.MANUAL, review="corrected by an expert, today")
    assert found(corrected, "unknown-stays-unknown") == []
    without_a = Cohort(context.cohort.folder, tuple(case for case in context.cohort if case.case_id != "a"))
    assert [case for case, _ in found(replace(context, cohort=without_a), "unknown-stays-unknown")] == ["a"]


def test_changed_damaged_and_missing_arrays_are_found(context: AuditContext) -> None:
    rewrite_labels(context, "a", [[0, 0, FULL, FULL]])
    (context.pool.folder / "b" / "labels.b2nd").write_bytes(b"damaged")
    (context.pool.folder / "d" / "image.b2nd").unlink()
    violations = found(context, "arrays-unchanged")
    assert violations == [(name, "the arrays were changed or damaged") for name in ("a", "b", "d")]


def test_a_tumour_labelled_as_outside_the_liver_is_found(context: AuditContext) -> None:
    rewrite_labels(context, "a", [[1, 0, FULL, FULL], [0, 1, FULL, FULL], [0, 1, 0, FULL]])
    assert found(context, "tumour-in-liver") == [("a", "1 tumour voxels are labelled as outside the liver")]


def test_an_unknown_tumour_labelled_as_absent_in_the_liver_is_found(context: AuditContext) -> None:
    rewrite_labels(context, "b", [[0, 0, FULL, FULL], [1, 0, FULL, 0], [1, 0, FULL, FULL]])
    assert found(context, "unknown-stays-unknown") == [
        ("b", "the tumour is unknown, but 1 voxels of the liver are labelled as tumour-free")
    ]


def test_an_unknown_liver_with_a_weight_is_found(context: AuditContext) -> None:
    rewrite_labels(context, "d", [[0, 0, 0, FULL], [0, 0, 7, FULL]])
    assert found(context, "unknown-stays-unknown") == [("d", "the liver is unknown, but 1 voxels have a weight")]


def test_an_unknown_audit_is_refused(context: AuditContext) -> None:
    with pytest.raises(ParamsError, match="unknown audit 'nothing'; known audits: arrays-unchanged, no-test-"):
        run_audits(context, ["nothing"])
    assert all(audit_rule(name).endswith(".") for name in AUDITS)


@pytest.mark.slow
def test_the_pool_of_a_run_passes_every_audit_of_the_command(by_kfp: Path, tmp_path: Path) -> None:
    done = call("hepar", "pool", "audit", cwd=by_kfp)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == list(AUDITS)
    cohort = Cohort.load(by_kfp / "cohort")
    with write_artifact(tmp_path / "held-out", Cohort.KIND, {}) as folder:
        Cohort(folder, tuple(replace(case, split=Split.TEST) for case in cohort)).save()
    other = ("--cohort", str(tmp_path / "held-out"))
    broken = call("hepar", "pool", "audit", "--only", "no-test-patient", *other, cwd=by_kfp)
    assert broken.returncode == 1
    assert broken.stderr.startswith("pool was made from cohort ")
    assert done.stderr == ""
    assert broken.stdout.startswith("no-test-patient: ")
    assert "belongs to the test split" in broken.stdout
