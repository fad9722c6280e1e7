"""Every command of the README runs, stage by stage with each preset up to a promoted model."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml
from commands import Shell
from conftest import ROOT, made_once
from doc_blocks import blocks
from shrunk_params import write_shrunk_params
from watched_secrets import Watch

from hepar.cases import Cohort, Modality
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.params import load_params
from hepar.phantoms import write_phantoms
from hepar.pool.table import Pool
from hepar.registry.registration import Registration

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
OWN_PARAMS = "params/real-small.yaml"
CHAMPION = "models:/hepar-universal@champion"


@dataclass(frozen=True)
class Instead:
    """What runs in place of a command, and why; nothing if `command` is empty."""

    command: str
    reason: str


INSTEAD = {
    "make demo": Instead("", "takes ten minutes; the fixture `by_kfp` is the same run at a smaller size"),
    "make test": Instead("", "runs this test"),
    "make images": Instead("", "needs Docker"),
    "hepar run --runner docker --source scans --workdir runs/mine": Instead("", "needs Docker"),
    "hepar calibrate-gates --out params/trusted.yaml": Instead(
        "", "needs more patients; tests/planning/test_gate_calibration.py runs it"
    ),
    "hepar review pseudo": Instead("", "waits for a browser; tests/pseudo_labels/test_review_server.py has one"),
    "hepar serve --model runs/demo/models/universal": Instead(
        "", "runs until it is stopped; tests/service/test_page.py opens its page in a browser"
    ),
    "hepar listen http://localhost:8042 -o arrived --model runs/demo/models/universal": Instead(
        "", "needs Orthanc; tests/service/test_listening.py has one"
    ),
    "hepar score experts predictions --labels liver=1,tumour=2 --out scores": Instead(
        "hepar score report/masks report/masks --labels liver=1,tumour=2 --out scores", "there are no such folders"
    ),
    "export HEPAR_STORE=s3://bucket/pools": Instead("export HEPAR_STORE=remote", "needs S3"),
    "hepar pool diff OLD NEW": Instead(f"hepar pool diff {CHAMPION} pool", "OLD and NEW stand for versions"),
    "HEPAR_PARAMS=params/full.yaml HEPAR_IMAGE=registry.example.org/hepar@sha256:… make compile": Instead(
        "", "tests/cluster/test_compiled.py does the same"
    ),
    "kfp --endpoint URL run create -e EXPERIMENT -r RUN -f build/two_stage.yaml source=phantoms": Instead(
        "", "needs a cluster"
    ),
}


BLOCKS = blocks(ROOT / "README.md")
STAGES = BLOCKS["Stage by stage"]
RUN = BLOCKS["Your own scans"]


def run_block(shell: Shell, commands: list[str]) -> str:
    """Run a block, or what `INSTEAD` names; returns what it prints."""
    chosen = [INSTEAD[line].command if line in INSTEAD else line for line in commands]
    return "".join(shell.succeed(line) for line in chosen if line)


def workspace(folder: Path, phantom_source: Path) -> Shell:
    """A folder with small phantoms as `scans`, and the presets."""
    shutil.copytree(phantom_source, folder / "scans")
    shutil.copy(folder / "scans" / "phantom-ct-0000" / "image.nii.gz", folder / "scan.nii.gz")
    write_shrunk_params(folder)
    return Shell(folder)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, phantom_source: Path) -> Path:
    """A workspace after the commands of "Stage by stage"."""
    return made_once(tmp_path_factory, "readme", lambda folder: run_block(workspace(folder, phantom_source), STAGES))


@pytest.fixture
def shell(finished: Path, tmp_path: Path) -> Shell:
    shutil.copytree(finished, tmp_path / "work")
    return Shell(tmp_path / "work")


def test_only_commands_of_the_readme_are_replaced() -> None:
    assert set(INSTEAD) <= {line for commands in BLOCKS.values() for line in commands}


def test_every_block_is_run_by_a_test() -> None:
    run_here = {
        "Your own scans",
        "Stage by stage",
        "Settings for your cohort",
        "Pseudo-livers you can trust",
        "The pool",
        "Scores and comparisons",
    }
    left = {line for heading in BLOCKS.keys() - run_here - {"A trained model"} for line in BLOCKS[heading]}
    assert {line for line in left if line not in INSTEAD or INSTEAD[line].command} == set()


def test_stage_by_stage_ends_with_a_champion(shell: Shell) -> None:
    assert Registration.load(shell.folder / "registration") == Registration("hepar-universal", "1", "champion", ())
    assert shell.succeed("hepar promote 1") == "version 1 is the champion already; nothing changed\n"


@pytest.mark.parametrize("preset", ["params/demo.yaml", "params/real-small.yaml"])
def test_each_preset_trains_and_registers_up_to_a_promoted_model(preset: str, shell: Shell) -> None:
    """The stages before are the same for all presets of this size."""
    for place in ("models/universal", "report", "registration", "mlartifacts"):
        shutil.rmtree(shell.folder / place)
    (shell.folder / "mlflow.db").unlink()
    for line in STAGES[STAGES.index("hepar train-universal") :]:
        shell.succeed(f"{line} --params {preset}")
    params = load_params(ROOT / preset)
    name = params.register_model.model_name
    assert Registration.load(shell.folder / "registration") == Registration(name, "1", "champion", ())
    client = mlflow.MlflowClient(f"sqlite:///{shell.folder / 'mlflow.db'}")
    run = client.get_run(client.get_model_version(name, "1").run_id)
    assert client.get_experiment(run.info.experiment_id).name == params.experiment
    assert {"train/loss", "test/CT/liver_dice"} <= set(run.data.metrics)
    assert "champion" in shell.succeed(f"hepar promote 1 --params {preset}")


@pytest.mark.parametrize(
    "heading", ["Settings for your cohort", "Pseudo-livers you can trust", "The pool", "Scores and comparisons"]
)
def test_a_block_runs_after_the_stages(heading: str, shell: Shell) -> None:
    (shell.folder / "reviews").mkdir()
    (shell.folder / "reviews" / "decisions.jsonl").touch()  # a review without a decision
    shutil.copy(
        shell.folder / "params.yaml", shell.folder / "params" / "trusted.yaml"
    )  # what calibrate-gates would write
    run_block(shell, BLOCKS[heading])


@pytest.fixture(scope="session")
def own_scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of CT alone after the commands of "Your own scans"; the output and what leaked are in `seen.json`."""

    def run(folder: Path) -> None:
        table = write_phantoms(folder / "phantoms", cases=8, seed=11, size_zyx=(24, 40, 40))
        scans = pd.read_csv(table, dtype=str, keep_default_na=False)
        scans[scans.modality == "CT"].to_csv(table, index=False)
        shell = workspace(folder, folder / "phantoms")
        with (folder / OWN_PARAMS).open("r+") as stream:
            values = yaml.safe_load(stream)
            stream.seek(0)
            stream.truncate()
            yaml.safe_dump({**values, "modalities": ["CT"]}, stream)
        with Watch() as watch:
            shell.exported.update(watch.environment)
            shown = run_block(shell, RUN)
        (folder / "seen.json").write_text(json.dumps([shown, watch.found_in(folder, shown)]))

    return made_once(tmp_path_factory, "own-scans", run)


