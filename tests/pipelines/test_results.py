"""Results of a local run: two runs are compared, and progress is printed in lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hepar.evaluation.report_folder import Report
from hepar.pool.table import Pool
from hepar.runtime.artifacts import write_artifact, write_json
from pipelines.compare import COMPARED, differences
from pipelines.results import PLACES
from pipelines.stage_progress import show_while


def write_run(workdir: Path, pool: str = "arrays", dice: float = 0.9) -> Path:
    for place, kind in COMPARED.items():
        with write_artifact(workdir / place, kind, {}) as folder:
            (folder / "content.txt").write_text(pool if kind == Pool.KIND else kind)
    with write_artifact(workdir / PLACES[Report.KIND], Report.KIND, {}) as folder:
        write_json(folder / Report.METRICS, {"CT": {"dice": dice}})
    return workdir


def test_equal_runs_have_no_differences(tmp_path: Path) -> None:
    assert differences(write_run(tmp_path / "a"), write_run(tmp_path / "b")) == []


def test_a_different_pool_and_different_metrics_are_named(tmp_path: Path) -> None:
    runs = write_run(tmp_path / "a"), write_run(tmp_path / "b", pool="other arrays", dice=0.8)
    pool, metrics = differences(*runs)
    assert pool.startswith("pool: ")
    assert metrics == f"metrics.json of {runs[0]} and {runs[1]} differ"


def test_progress_is_one_line_per_change_of_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.stage_progress.POLL_SECONDS", 0)

    def states() -> Iterator[bool]:
        status = {"stage": "ingest", "seconds": 1.0, "done": 2, "total": 8, "message": "cases"}
        write_json(tmp_path / "ingest.json", {**status, "state": "running"})
        yield True
        yield True
        write_json(tmp_path / "ingest.json", {**status, "state": "done", "done": 8})
        yield False

    steps = states()
    show_while(lambda: next(steps), tmp_path)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["ingest", "running", "1", "s", "2/8", "cases"],
        ["ingest", "done", "1", "s", "8/8", "cases"],
    ]
