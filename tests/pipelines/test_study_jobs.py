"""Steps of a study that run at once: none that needs another, no more than asked for, and stopped together."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

from toy_study import FakeStages, failing, teachers_meet, write_study
from waiting import SECONDS, wait_until

from pipelines.steps import Step
from pipelines.studies.definition import load_study
from pipelines.studies.layout import result_of, step_folder
from pipelines.studies.plan import StudyCell, plan_cells, unique_steps
from pipelines.studies.running import POLL_SECONDS, SHORT_SPIN, run_cells

RUN = """
import sys
from pathlib import Path
import pipelines.steps
from pipelines.studies.definition import load_study
from pipelines.studies.plan import plan_cells
from pipelines.studies.running import run_cells

study, hepar, out = sys.argv[1:]
pipelines.steps.HEPAR = hepar
run_cells(plan_cells(load_study(Path(study))), Path(out), jobs=2)
"""
HEPAR = f"""#!{sys.executable}
import signal, sys, time
from pathlib import Path
from hepar.runtime.artifacts import write_artifact

def save(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as a stage does once it has stopped: another signal kills it
    time.sleep({3 * POLL_SECONDS})
    Path("saved").touch()
    sys.exit(75)

if sys.argv[1] == "ingest":
    with write_artifact(Path("cohort"), "cohort", {{}}):
        sys.exit()
signal.signal(signal.SIGTERM, save)
Path("started").touch()
time.sleep({SECONDS})
"""


class Watched(FakeStages):
    """Notes how many steps run at once, and whether what a step reads was there when it began."""

    def __init__(self, cells: list[StudyCell], out: Path) -> None:
        super().__init__()
        self.planned = {step.id: step for step in unique_steps(cells)}
        self.out, self.lock = out, Lock()
        self.now, self.most = 0, 0
        self.too_early: list[str] = []

    def __call__(
        self, step: Step, folder: Path, held: tuple[int, int], environment: Mapping[str, str], log: Path
    ) -> None:
        reads = self.planned[folder.name].inputs.values()
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.too_early += [folder.name for read in reads if not result_of(read, self.out).is_dir()]
        try:
            super().__call__(step, folder, held, environment, log)
        finally:
            with self.lock:
                self.now -= 1


def test_steps_that_need_nothing_of_each_other_run_at_once(tmp_path: Path) -> None:
    cells, fake = plan_cells(load_study(write_study(tmp_path, seeds=[1]))), FakeStages()
    fake.fail = teachers_meet()
    assert run_cells(cells, tmp_path, fake, jobs=2) == []
    assert Counter(fake.ran) == Counter(step.name for step in unique_steps(cells))


def test_idle_threads_of_steps_side_by_side_sleep_soon(tmp_path: Path) -> None:
    cells = plan_cells(load_study(write_study(tmp_path, seeds=[1])))
    for jobs, expected in ((1, set[str]()), (2, {SHORT_SPIN})):
        fake, out = FakeStages(), tmp_path / str(jobs)
        out.mkdir()
        assert run_cells(cells, out, fake, jobs=jobs) == []
        assert {given.get("GOMP_SPINCOUNT", "") for given in fake.environments} - {""} == expected


def test_a_step_runs_after_what_it_reads_and_beside_no_more_than_asked_for(tmp_path: Path) -> None:
    cells = plan_cells(load_study(write_study(tmp_path, seeds=[1, 2, 3])))
    watched = Watched(cells, tmp_path)
    assert run_cells(cells, tmp_path, watched, jobs=3) == []
    assert watched.too_early == []
    assert watched.most <= 3
    assert Counter(watched.ran) == Counter(step.name for step in unique_steps(cells))


def test_a_failed_step_leaves_those_beside_it(tmp_path: Path) -> None:
    cells, fake = plan_cells(load_study(write_study(tmp_path, seeds=[1]))), FakeStages()
    fake.fail = failing("assemble-pool", ["CT"])
    (missing,) = run_cells(cells, tmp_path, fake, jobs=2)
    assert (missing.title, missing.reason) == (
        "CT only, seed 1",
        "assemble-pool ended with exit code 1: out of memory",
    )
    assert fake.ran.count("evaluate") == 1


def test_all_steps_that_run_save_when_the_study_is_stopped(tmp_path: Path) -> None:
    study = write_study(tmp_path, seeds=[1])
    cells, hepar, out = plan_cells(load_study(study)), tmp_path / "hepar", tmp_path / "out"
    out.mkdir()
    hepar.write_text(HEPAR)
    hepar.chmod(0o755)
    words = [sys.executable, "-c", RUN, str(study), str(hepar), str(out)]
    run = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    teachers = [step_folder(step, out) for step in cells[0].steps if step.stage == "train-liver"]
    wait_until(lambda: all((folder / "started").exists() for folder in teachers))
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=SECONDS)
    assert all((folder / "saved").exists() for folder in teachers)
    assert "Preempted: " in errors.splitlines()[-1]
    assert errors.endswith("run the same command again to resume\n")
