"""One run at a time in a working directory; a killed run holds no lock, and its stages end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import BIN, TINY, call

from hepar.errors import HeparError
from pipelines.run_lock import only_run

RUN = """
import subprocess, sys, time
from pathlib import Path
from pipelines.run_lock import only_run

with only_run(Path(sys.argv[1])) as inherited:
    command = [sys.executable, "-c", sys.argv[2], sys.argv[1], str(inherited[0])]
    subprocess.Popen(command, pass_fds=inherited, start_new_session=True).wait()
"""
CHILD = """
import subprocess, sys
from pathlib import Path
from pipelines.run_lock import end_with_parent

end_with_parent(int(sys.argv[2]))
stage = "import signal, sys, time; signal.signal(15, lambda *_: (time.sleep(0.5), open('saved', 'w'), sys.exit()));"
stage += "open('started', 'w'); time.sleep(600)"
subprocess.run([sys.executable, "-c", stage], cwd=sys.argv[1])
"""


def start(workdir: Path) -> subprocess.Popen[bytes]:
    """A run whose only stage needs half a second to save its work when it is stopped."""
    run = subprocess.Popen([sys.executable, "-c", RUN, str(workdir), CHILD], cwd=Path(__file__).parents[2])
    end = time.monotonic() + 60
    while not (workdir / "started").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    return run


def test_a_second_run_is_refused_while_the_first_works(tmp_path: Path) -> None:
    (tmp_path / ".kfp").mkdir()
    (tmp_path / ".kfp" / "of-the-first").touch()
    with only_run(tmp_path):
        for option in ("--workdir", "--out"):
            said = rf"^another run is working in {tmp_path}: wait until it ends, or choose another {option}$"
            with pytest.raises(HeparError, match=said), only_run(tmp_path, option):
                pass
        refused = call(str(BIN / "hepar"), "run", "--params", str(TINY), "--workdir", str(tmp_path), cwd=tmp_path)
        assert refused.returncode == 2
        assert "another run is working in" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert (tmp_path / ".kfp" / "of-the-first").exists()
        with only_run(tmp_path.parent):  # elsewhere
            pass
    with only_run(tmp_path):
        pass


def test_a_killed_run_holds_no_lock_and_its_stages_save_and_end(tmp_path: Path) -> None:
    run = start(tmp_path)
    below = psutil.Process(run.pid).children(recursive=True)
    assert len(below) == 2
    run.send_signal(signal.SIGKILL)
    run.wait()
    with only_run(tmp_path):  # waits for the stage
        assert (tmp_path / "saved").exists()
        assert not [process for process in below if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_stages_that_do_not_end_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.run_lock.SHUTDOWN_SECONDS", 0)
    monkeypatch.setattr("pipelines.run_lock.GRACE_SECONDS", 0.3)
    with only_run(tmp_path) as (_, stages):
        kept = os.dup(stages)  # as a child that goes on
    with pytest.raises(HeparError, match="stages of a killed run are still working in"), only_run(tmp_path):
        pass
    os.close(kept)
    with only_run(tmp_path):
        pass


def test_a_working_directory_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / ".run.lock").mkdir()
    with pytest.raises(HeparError, match=f"the working directory {tmp_path} cannot be locked: Is a directory"):
        only_run(tmp_path).__enter__()
