"""Damaged artifacts: a stage names the file, and never uses or passes on what is in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from phantom_folder import SCAN, PhantomFolder, ingest

import hepar.stages.assemble_pool
import hepar.stages.evaluate
import hepar.stages.pseudo_label
import hepar.stages.register
import hepar.stages.train_liver
import hepar.stages.train_universal
from hepar.cases import Cohort, Modality
from hepar.errors import ArtifactError
from hepar.evaluation.report_folder import Report
from hepar.imaging.volumes import Geometry, read_image, to_array, to_image, write_image
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params
from hepar.pool.table import Pool
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.runtime.artifacts import MANIFEST, read_manifest
from hepar.runtime.verification import verify_artifact
from hepar.training.teacher_pool import teacher_cases


def flip_a_bit(path: Path) -> None:
    """Flip a bit in the middle of a file, and give it its old time back."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def empty_mask(path: Path) -> None:
    mask = read_image(path)
    write_image(to_image(np.zeros_like(to_array(mask)), Geometry.of(mask)), path)


DAMAGES = {
    "an emptied mask": (f"volumes/{SCAN}/tumour.nii.gz", empty_mask),
    "a mask of no bytes": (f"volumes/{SCAN}/tumour.nii.gz", lambda path: path.write_bytes(b"")),
    "a flipped bit": (f"volumes/{SCAN}/image.nii.gz", flip_a_bit),
    "a missing mask": (f"volumes/{SCAN}/tumour.nii.gz", Path.unlink),
    "a damaged table": (Cohort.TABLE, flip_a_bit),
    "damaged perceptual hashes": (Cohort.PERCEPTUAL_HASHES, flip_a_bit),
    "no manifest": (MANIFEST, Path.unlink),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_case_of_an_earlier_cohort_is_built_again(
    damage: str, source: PhantomFolder, tiny: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = ingest(source, tiny.ingest)
    before, (name, spoil) = read_manifest(cohort, Cohort.KIND), DAMAGES[damage]
    spoil(cohort / name)
    ingest(source, tiny.ingest)
    assert read_manifest(cohort, Cohort.KIND) == before
    verify_artifact(cohort, Cohort.KIND, deep=True)
    said = " ".join(capsys.readouterr().err.split())
    assert name in said
    assert "built again" in said or "nothing is linked from the earlier cohort" in said


def test_a_teacher_is_not_trained_on_a_damaged_mask(source: PhantomFolder, tiny: Params, tmp_path: Path) -> None:
    cohort = ingest(source, tiny.ingest)
    labelled = teacher_cases(Cohort.load(cohort), Modality.CT)[0]
    empty_mask(cohort / labelled.liver)
    model = tmp_path / "model"
    with pytest.raises(ArtifactError, match=f"^{cohort} is damaged: {labelled.liver} has "):
        hepar.stages.train_liver.run(
            cohort, model, Modality.CT, tiny.preprocessing, tiny.network, tiny.train_liver, "tests"
        )
    assert not model.exists()


@pytest.fixture
def run(by_kfp: Path, tmp_path: Path) -> Path:
    """A copy of the artifacts of a run, which a test may damage."""
    for name in ("cohort", "models", "pseudo", "pool", "report"):
        shutil.copytree(by_kfp / name, tmp_path / "run" / name)
    return tmp_path / "run"


@pytest.mark.slow
def test_pseudo_livers_are_not_predicted_from_a_damaged_scan(run: Path, tiny: Params) -> None:
    unlabelled = PseudoLabels(run / "pseudo").rows()[0]["case_id"]
    image = f"volumes/{unlabelled}/image.nii.gz"
    flip_a_bit(run / "cohort" / image)
    teachers = {modality: run / "models" / f"liver-{modality.lower()}" for modality in Modality}
    with pytest.raises(ArtifactError, match=f"cohort is damaged: {image} has changed since it was sealed"):
        hepar.stages.pseudo_label.run(run / "cohort", teachers, run / "new", tiny.pseudo_label)


@pytest.mark.slow
def test_a_damaged_pseudo_liver_does_not_enter_a_pool(run: Path, tiny: Params) -> None:
    labels = PseudoLabels(run / "pseudo")
    mask = labels.liver(labels.rows()[0]["case_id"])
    flip_a_bit(mask)
    with pytest.raises(ArtifactError, match=f"pseudo is damaged: {mask.relative_to(labels.folder)} has "):
        hepar.stages.assemble_pool.run(
            run / "cohort", run / "pseudo", run / "new", tiny.modalities, tiny.preprocessing, tiny.assemble_pool
        )
    assert not (run / "new").exists()


@pytest.mark.slow
def test_a_damaged_array_of_a_pool_is_not_trained_on(run: Path, tiny: Params) -> None:
    array = f"{Pool.load(run / 'pool').entries[0].arrays.folder}/image.b2nd"
    flip_a_bit(run / "pool" / array)
    with pytest.raises(ArtifactError, match=f"pool is damaged: {array} (has changed|cannot be read)"):
        hepar.stages.train_universal.run(
            run / "pool",
            {},
            run / "new",
            tiny.network,
            tiny.train_universal.model_copy(update={"warm_start": "none"}),
            "",
        )


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["models/universal/weights.pt", "report/metrics.json"])
def test_a_damaged_model_or_report_is_not_registered(run: Path, tiny: Params, damaged: str) -> None:
    flip_a_bit(run / damaged)
    folder, name = damaged.rsplit("/", 1)
    with pytest.raises(ArtifactError, match=f"{folder} is damaged: {name} has changed since it was sealed"):
        hepar.stages.register.run(
            run / "models" / "universal", run / "report", run / "new", tiny.register_model, "tests"
        )


@pytest.mark.slow
def test_a_damaged_model_or_scan_is_not_evaluated(run: Path, tiny: Params) -> None:
    weights = run / "models" / "universal" / ModelFolder.WEIGHTS
    whole = weights.read_bytes()
    flip_a_bit(weights)
    with pytest.raises(ArtifactError, match=r"universal is damaged: weights\.pt has changed"):
        hepar.stages.evaluate.run(run / "cohort", run / "models" / "universal", run / "new", tiny.evaluate)
    weights.write_bytes(whole)
    tested = Report(run / "report").cases()["case_id"].iloc[0]
    (run / "cohort" / "volumes" / tested / "image.nii.gz").write_bytes(b"")
    with pytest.raises(ArtifactError, match=f"cohort is damaged: volumes/{tested}/image.nii.gz has 0 bytes but had"):
        hepar.stages.evaluate.run(run / "cohort", run / "models" / "universal", run / "new", tiny.evaluate)
