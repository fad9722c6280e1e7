"""Temporary folders: removed at the end, and by the next run if a process was killed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hepar.errors import StorageError
from hepar.runtime.scratch import BESIDE, scratch_folder

HOLD = """
import sys, time
from hepar.runtime.scratch import scratch_folder
with scratch_folder("case") as folder:
    (folder / "scan.nii.gz").write_text("of a patient")
    print(folder, flush=True)
    time.sleep(60)
"""

OFTEN = """
from hepar.runtime.scratch import scratch_folder
for _ in range(500):
    with scratch_folder("case"):
        pass
"""


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another folder for temporary files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def hold() -> tuple[subprocess.Popen[str], Path]:
    """A process that holds a scratch folder, and that folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_folder_lasts_as_long_as_its_context(own_place: Path) -> None:
    with scratch_folder("case") as folder:
        assert folder.is_relative_to(own_place)
        assert stat.S_IMODE(folder.parent.stat().st_mode) == stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "scan").write_text("x")
        with scratch_folder("case") as other:
            assert other != folder
    assert not list(own_place.iterdir())


def test_the_folder_of_a_killed_process_is_removed_by_the_next_and_that_of_a_living_one_is_kept() -> None:
    victim, left_over = hold()
    living, kept = hold()
    assert left_over.is_dir()  # the second process has not taken it for left over
    os.kill(victim.pid, signal.SIGKILL)
    end(victim)
    assert (left_over / "scan.nii.gz").is_file()
    with scratch_folder("case"):
        assert not left_over.exists()
        assert (kept / "scan.nii.gz").is_file()
    end(living)


def test_processes_that_begin_and_end_at_once_do_not_remove_the_place_of_each_other(own_place: Path) -> None:
    many = [subprocess.Popen([sys.executable, "-c", OFTEN], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [(process.communicate()[1], process.returncode) for process in many] == [("", 0)] * 4
    assert not list(own_place.iterdir())


def test_links_in_a_left_over_folder_are_not_followed(own_place: Path) -> None:
    (own_place / "scans").mkdir()
    (own_place / "scans" / "scan.nii.gz").write_text("x")
    with scratch_folder("case") as folder:
        place = folder.parent
        (place / "left-over").mkdir()
        (place / "left-over" / "link").symlink_to(own_place / "scans")
        (place / "link").symlink_to(own_place / "scans")
        with scratch_folder("case"):
            assert not (place / "left-over").exists()
    assert (own_place / "scans" / "scan.nii.gz").is_file()


def test_a_folder_beside_another_leaves_nothing_there(own_place: Path) -> None:
    (own_place / "pools").mkdir()
    with scratch_folder("dvc", own_place / "pools") as folder:
        assert folder.parent == own_place / "pools" / BESIDE
    assert not list((own_place / "pools").iterdir())


def test_a_place_that_is_no_folder_of_the_user_is_refused(own_place: Path) -> None:
    (own_place / "elsewhere").mkdir()
    (own_place / f"hepar-{os.getuid()}").symlink_to(own_place / "elsewhere")
    with pytest.raises(StorageError, match="is not a folder of this user: set TMPDIR"), scratch_folder("case"):
        pass
