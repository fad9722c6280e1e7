"""The whole pipeline at its smallest: kfp.local, `dvc repro` and single stages give the same numbers."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml
from conftest import BIN, ROOT, TINY, call, environment, made_once, succeed

from hepar.cases import Cohort, Split
from hepar.errors import ArtifactError, DataError, HeparError, StorageError
from hepar.evaluation.report_folder import Report
from hepar.imaging.volumes import read_image, write_image
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params, TrainUniversalParams, dump_params, load_params, write_preset
from hepar.pool.table import Pool
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.registry.model_registry import RegisteredModel
from hepar.registry.registration import Registration
from hepar.registry.tracking import connect
from hepar.runtime.artifacts import dvc_version, read_any_manifest, read_manifest, write_artifact
from hepar.runtime.csv_cells import frame_to_csv
from hepar.stages import train_universal
from pipelines.compare import COMPARED
from pipelines.local import run_in_subprocesses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def by_dvc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC workspace after `dvc repro`: the repository's own dvc.yaml, and the tiny preset as its params.yaml."""

    def repro(workspace: Path) -> None:
        shutil.copy(ROOT / "dvc.yaml", workspace)
        shutil.copy(ROOT / ".dvcignore", workspace)
        shutil.copytree(ROOT / "hepar", workspace / "hepar", ignore=shutil.ignore_patterns("__pycache__"))
        (workspace / "params.yaml").write_text(yaml.safe_dump(dump_params(load_params(TINY))))
        succeed("dvc", "init", "--no-scm", "--quiet", cwd=workspace)
        succeed("dvc", "repro", cwd=workspace)

    return made_once(tmp_path_factory, "dvc", repro)


def metrics(run: Path) -> Mapping[str, object]:
    return Report(run / "report").metrics()


def hashes(run: Path) -> dict[str, str]:
    return {place: read_manifest(run / place, kind).hash for place, kind in COMPARED.items()}


def test_a_run_ends_with_a_report_and_a_registered_model(by_kfp: Path) -> None:
    found = Report.load(by_kfp / "report").metrics()
    assert set(found) == {"CT", "MR"}
    for modality in found.values():
        for structure in ("liver", "tumour"):
            assert {"mean", "ci95"} <= set(modality[structure]["dice"])
    page = Report(by_kfp / "report").page.read_text()
    assert "<html" in page
    assert "http://" not in page.replace("http://www.w3.org", "")  # the page loads nothing from the network
    screen = (by_kfp / "screen.txt").read_text()
    for fact in ("liver Dice", "tumour Dice", "lesion F1", "hepar-tiny version 1", "champion", "evaluate, s"):
        assert fact in screen


def test_no_test_patient_is_in_the_pool(by_kfp: Path) -> None:
    tested = {case.patient_id for case in Cohort.load(by_kfp / "cohort") if case.split == Split.TEST}
    pooled = {entry.patient_id for entry in Pool.load(by_kfp / "pool").entries}
    labelled = {row["case_id"] for row in PseudoLabels(by_kfp / "pseudo").rows()}
    assert tested
    assert pooled
    assert not tested & pooled
    assert not labelled & {case.case_id for case in Cohort.load(by_kfp / "cohort") if case.split == Split.TEST}


def test_the_registered_model_predicts_from_a_path(by_kfp: Path, tmp_path: Path) -> None:
    case = next(case for case in Cohort.load(by_kfp / "cohort") if case.split == Split.TEST)
    script = (
        "import mlflow, sys, json\n"
        f"mlflow.set_tracking_uri('sqlite:///{by_kfp / 'mlflow.db'}')\n"
        "model = mlflow.pyfunc.load_model('models:/hepar-tiny@champion')\n"
        "found = model.predict(sys.argv[1])[0]\n"
        "written = model.predict([sys.argv[1]], params={'output': sys.argv[2]})[0]\n"
        "settings = dict(model.model_config)\n"
        "values = [found['labels'].shape, found['modality'], found['liver_ml'], written['mask'], settings]\n"
        "print(json.dumps(values))\n"
    )
    image = by_kfp / "cohort" / case.image
    shown = succeed(sys.executable, "-c", script, str(image), str(tmp_path / "masks"), cwd=by_kfp.parent)
    shape, modality, liver_ml, mask, settings = json.loads(shown.strip().splitlines()[-1])
    assert settings == Report(by_kfp / "report").prediction_settings()
    assert set(settings) == set(Report.SETTINGS)
    assert tuple(shape) == case.size
    assert modality == case.modality
    assert liver_ml >= 0
    assert read_image(Path(mask)).GetSize() == case.size[::-1]


