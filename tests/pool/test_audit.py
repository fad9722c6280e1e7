"""Each audit on a pool that breaks its rule alone, and on one that breaks none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import call
from toy_pool import Toy, toy_pool

from hepar.runtime.artifacts import read_manifest, writing
from hepar.pool.audit import AUDITS, Subject, audit, rule
from hepar.cases import Case, Cohort, LabelState, Modality, Split
from hepar.errors import ParamsError
from hepar.ingest.perceptual_hash import Seen
from hepar.inference.patients import hash_patient, write_patients
from hepar.pool.table import FULL, Pool, PreprocessedArrays

TOYS = [
    Toy("a"),
    Toy("b", tumour_state=LabelState.UNKNOWN, level=1.0),
    Toy("c", liver_state=LabelState.PSEUDO, level=2.0),
    Toy("d", liver_state=LabelState.UNKNOWN, level=3.0),
]


def cohort_of(folder: Path, pool: Pool, template: Case) -> Cohort:
    """A cohort of the pool's cases and one test case, each a scan of its own, with perceptual hashes."""
    cases = [
        replace(
            template,
            case_id=e.case_id,
            patient_id=e.patient_id,
            split=e.split,
            voxels_sha256=e.case_id,
            liver_state=LabelState.UNKNOWN if e.liver_state == LabelState.PSEUDO else e.liver_state,
            tumour_state=e.tumour_state,
        )
        for e in pool.entries
    ]
    cases.append(replace(template, case_id="t", patient_id="t", split=Split.TEST, voxels_sha256="t"))
    seen, rng = Seen(), np.random.default_rng(1)
    for case in cases:
        seen.add(case, rng.integers(-127, 128, (12, 16, 16)).astype(np.int8))
    seen.save(folder / "perceptual_hashes.npz")
    return Cohort(folder, tuple(cases))


@pytest.fixture
def subject(tmp_path: Path, case: Case) -> Subject:
    pool = toy_pool(tmp_path, TOYS)
    subject = Subject(pool, cohort_of(tmp_path, pool, case), {Modality.CT: tmp_path / "teacher"})
    return taught(subject, ["a", "b"])


def taught(subject: Subject, patients: list[str]) -> Subject:
    """The subject with a teacher of its pseudo-labels that saw labels of some patients."""
    teacher = subject.teachers[Modality.CT]
    with writing(teacher, "model", {}) as folder:
        write_patients(folder, map(hash_patient, patients))
    return with_entry(subject, "c", teacher=read_manifest(teacher, "model").hash, liver_origin="drawn")


def found(subject: Subject, name: str) -> list[tuple[str, str]]:
    return [(finding.case_id, finding.what) for finding in audit(subject, [name])[name]]


def with_entry(subject: Subject, case_id: str, **change: object) -> Subject:
    entries = tuple(replace(e, **change) if e.case_id == case_id else e for e in subject.pool.entries)  # type: ignore[arg-type]
    return replace(subject, pool=replace(subject.pool, entries=entries))


def rewritten(subject: Subject, case_id: str, palette: list[list[int]]) -> None:
    """Give a case another palette for its codes."""
    entry = next(entry for entry in subject.pool.entries if entry.case_id == case_id)
    arrays = subject.pool.arrays(entry).loaded()
    coded = np.zeros_like(arrays.code)
    coded[0, 0, : len(palette)] = range(len(palette))
    changed = PreprocessedArrays(arrays.image, coded, np.array(palette, np.uint8), arrays.darkest)
    changed.save(subject.pool.folder / entry.file)


def test_a_good_pool_breaks_no_rule(subject: Subject) -> None:
    assert audit(subject) == {name: [] for name in AUDITS}


def test_a_test_patient_in_the_pool_is_found(subject: Subject) -> None:
    assert found(with_entry(subject, "a", patient_id="t"), "no-test-patient") == [
        ("a", "patient t belongs to the test split")
    ]
    assert found(with_entry(subject, "b", split=Split.TEST), "no-test-patient")


def test_a_teacher_that_saw_its_patient_is_found(subject: Subject) -> None:
    assert found(taught(subject, ["a", "c"]), "teacher-unseen") == [("c", "the CT teacher saw a label of patient c")]
    assert found(replace(subject, teachers={}), "teacher-unseen") == [("c", "the CT teacher is not there to be asked")]


def test_another_teacher_is_not_asked_in_place_of_the_one_that_drew(subject: Subject) -> None:
    (finding,) = found(with_entry(subject, "c", teacher="f" * 64), "teacher-unseen")
    assert finding[0] == "c"
    assert finding[1].startswith("it is by teacher ffffffffffff, but ")


