"""A step on disk: the command of a stage, its log, how it fails, and how it ends with the process that runs it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

import pipelines.steps
from hepar.errors import HeparError, Preempted
from hepar.runtime.artifacts import write_artifact
from pipelines.run_lock import only_run
from pipelines.steps import Step, run_step

RUN = """
import sys
from pathlib import Path
import pipelines.steps
from pipelines.run_lock import only_run

folder = Path(sys.argv[1])
pipelines.steps.HEPAR = str(folder / "hepar")
with only_run(folder) as held:
    pipelines.steps.run_step(pipelines.steps.Step("train", (), folder / "model", "model"), folder, held)
"""
SAVES = "trap 'sleep 0.3; touch saved; exit 75' TERM; touch started; for i in $(seq 600); do sleep 0.1; done"


def write_hepar(folder: Path, body: str) -> None:
    script = folder / "hepar"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)


@pytest.fixture
def step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Step:
    monkeypatch.setattr(pipelines.steps, "HEPAR", str(tmp_path / "hepar"))
    return Step("train", ("train-universal",), tmp_path / "model", "model")


def test_a_failed_step_is_named_with_the_last_line_of_its_log(tmp_path: Path, step: Step) -> None:
    write_hepar(tmp_path, 'echo "step 1 of 2"; echo "hepar: the disk is full" >&2; echo; exit 2')
    with (
        only_run(tmp_path) as held,
        pytest.raises(
            HeparError, match=r"^train ended with exit code 2: hepar: the disk is full \(see .*stage\.log\)$"
        ),
    ):
        run_step(step, tmp_path, held, log=tmp_path / "stage.log")
    assert (tmp_path / "stage.log").read_text().startswith("step 1 of 2\n")


def test_a_step_is_finished_once_its_artifact_is_whole(tmp_path: Path, step: Step) -> None:
    (tmp_path / "model").mkdir()
    assert not step.is_finished
    with write_artifact(tmp_path / "model", "model", {}):
        pass
    assert step.is_finished
    assert not Step("other", (), tmp_path / "model", "pool").is_finished


def test_a_stopped_step_says_that_it_can_resume(tmp_path: Path, step: Step) -> None:
    write_hepar(tmp_path, "exit 75")
    with only_run(tmp_path) as held, pytest.raises(Preempted, match=r"^train was stopped: run the same command again"):
        run_step(step, tmp_path, held)


def test_a_step_saves_and_ends_when_the_process_that_runs_it_is_killed(tmp_path: Path) -> None:
    write_hepar(tmp_path, SAVES)
    run = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], cwd=tmp_path)
    wait_until((tmp_path / "started").exists)
    run.send_signal(signal.SIGKILL)
    run.wait()
    with only_run(tmp_path):  # waits for the stage
        assert (tmp_path / "saved").exists()