def test_the_registry_records_the_lineage_of_a_version(by_kfp: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{by_kfp / 'mlflow.db'}")
    version = client.get_model_version_by_alias("hepar-tiny", "champion")
    assert version.tags["hepar.pool"] == read_manifest(by_kfp / "pool", Pool.KIND).hash
    assert version.tags["hepar.pool_version"] == dvc_version(by_kfp / "pool")
    assert version.tags["hepar.model"] == read_manifest(by_kfp / "models" / "universal", ModelFolder.KIND).hash
    run = client.get_run(version.run_id)
    assert run.data.params["training.seed"] == "1"
    assert len(client.get_metric_history(version.run_id, "train/loss")) > 1


def test_lineage_is_complete_with_the_folders_of_a_run_and_from_its_registry_alone(
    by_kfp: Path, tmp_path: Path
) -> None:
    uri = f"sqlite:///{by_kfp / 'mlflow.db'}"
    ask = ("hepar", "lineage", "models:/hepar-tiny@champion", "--json")
    alone = json.loads(succeed(*ask, cwd=tmp_path, MLFLOW_TRACKING_URI=uri))
    here = json.loads(succeed("hepar", "lineage", str(by_kfp), "--json", cwd=tmp_path))
    parents = [{node["key"]: node["parents"] for node in found["nodes"]} for found in (here, alone)]
    assert parents[0] == parents[1]
    made = [by_kfp / place for place in ("cohort", "models/liver-ct", "models/liver-mr", "pseudo", "pool", "report")]
    made.append(by_kfp / "models" / "universal")
    assert parents[0].keys() - {here["root"]} == {read_any_manifest(folder).hash for folder in made}
    assert {node["state"] for node in here["nodes"]} == {"here"}
    states = {node["kind"]: node["state"] for node in alone["nodes"] if node["kind"] != ModelFolder.KIND}
    gone = "gone, but recorded"
    assert states == {
        "registered version": "here",
        "report": "here",
        "pool": gone,
        "cohort": gone,
        "pseudo-labels": gone,
    }
    (cohort,) = (node for node in alone["nodes"] if node["kind"] == Cohort.KIND)
    assert [case["image_sha256"] for case in cohort["cases"]] == [
        case.image_sha256 for case in Cohort.load(by_kfp / "cohort")
    ]


def test_the_champions_own_model_with_another_report_stays_challenger(by_kfp: Path, tmp_path: Path) -> None:
    shutil.copytree(by_kfp, tmp_path / "run")
    run = tmp_path / "run"
    uri = f"sqlite:///{run / 'mlflow.db'}"
    worse = Report(run / "report").cases()
    worse["liver_dice"] = -1.0  # below every floor
    parents = read_manifest(run / "report", Report.KIND).parents
    with write_artifact(run / "report", Report.KIND, parents) as report:
        shutil.copytree(by_kfp / "report", report, dirs_exist_ok=True)
        (report / Report.CASES).write_text(frame_to_csv(worse))
    succeed("hepar", "register", "--params", str(TINY), cwd=run, MLFLOW_TRACKING_URI=uri)
    result = Registration.load(run / "registration")
    assert (result.version, result.alias) == ("2", "challenger")
    assert result.reasons == ("version 1, the champion, is the same model",)


def test_a_full_disk_ends_register_with_one_sentence(by_kfp: Path, tmp_path: Path) -> None:
    shutil.copytree(by_kfp, tmp_path / "run", ignore=shutil.ignore_patterns("registration", ".*"))
    another = tmp_path / "run" / "another.yaml"  # under another name there is something to register
    another.write_text(f"extends: {TINY}\nregister: {{model_name: another}}\n")
    script = f"ulimit -f 100; exec hepar register --params {another}"  # KiB; the database is larger
    done = call("bash", "-c", script, cwd=tmp_path / "run")
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("register:")]
    assert line.startswith("hepar: MLflow at sqlite:///mlflow.db (MLFLOW_TRACKING_URI) fails: ")
    assert not (tmp_path / "run" / "registration").exists()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    assert [str(version.version) for version in client.search_model_versions("name='hepar-tiny'")] == ["1"]
    assert client.search_model_versions("name='another'") == []