def test_a_scan_in_two_splits_is_found_by_its_voxels_and_by_its_looks(subject: Subject) -> None:
    cases = list(subject.cohort)
    cases[-1] = replace(cases[-1], voxels_sha256=cases[0].voxels_sha256)
    same = replace(subject, cohort=Cohort(subject.cohort.folder, tuple(cases)))
    assert found(same, "no-duplicate") == [("t", "is in test, and as a in train")]

    with np.load(subject.cohort.folder / "perceptual_hashes.npz") as file:
        prints = dict(zip(file["case_id"].tolist(), file["perceptual_hash"], strict=True))
    prints["t"] = np.flip(prints["b"].reshape(12, 16, 16), 1).ravel()  # mirrored
    np.savez(
        subject.cohort.folder / "perceptual_hashes.npz",
        case_id=np.array(list(prints)),
        perceptual_hash=np.stack(list(prints.values())),
    )
    assert found(subject, "no-duplicate") == [("t", "is in test, and as b in train")]


def test_scans_are_told_apart_by_their_voxels_even_without_perceptual_hashes(subject: Subject) -> None:
    cases = list(subject.cohort)
    cases[1] = replace(cases[1], voxels_sha256=cases[0].voxels_sha256)  # of one split: no duplicate across splits,
    cases[-1] = replace(cases[-1], voxels_sha256=cases[0].voxels_sha256)  # but not hiding one that is
    (subject.cohort.folder / "perceptual_hashes.npz").unlink()
    bare = replace(subject, cohort=Cohort(subject.cohort.folder, tuple(cases)))
    told = found(bare, "no-duplicate")
    assert ("t", "is in test, and as a in train") in told
    assert [case for case, what in told if what.startswith("has no perceptual hash")] == ["a", "b", "c", "d", "t"]


def test_a_state_that_the_cohort_does_not_bear_out_is_found(subject: Subject) -> None:
    (finding,) = found(with_entry(subject, "b", tumour_state=LabelState.ABSENT), "unknown-is-unknown")
    assert finding == ("b", "the tumour is unknown in the cohort, but absent here")
    called_manual = with_entry(subject, "c", liver_state=LabelState.MANUAL)
    assert ("c", "the liver is unknown in the cohort, but manual here") in found(called_manual, "unknown-is-unknown")
    redrawn = with_entry(subject, "c", liver_state=LabelState.MANUAL, review="corrected by an expert, today")
    assert found(redrawn, "unknown-is-unknown") == []
    without_a = Cohort(subject.cohort.folder, tuple(case for case in subject.cohort if case.case_id != "a"))
    assert [case for case, _ in found(replace(subject, cohort=without_a), "unknown-is-unknown")] == ["a"]


def test_arrays_that_were_changed_or_damaged_are_found(subject: Subject) -> None:
    rewritten(subject, "a", [[0, 0, FULL, FULL]])
    (subject.pool.folder / "b" / "labels.b2nd").write_bytes(b"damaged")
    (subject.pool.folder / "d" / "image.b2nd").unlink()
    told = found(subject, "as-assembled")
    assert told == [(name, "its arrays were changed or damaged since") for name in ("a", "b", "d")]


def test_a_tumour_that_is_taught_as_outside_the_liver_is_found(subject: Subject) -> None:
    rewritten(subject, "a", [[1, 0, FULL, FULL], [0, 1, FULL, FULL], [0, 1, 0, FULL]])
    assert found(subject, "tumour-in-liver") == [("a", "1 voxels of tumour are taught as outside the liver")]


def test_an_unknown_tumour_that_is_taught_as_absent_in_the_liver_is_found(subject: Subject) -> None:
    rewritten(subject, "b", [[0, 0, FULL, FULL], [1, 0, FULL, 0], [1, 0, FULL, FULL]])
    assert found(subject, "unknown-is-unknown") == [
        ("b", "the tumour is unknown, but 1 voxels of the liver are taught as free of it")
    ]


def test_an_unknown_liver_that_is_taught_as_anything_is_found(subject: Subject) -> None:
    rewritten(subject, "d", [[0, 0, 0, FULL], [0, 0, 7, FULL]])
    assert found(subject, "unknown-is-unknown") == [("d", "the liver is unknown, but 1 voxels are taught")]


def test_an_audit_that_is_none_is_refused(subject: Subject) -> None:
    with pytest.raises(ParamsError, match="there is no audit 'nothing', only as-assembled, no-test-patient, "):
        audit(subject, ["nothing"])
    assert all(rule(name).endswith(".") for name in AUDITS)


@pytest.mark.slow
def test_the_pool_of_a_run_passes_every_audit_and_the_command_says_so(by_kfp: Path, tmp_path: Path) -> None:
    done = call("hepar", "pool", "audit", cwd=by_kfp)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == list(AUDITS)
    cohort = Cohort.load(by_kfp / "cohort")
    with writing(tmp_path / "held-out", "cohort", {}) as folder:
        Cohort(folder, tuple(replace(case, split=Split.TEST) for case in cohort)).save()
    other = ("--cohort", str(tmp_path / "held-out"))
    broken = call("hepar", "pool", "audit", "--only", "no-test-patient", *other, cwd=by_kfp)
    assert broken.returncode == 1
    assert broken.stderr.startswith("pool was assembled from cohort ")
    assert done.stderr == ""
    assert broken.stdout.startswith("no-test-patient: ")
    assert "belongs to the test split" in broken.stdout