def test_the_whole_pipeline_runs_on_own_scans_and_reveals_no_secret(own_scans: Path) -> None:
    shown, leaked = json.loads((own_scans / "seen.json").read_text())
    assert "hepar-real-small version 1, champion" in shown
    assert (own_scans / "runs" / "mine" / "run.log").is_file()
    assert leaked == []


def test_a_cohort_of_ct_alone_becomes_a_model_that_refuses_mr(own_scans: Path, tmp_path: Path) -> None:
    """No MR teacher, and every stage up to the registered model."""
    shell, run = Shell(own_scans), own_scans / "runs" / "mine"
    refused = shell.run(f"hepar ingest --source scans --params params.yaml --cohort {tmp_path / 'cohort'}")
    assert refused.code == 2
    assert "the cohort has no MR case, but modalities is CT, MR: each needs a liver teacher" in refused.stderr

    assert Cohort.load(run / "cohort").modalities == (Modality.CT,)
    assert (run / "models" / "liver-mr" / ModelFolder.NOT_TRAINED).read_text() == "the cohort has no MR scan\n"
    assert {entry.modality for entry in Pool.load(run / "pool").entries} == {Modality.CT}
    assert ModelFolder(run / "models" / "universal").load_spec().modalities == (Modality.CT,)
    assert set(Report.load(run / "report").metrics()) == {"CT"}
    assert Registration.load(run / "registration").version == "1"

    Shell(run).succeed("hepar pool audit")

    for modality in ("", " --modality MR"):
        scan = f"phantoms/phantom-mr-0001/image.nii.gz --out {tmp_path / 'labels.nii.gz'}"
        predicted = shell.run(f"hepar predict {scan} --model {run / 'models' / 'universal'}{modality}")
        assert predicted.code == 2
        assert predicted.stderr.strip() == "hepar: the scan is MR, but the model was trained on CT only"
        assert not (tmp_path / "labels.nii.gz").exists()


def test_a_model_of_the_demo_predicts_and_is_promoted(by_kfp: Path, shell: Shell) -> None:
    demo = shell.folder / "runs" / "demo"
    shutil.copytree(by_kfp, demo)
    shutil.rmtree(demo / "registration")
    # the run was recorded in the experiment of the tiny preset; the demo registers it under its own name
    (demo / "demo.yaml").symlink_to(shell.folder / "params" / "demo.yaml")
    Shell(demo).succeed("hepar register --params demo.yaml")
    client = mlflow.MlflowClient(f"sqlite:///{demo / 'mlflow.db'}")
    client.delete_registered_model_alias("hepar-demo", "champion")  # it was one at once; the block makes it one
    printed = run_block(shell, BLOCKS["A trained model"])
    assert "liver_ml" in printed
    assert "version 1: champion" in printed
    assert str(client.get_model_version_by_alias("hepar-demo", "champion").version) == "1"
