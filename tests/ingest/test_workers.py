"""Work in processes that may die: every other job is done, in order, and nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conftest import environment
from deadly import DEADLY, DeadlyFile, double_or_die, process_id, raise_error, seconds, surroundings
from phantom_folder import SCAN, PhantomFolder
from waiting import wait_until

from hepar.ingest import building, parallel
from hepar.ingest.cohort_building import build_cases
from hepar.ingest.parallel import Died, parallel_map
from hepar.ingest.quarantine import Refused
from hepar.ingest.sources.table import read_table
from hepar.ingest.splits import assign_splits
from hepar.params import Params


@pytest.mark.parametrize("jobs", [1, 40])
@pytest.mark.parametrize("how", DEADLY)
def test_a_job_that_kills_its_process_fails_alone(
    how: str, jobs: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parallel, "usable_bytes", lambda: 2**30)
    mixed: list[int | str] = list(range(jobs))
    mixed[jobs // 2] = how
    with parallel_map(double_or_die, mixed, seconds) as results:
        found = list(results)
    assert found[jobs // 2] == Died(DEADLY[how])
    assert [value for value in found if not isinstance(value, Died)] == [2 * n for n in mixed if isinstance(n, int)]
    assert "last words" not in capfd.readouterr().err


def test_an_error_of_the_work_itself_is_raised() -> None:
    with pytest.raises(KeyError, match="of the work itself"), parallel_map(raise_error, [1, 2], seconds) as results:
        list(results)


def test_processes_are_used_again_and_end_with_the_map() -> None:
    with parallel_map(process_id, list(range(50)), seconds) as results:
        found = set(results)
    assert len(found) <= len(os.sched_getaffinity(0))
    assert not any(psutil.pid_exists(pid) for pid in found)


def test_threads_get_workers_of_their_own_at_the_same_time() -> None:
    def doubled(number: int) -> list[int | Died]:
        with parallel_map(double_or_die, [number], seconds) as results:
            return list(results)

    numbers = list(range(40))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(doubled, numbers)) == [[2 * number] for number in numbers]


def test_jobs_see_the_folder_and_variables_of_their_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("first", "second"):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("A_VARIABLE", value)
        with parallel_map(surroundings, [1], seconds) as results:
            assert list(results) == [(str(tmp_path), value)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_parent_ends(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        f"import signal, sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from deadly import double_or_die\n"
        "from hepar.ingest.parallel import parallel_map\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job\n"
        "with parallel_map(double_or_die, ['hang', 'hang'], lambda job: 600.0) as results:\n"
        "    print('started', flush=True)\n"
        "    list(results)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        parent.stdout.readline()
        wait_until(lambda: len(psutil.Process(parent.pid).children(recursive=True)) >= 2)
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.send_signal(number)
        try:
            parent.wait(timeout=30)
        finally:
            parent.kill()
        _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


@pytest.mark.parametrize("how", ["segfault", "abort", "hang", "fill"])
@pytest.mark.parametrize("few", [True, False])
def test_a_case_that_kills_its_reader_is_refused_alone(
    how: str, few: bool, source: PhantomFolder, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "usable_bytes", lambda: 2**30)
    monkeypatch.setattr(building, "MIN_SECONDS", 5.0 if how == "hang" else 100.0)
    listed = assign_splits(read_table(source.folder / "cohort.csv"), tiny.ingest.split)
    listed = [case for case in listed if case.case_id == SCAN] if few else listed
    cases = [
        replace(case, image=DeadlyFile(source.folder / "cohort.csv", how=how)) if case.case_id == SCAN else case
        for case in listed
    ]
    accepted, refused = build_cases(cases, tmp_path / "cohort", earlier=None)
    value = "reading it takes longer than 5 s" if how == "hang" else DEADLY[how]
    assert refused == [Refused(SCAN, "every file can be read", value)]
    assert len(accepted) == len(cases) - 1
    assert not (tmp_path / "cohort" / "volumes" / SCAN).exists()
