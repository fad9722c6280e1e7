"""The command line: errors as one sentence, help for every command, cases as tables."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import BIN, call
from typer.main import get_command
from typer.testing import CliRunner

import hepar.stages.ingest
from hepar import __version__
from hepar.cli.main import app, errors_as_sentences, main
from hepar.params import Params, dump_params, load_params

COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]
STAGES = {"ingest", "train-liver", "pseudo-label", "assemble-pool", "train-universal", "evaluate", "register", "run"}


@pytest.fixture(scope="module")
def cohort(phantom_source: Path, tiny: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "cohort"
    hepar.stages.ingest.run(str(phantom_source), folder, tiny.ingest, tiny.modalities)
    return folder


@pytest.fixture
def params_file(tmp_path: Path, tiny: Params) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(dump_params(tiny)))
    return path


def is_one_sentence(ended: subprocess.CompletedProcess[str]) -> bool:
    """Whether a command ended with an error that the user can fix."""
    lines = ended.stderr.splitlines()
    return ended.returncode == 2 and len(lines) == 1 and lines[0].startswith("hepar: ") and not ended.stdout


def test_an_unknown_key_is_named_in_one_sentence(tmp_path: Path, params_file: Path) -> None:
    values = yaml.safe_load(params_file.read_text())
    values["evaluate"]["overlaps"] = 0.5
    params_file.write_text(yaml.safe_dump(values))
    ended = call("hepar", "ingest", "--params", "own.yaml", cwd=tmp_path)
    assert is_one_sentence(ended), ended.stderr
    assert ended.stderr == "hepar: own.yaml: unknown key evaluate.overlaps\n"
    assert not (tmp_path / "cohort").exists()


def test_an_empty_source_is_named_in_one_sentence(tmp_path: Path, params_file: Path) -> None:
    (tmp_path / "empty.csv").write_text("case_id,modality,image,liver_state,tumour_state\n")
    ended = call("hepar", "ingest", "--source", "empty.csv", "--params", str(params_file), cwd=tmp_path)
    assert is_one_sentence(ended), ended.stderr
    assert ended.stderr == "hepar: empty.csv lists no cases\n"
    assert not (tmp_path / "cohort").exists()


def test_the_installed_command_lists_all_commands(tmp_path: Path) -> None:
    ended = call(str(BIN / "hepar"), "--help", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert all(command in ended.stdout for command in COMMANDS)


def test_every_stage_is_a_command() -> None:
    assert set(COMMANDS) >= STAGES


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_page(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"{command} [OPTIONS]" in result.output


def test_the_version_is_printed() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"hepar {__version__}\n"


def test_cases_are_printed_as_csv(cohort: Path) -> None:
    ended = call("hepar", "cases", "cohort", "--format", "csv", cwd=cohort.parent)
    assert (ended.returncode, ended.stderr) == (0, "")
    rows = list(csv.DictReader(io.StringIO(ended.stdout)))
    assert len(rows) == 8
    assert rows[0]["case_id"] == "phantom-ct-0000"
    assert (rows[0]["split"], rows[0]["size"], rows[0]["refused"]) == ("test", "40×40×24", "")


def test_cases_are_printed_as_json_that_agrees_with_the_csv(cohort: Path) -> None:
    printed = [CliRunner().invoke(app, ["cases", str(cohort), "--format", kind]).output for kind in ("csv", "json")]
    assert json.loads(printed[1]) == list(csv.DictReader(io.StringIO(printed[0])))


def test_cases_are_printed_as_a_table(cohort: Path) -> None:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["cases", str(cohort)])
    assert result.exit_code == 0
    assert result.output.count("phantom-mr-") == 4
    assert "\n8 cases (" in result.output
    assert result.output.endswith(", 0 refused\n")


def test_printed_params_are_a_complete_params_file(tmp_path: Path, params_file: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("extends: own.yaml\nevaluate: {overlap: 0.125}\n")
    printed = tmp_path / "printed.yaml"
    printed.write_text(CliRunner().invoke(app, ["params", "--params", str(over)]).output)
    assert "extends" not in printed.read_text()
    assert load_params(printed) == load_params(over)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cases", "nowhere"], "hepar: nowhere is not a cohort: cases.parquet is missing"),
        (["params", "--params", "none.yaml"], "hepar: params file none.yaml does not exist"),
        (["run", "--runner", "teleport", "--params", "own.yaml"], "hepar: --runner is 'teleport' but must be one of"),
        (["evaluate", "--cohort", "nowhere", "--params", "own.yaml"], "hepar: nowhere does not exist"),
    ],
)
def test_an_error_that_the_user_can_fix_is_one_sentence(
    tmp_path: Path,
    params_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hepar", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "x"], "missing option '--out' / '-o'; see hepar predict --help"),
        (["predict", "x", "-o", "y", "--foo"], "no such option: --foo"),
        (["predict", "x", "-o", "y", "--only", "foo"], "invalid value for '--only': 'foo' is not one of 'masks', "),
        (["predct"], "no such command 'predct'"),
    ],
)
def test_a_mistake_in_the_options_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["hepar", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert (ended.value.code, line.startswith(f"hepar: {message}")) == (2, True), line


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError), errors_as_sentences():
        raise ZeroDivisionError


def test_predict_refuses_an_unknown_output_format_before_it_reads_the_scan(tmp_path: Path) -> None:
    done = call("hepar", "predict", "scan.nii.gz", "--out", "labels.txt", cwd=tmp_path)
    assert done.returncode == 2
    assert "labels.txt cannot be written: its name must end in .nii, .nii.gz" in done.stderr
