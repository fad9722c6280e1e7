"""The report of a version in MLflow: whole, also if its masks are in the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from hepar.evaluation.report_folder import Report
from hepar.registry.tracking import log_report, model_run
from hepar.runtime import remote_cache
from hepar.runtime.artifacts import MANIFEST, write_artifact, write_json
from hepar.runtime.environment import STORE_VARIABLE
from hepar.runtime.object_store import Store
from hepar.runtime.stored_versions import publish


@pytest.mark.usefixtures("database")
def test_a_report_whose_masks_are_in_the_store_is_logged_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "store"))
    monkeypatch.setenv(remote_cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    with write_artifact(tmp_path / "report", Report.KIND, {}) as folder:
        write_json(folder / Report.METRICS, {})
        Report(folder).mask("a").parent.mkdir()
        Report(folder).mask("a").write_bytes(b"labels")
    publish(tmp_path / "report", (Report.MASKS, Report.PROBABILITIES), Store(str(tmp_path / "store")))
    report = Report.load(tmp_path / "report")
    assert not report.mask("a").exists()
    with model_run("reports", "unknown") as opened:
        log_report(opened, report)
        logged = Path(opened.artifacts.download_artifacts(run_id=opened.active_run().info.run_id))
    (place,) = (logged / Report.KIND).iterdir()
    found = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert found == {Report.METRICS, MANIFEST, str(report.mask("a").relative_to(report.folder))}
    assert Report(place).mask("a").read_bytes() == b"labels"
