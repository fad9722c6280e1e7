"""From pseudo-labels to a pool: stopped and gone on, linked where nothing changed, and described in a datasheet."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from toy_pool import Toy, toy_pool

from hepar.runtime.artifacts import read_manifest
from hepar.cases import Case, Cohort, LabelState, Modality, Split
from hepar.pool.datasheet import LIVER_COLOUR, PICTURES, TUMOUR_COLOUR, picture
from hepar.errors import ArtifactError, DataError
from hepar.inference.prediction import add_member, load_weights
from hepar.params import Params
from hepar.inference.patients import hash_patient, patients_seen, write_patients
from hepar.pool.table import Pool
from hepar.pseudo_labels.gates import Signals
from hepar.stages import assemble_pool, pseudo_label
from hepar.training.teacher_pool import fold_of, teaching_cases, without_fold

pytestmark = pytest.mark.slow


def teachers(run: Path) -> dict[Modality, Path]:
    return {Modality.CT: run / "models" / "liver-ct", Modality.MR: run / "models" / "liver-mr"}


def label(run: Path, pseudo: Path, params: Params) -> None:
    pseudo_label.run(run / "cohort", teachers(run), pseudo, params.pseudo_label)


def counted(monkeypatch: pytest.MonkeyPatch, fail_at: int = 0) -> list[str]:
    """The cases that are labelled from here on; the `fail_at`-th one fails."""
    labelled: list[str] = []
    whole: Callable[..., Any] = pseudo_label.label_case

    def labelling(case: Case, *others: Any) -> Any:
        labelled.append(case.case_id)
        if len(labelled) == fail_at:
            raise KeyboardInterrupt
        return whole(case, *others)

    monkeypatch.setattr(pseudo_label, "label_case", labelling)
    return labelled


def test_labelling_that_was_stopped_goes_on_after_its_last_case_to_the_same_bytes(
    by_kfp: Path, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pseudo = tmp_path / "pseudo"
    first = counted(monkeypatch, fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        label(by_kfp, pseudo, tiny)
    assert not pseudo.exists()
    monkeypatch.undo()
    later = counted(monkeypatch)
    label(by_kfp, pseudo, tiny)
    assert len(first) == 2
    assert later == first[1:]
    assert read_manifest(pseudo, "pseudo-labels").hash == read_manifest(by_kfp / "pseudo", "pseudo-labels").hash
    assert not list((tmp_path / ".checkpoints").glob("*"))


def test_other_gates_label_nothing_anew_but_other_predictions_do(
    by_kfp: Path, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted(monkeypatch, fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        label(by_kfp, tmp_path / "pseudo", tiny)
    monkeypatch.undo()
    strict = tiny.pseudo_label.gates.model_copy(update={"volume_ml": (1e5, 2e5)})
    changed = tiny.model_copy(update={"pseudo_label": tiny.pseudo_label.model_copy(update={"gates": strict})})
    labelled = counted(monkeypatch)
    label(by_kfp, tmp_path / "pseudo", changed)
    assert len(labelled) == 1
    assert set(pd.read_parquet(tmp_path / "pseudo" / "quality.parquet").gate) == {"reject"}


def test_the_table_tells_signals_teacher_and_mask(by_kfp: Path) -> None:
    table = pd.read_parquet(by_kfp / "pseudo" / "quality.parquet")
    files = read_manifest(by_kfp / "pseudo", "pseudo-labels").files
    assert set(Signals.names()) < set(table.columns)
    for row in table.itertuples():
        assert files[f"masks/{row.case_id}/liver.nii.gz"] == row.mask_sha256
        assert row.teacher == read_manifest(teachers(by_kfp)[Modality(str(row.modality))], "model").hash
        assert not row.teacher_saw_patient


def test_an_ensemble_votes_by_every_member(by_kfp: Path, tiny: Params, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(by_kfp / "models", run / "models")
    shutil.copytree(by_kfp / "cohort", run / "cohort")
    label(run, tmp_path / "alone", tiny)
    for folder in teachers(run).values():
        inverted = {name: -value for name, value in load_weights(folder).items()}
        add_member(folder, inverted, 1)
    label(run, tmp_path / "ensemble", tiny)
    tables = [pd.read_parquet(tmp_path / name / "quality.parquet") for name in ("alone", "ensemble")]
    assert (tables[1].agreement <= tables[0].agreement + 1e-9).all()
    assert list(tables[0].mask_sha256) != list(tables[1].mask_sha256)


def test_a_teacher_leaves_out_patients_of_whom_a_scan_waits(by_kfp: Path, case: Case) -> None:
    other = replace(case, case_id="b", patient_id="q")
    waiting = replace(case, case_id="c", liver_state=LabelState.UNKNOWN)
    of_mr = replace(waiting, case_id="d", patient_id="q", modality=Modality.MR)
    chosen = teaching_cases(Cohort(Path(), (case, other, waiting, of_mr)), Modality.CT)
    assert [case.case_id for case in chosen] == ["b"]  # the MR scan waits for another teacher
    seen = patients_seen(teachers(by_kfp)[Modality.CT])
    cohort = Cohort.load(by_kfp / "cohort")
    assert seen == {hash_patient(case.patient_id) for case in teaching_cases(cohort, Modality.CT)}


def test_folds_share_the_patients_and_leave_validation_alone(by_kfp: Path) -> None:
    pool = Pool.load(by_kfp / "pool")
    many = tuple(replace(pool.entries[0], patient_id=f"p{n // 2}", split=Split.TRAIN) for n in range(14))
    held = replace(pool.entries[0], patient_id="v", split=Split.VAL)
    fold = fold_of(many, 3)
    assert sorted(list(fold.values()).count(n) for n in range(3)) == [2, 2, 3]
    kept = without_fold(Pool(pool.folder, pool.plan, (*many, held)), fold, 1)
    assert {entry.patient_id for entry in kept.entries} == {name for name, n in fold.items() if n != 1} | {"v"}
    with pytest.raises(DataError, match=r"^leaving out fold 1 leaves no training patient"):
        without_fold(Pool(pool.folder, pool.plan, (*many[:2], held)), fold_of(many[:2], 2), 0)


def test_a_model_that_does_not_tell_whose_labels_it_saw_is_no_teacher(
    by_kfp: Path, tiny: Params, tmp_path: Path
) -> None:
    shutil.copytree(by_kfp / "models", tmp_path / "models")
    shutil.copytree(by_kfp / "cohort", tmp_path / "cohort")
    (tmp_path / "models" / "liver-ct" / "patients.json").unlink()
    with pytest.raises(ArtifactError, match="does not tell whose labels it has seen"):
        label(tmp_path, tmp_path / "pseudo", tiny)


def assemble(run: Path, pool: Path, params: Params) -> None:
    assemble_pool.run(run / "cohort", run / "pseudo", pool, params.preprocessing, params.assemble_pool)


def test_assembled_again_every_case_is_linked_and_the_hash_is_the_same(
    by_kfp: Path, tiny: Params, tmp_path: Path
) -> None:
    assemble(by_kfp, tmp_path / "pool", tiny)
    before = {path: path.stat().st_ino for path in (tmp_path / "pool" / "cases").rglob("*.b2nd")}
    first = read_manifest(tmp_path / "pool", "pool")
    assemble(by_kfp, tmp_path / "pool", tiny)
    assert {path: path.stat().st_ino for path in (tmp_path / "pool" / "cases").rglob("*.b2nd")} == before
    assert read_manifest(tmp_path / "pool", "pool") == first
    assert first.hash == read_manifest(by_kfp / "pool", "pool").hash


def test_the_datasheet_counts_what_is_known_and_shows_it(by_kfp: Path) -> None:
    pool = Pool.load(by_kfp / "pool")
    text = (by_kfp / "pool" / "README.md").read_text()
    assert f"{len(pool.entries)} cases of {len({e.patient_id for e in pool.entries})} patients" in text
    for entry in pool.entries:
        states = f"| {entry.liver_state} | {entry.tumour_state} |"
        assert states in text
    for heading in ("What is known", "Pseudo-livers", "Lesions", "Sources and licences", "Pictures"):
        assert f"## {heading}" in text
    shown = sorted((by_kfp / "pool" / PICTURES).iterdir())
    assert len(shown) == len({(e.modality, e.liver_state, e.tumour_state) for e in pool.entries if e.known_share > 0})
    for path in shown:
        with Image.open(path) as image:
            assert min(image.size) >= 240


def test_a_picture_shades_what_is_unknown_and_outlines_what_is_taught(tmp_path: Path) -> None:
    pool = toy_pool(tmp_path, [Toy("a"), Toy("b", tumour_state=LabelState.UNKNOWN)])
    known, unknown = (picture(pool.arrays(entry), entry, (1.0, 1.0)).astype(int) for entry in pool.entries)
    assert (known == TUMOUR_COLOUR).all(axis=2).any()
    assert not (unknown == TUMOUR_COLOUR).all(axis=2).any()
    assert (unknown == LIVER_COLOUR).all(axis=2).any()
    middle, corner = (unknown.shape[0] // 2 + 40, unknown.shape[1] // 2), (5, 5)
    assert unknown[middle][2] > unknown[middle][0] + 20  # blue: in the liver nobody knows
    assert unknown[corner][2] == unknown[corner][0]  # outside it is known that there is none
    assert known[middle][2] == known[middle][0]


def test_patients_are_remembered_by_hashes_alone(tmp_path: Path) -> None:
    write_patients(tmp_path, map(hash_patient, ["b", "a", "b"]))
    assert patients_seen(tmp_path) == {hash_patient("a"), hash_patient("b")}
    assert '"a"' not in (tmp_path / "patients.json").read_text()
