"""A disk that gets full at any moment of a stage: one sentence, nothing half-written, and a whole result later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import BIN, call
from full_disk import SmallDisk
from phantom_folder import PhantomFolder
from toy_case import box, volume
from toy_model import toy_spec, toy_weights, write_model

import hepar.stages.assemble_pool
import hepar.stages.evaluate
import hepar.stages.ingest
import hepar.stages.pseudo_label
import hepar.stages.register
from hepar.cases import Cohort, Modality
from hepar.evaluation.report_folder import Report
from hepar.imaging.volumes import read_image, to_array, write_image
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params
from hepar.pool.table import Pool
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.registry.registration import Registration
from hepar.runtime.artifacts import read_manifest, write_artifact
from hepar.runtime.verification import verify_artifact

SHARES = (0.0, 0.25, 0.5, 0.75, 0.95)  # of the room that the result takes


def room_kib(folder: Path, disk: SmallDisk) -> float:
    """The room that a result takes on a disk, or its largest file if there is only a limit on files."""
    sizes = [path.stat().st_size / 1024 for path in folder.rglob("*") if path.is_file()]
    return sum(sizes) if disk.mounted else max(sizes)


def check_at_any_moment(disk: SmallDisk, make: Callable[[Path], None], kind: str, folder: Path, like: Path) -> None:
    """`make` fails while the disk has less room than the result `like` takes, and then writes it whole to `folder`."""
    failed = 0
    for share in SHARES:
        error = disk.outcome(share * room_kib(like, disk), lambda: make(folder))
        if not error:
            break
        failed += 1
        assert error.startswith(str(disk.folder))
        assert [name for name in disk.left_behind() if not name.startswith(".checkpoints")] == []
    else:
        make(folder)
    assert failed > 1
    assert verify_artifact(folder, kind, deep=True).hash == read_manifest(like, kind).hash


def test_ingest(disk: SmallDisk, source: PhantomFolder, tiny: Params, tmp_path: Path) -> None:
    def ingest(cohort: Path) -> None:
        hepar.stages.ingest.run(str(source.folder), cohort, tiny.ingest, tiny.modalities)

    ingest(tmp_path / "cohort")
    check_at_any_moment(disk, ingest, Cohort.KIND, disk.folder / "cohort", tmp_path / "cohort")


def test_predict(disk: SmallDisk, tiny: Params, tmp_path: Path) -> None:
    write_model(tmp_path / "model", tiny)
    write_image(volume((box(3, 13) * 100 - 40).astype(np.int16)), tmp_path / "scan.nii.gz")
    labels = disk.folder / "labels.nii.gz"
    program = str(BIN / "hepar")  # not a fork, which would not take over a limit on the size of files
    command = (program, "predict", "scan.nii.gz", "--out", str(labels), "--model", "model", "--modality", "ct")
    with disk.room(0):
        done = call(*command, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"hepar: {labels} cannot be written: ")
    assert "Traceback" not in done.stderr
    assert disk.left_behind() == []
    assert call(*command, cwd=tmp_path).returncode == 0
    assert to_array(read_image(labels)).shape == (16, 16, 16)


def test_weights(disk: SmallDisk, tiny: Params, tmp_path: Path) -> None:
    weights = toy_weights(tiny)

    def save(model: Path) -> None:
        with write_artifact(model, ModelFolder.KIND, {}) as folder:
            ModelFolder(folder).save(weights, toy_spec(tiny.network))

    save(tmp_path / "model")
    check_at_any_moment(disk, save, ModelFolder.KIND, disk.folder / "model", tmp_path / "model")


@pytest.mark.slow
def test_pseudo_labels(disk: SmallDisk, by_kfp: Path, tiny: Params) -> None:
    teachers = {Modality.CT: by_kfp / "models" / "liver-ct", Modality.MR: by_kfp / "models" / "liver-mr"}

    def label(pseudo: Path) -> None:
        hepar.stages.pseudo_label.run(by_kfp / "cohort", teachers, pseudo, tiny.pseudo_label)

    check_at_any_moment(disk, label, PseudoLabels.KIND, disk.folder / "pseudo", by_kfp / "pseudo")


@pytest.mark.slow
def test_pool(disk: SmallDisk, by_kfp: Path, tiny: Params) -> None:
    def assemble(pool: Path) -> None:
        cohort, pseudo = by_kfp / "cohort", by_kfp / "pseudo"
        hepar.stages.assemble_pool.run(cohort, pseudo, pool, tiny.modalities, tiny.preprocessing, tiny.assemble_pool)

    check_at_any_moment(disk, assemble, Pool.KIND, disk.folder / "pool", by_kfp / "pool")


@pytest.mark.slow
def test_report(disk: SmallDisk, by_kfp: Path, tiny: Params) -> None:
    def evaluate(report: Path) -> None:
        hepar.stages.evaluate.run(by_kfp / "cohort", by_kfp / "models" / "universal", report, tiny.evaluate)

    check_at_any_moment(disk, evaluate, Report.KIND, disk.folder / "report", by_kfp / "report")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*inferred as AnyType")  # MLflow, of a type of its own
def test_registration(disk: SmallDisk, by_kfp: Path, tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    registration = disk.folder / "registration"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk.folder / 'mlflow.db'}")

    def register() -> None:
        model, report = by_kfp / "models" / "universal", by_kfp / "report"
        hepar.stages.register.run(model, report, registration, tiny.register_model, "tests")

    failed = 0
    for kib in (0, 64, 512, 1200, 1600):
        if disk.outcome(kib, register):
            failed += 1
            assert not registration.exists()
    register()
    assert failed > 1
    assert Registration.load(registration).name == tiny.register_model.model_name
