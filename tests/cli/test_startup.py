"""Commands start fast: `--help` and `--version` import no large library, and others torch only for a network."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from hepar import __version__

SLOW_MODULES = {  # pydantic is not among them: typer itself imports it
    *("PIL", "SimpleITK", "blosc2", "boto3", "docker", "dvc", "kfp", "matplotlib", "mlflow", "monai", "numpy"),
    *("pandas", "pyarrow", "requests", "scipy", "sklearn", "torch"),
}
# what `run`, `compare`, `score`, `promote`, `rollback`, `follow` and `study` import, whose work is no network's
WITHOUT_NETWORK = (
    "hepar.evaluation.comparison_table",
    "hepar.evaluation.folder_scores",
    "hepar.prediction.follow_up",
    "hepar.registry.champion",
    "pipelines.local",
    "pipelines.studies.definition",
)
MAX_CPU_SECONDS = 1.5  # measured: 0.3 on a laptop core
SCRIPT = """
import json, sys
from hepar.cli.main import app

try:
    app(sys.argv[1:])
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_no_slow_module(option: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, option], capture_output=True, text=True, check=True)
    assert "Usage: " in done.stdout or f"hepar {__version__}" in done.stdout
    modules = set(json.loads(done.stderr))
    assert "typer" in modules  # the list is that of the process that ran the command
    assert modules & SLOW_MODULES == set()


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_take_little_cpu_time(option: str) -> None:
    command = [sys.executable, "-c", "from hepar.cli.main import main; main()", option]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MAX_CPU_SECONDS


def test_commands_that_compute_no_network_do_not_wait_for_torch() -> None:
    script = f"import sys, {', '.join(WITHOUT_NETWORK)}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"False\n"