def test_an_unreachable_registry_is_not_taken_for_an_empty_one(
    by_kfp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(by_kfp / "mlflow.db", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    server = connect()
    registered = RegisteredModel(server, "hepar-tiny")
    assert RegisteredModel(server, "nobody").version_by_alias("champion") is None
    assert registered.version_by_alias("nobody") is None
    with pytest.raises(DataError, match="has no version 99"):
        registered.version("99")

    def broken(*args: object, **others: object) -> str:
        raise mlflow.MlflowException("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.artifacts, "download_artifacts", broken)
        with pytest.raises(StorageError, match=r"^version 1 of hepar-tiny: its report cannot be read from "):
            registered.version_by_alias("champion")
    monkeypatch.setattr(mlflow.MlflowClient, "get_model_version_by_alias", broken)
    with pytest.raises(StorageError, match=r"does not answer: out of order$"):
        registered.version_by_alias("champion")


def test_a_training_starts_from_a_registered_model(
    by_kfp: Path, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{by_kfp / 'mlflow.db'}")
    training = tiny.train_universal.training.model_copy(update={"steps": 1})
    params = TrainUniversalParams(warm_start="models:/hepar-tiny@champion", training=training)
    train_universal.run(by_kfp / "pool", {}, tmp_path / "model", tiny.network, params, "tests")
    origin = ModelFolder(tmp_path / "model").load_spec().origin
    assert origin["warm start"] == read_manifest(by_kfp / "models" / "universal", ModelFolder.KIND).hash
    nobody = params.model_copy(update={"warm_start": "models:/nobody@champion"})
    with pytest.raises(ArtifactError, match=r"^models:/nobody@champion cannot be fetched from "):
        train_universal.run(by_kfp / "pool", {}, tmp_path / "other", tiny.network, nobody, "tests")


def test_dvc_and_kfp_give_the_same_artifacts(by_kfp: Path, by_dvc: Path) -> None:
    assert hashes(by_dvc) == hashes(by_kfp)
    assert metrics(by_dvc) == metrics(by_kfp)


def test_the_command_line_gives_the_same_pool(by_kfp: Path, tmp_path: Path) -> None:
    for name in ("cohort", "pseudo"):
        shutil.copytree(by_kfp / name, tmp_path / name)
    succeed("hepar", "assemble-pool", "--params", str(TINY), cwd=tmp_path)
    assert read_manifest(tmp_path / "pool", Pool.KIND).hash == hashes(by_kfp)["pool"]


def test_a_second_repro_only_lists_the_source(by_dvc: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = succeed("dvc", "repro", cwd=by_dvc)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10  # seconds; 5 on a quiet machine
    assert re.findall("Running stage '(.*)'", shown) == ["list-source"]
    assert shown.count("didn't change, skipping") == 8  # the seven stages, of which one trains a teacher per modality


def test_a_changed_or_removed_scan_makes_repro_run(by_dvc: Path, phantom_source: Path, tmp_path: Path) -> None:
    """The source is one key of params.yaml; no command is edited."""
    scans = tmp_path / "scans"
    shutil.copytree(phantom_source, scans)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(by_dvc / name, tmp_path)
    shutil.copytree(by_dvc / "hepar", tmp_path / "hepar")
    values = yaml.safe_load((by_dvc / "params.yaml").read_text()) | {"source": "scans"}
    values["ingest"]["max_refused_share"] = 1.0
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    succeed("dvc", "init", "--no-scm", "--quiet", cwd=tmp_path)

    def ran() -> list[str]:
        return re.findall("Running stage '(.*)'", succeed("dvc", "repro", "ingest", cwd=tmp_path))

    assert ran() == ["list-source", "ingest"]
    assert ran() == ["list-source"]
    table = pd.read_csv(scans / "cohort.csv", dtype=str, keep_default_na=False)
    path = scans / str(table.image[0])
    volume = read_image(path)
    volume[0, 0, 0] = volume[0, 0, 0] + 1
    write_image(volume, path)
    assert ran() == ["list-source", "ingest"]
    (scans / str(table.image.iloc[-1])).unlink()  # of the training split, so that test cases remain
    assert ran() == ["list-source", "ingest"]
    assert len(Cohort.load(tmp_path / "cohort")) == len(table) - 1


def test_the_next_repro_links_the_cases_that_have_not_changed(by_dvc: Path, tmp_path: Path) -> None:
    shutil.copytree(by_dvc, tmp_path / "run", symlinks=True)
    run = tmp_path / "run"
    values = yaml.safe_load((run / "params.yaml").read_text())
    values["ingest"]["phantoms"]["cases"] += 2
    (run / "params.yaml").write_text(yaml.safe_dump(values))
    before = {path: path.stat().st_ino for path in sorted((run / "cohort" / Cohort.VOLUMES).rglob("*.nii.gz"))}
    succeed("dvc", "repro", "ingest", cwd=run)
    after = {path: path.stat().st_ino for path in sorted((run / "cohort" / Cohort.VOLUMES).rglob("*.nii.gz"))}
    assert len(after) > len(before)
    assert {path: after[path] for path in before} == before


def test_a_killed_training_leaves_no_model_and_resumes(by_kfp: Path, tmp_path: Path) -> None:
    """SIGKILL after the first checkpoint; the next run resumes from it and ends with the same weights."""
    shutil.copytree(by_kfp / "cohort", tmp_path / "cohort")
    command = ["hepar", "train-liver", "--modality", "CT", "--params", str(TINY)]
    victim = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
    model = tmp_path / "models" / "liver-ct"
    deadline = time.monotonic() + 120
    while (
        not list(model.parent.glob(".checkpoints/*/checkpoint.pt"))
        and victim.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL, "the training ended before it was killed"
    assert not model.exists()
    succeed(*command, cwd=tmp_path)
    uninterrupted = by_kfp / "models" / "liver-ct"
    assert read_manifest(model, ModelFolder.KIND).hash == read_manifest(uninterrupted, ModelFolder.KIND).hash
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_a_stage_that_refuses_its_input_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "cohort.csv").write_text("case_id,patient_id,modality,image\n")
    done = call(
        "hepar", "run", "--source", str(tmp_path / "empty"), "--params", str(TINY), "--workdir", "run", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "hepar: ingest:" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "run" / "cohort").exists()


def test_a_working_directory_that_cannot_be_created_is_named(tiny: Params, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HeparError, match=r"^the working directory .*/file/run cannot be created: Not a directory$"):
        run_in_subprocesses(tiny, tmp_path / "file" / "run", "")


@pytest.mark.slow
def test_sigterm_stops_a_run_with_its_stages_and_the_message_tells_how_to_resume(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    write_preset(own, TINY, {"train_liver.training.steps": 100_000}, "an endless training")
    command = [str(BIN / "hepar"), "run", "--params", str(own), "--workdir", str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment()) as run:
        try:
            wait_for_training(tmp_path / "run" / "progress", run)
            run.send_signal(signal.SIGTERM)
            _, message = run.communicate(timeout=120)
        finally:
            run.kill()
    assert run.returncode == os.EX_TEMPFAIL, message
    assert re.search(
        r"train-liver-(CT|MR): stopped by SIGTERM at step \d+, which is saved: run again to resume", message
    )
    assert list((tmp_path / "run").rglob("checkpoint.pt"))
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(p)]
    assert left == []


def wait_for_training(status_folder: Path, run: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not any(json.loads(path.read_text())["done"] > 3 for path in status_folder.glob("train-liver-*.json")):
        assert run.poll() is None
        assert time.monotonic() < end
        time.sleep(0.2)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""
