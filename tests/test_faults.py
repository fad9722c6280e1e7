"""The short form of `benchmarks/faults.py`."""

import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parents[1] / "benchmarks" / "faults.py"


@pytest.mark.slow
def test_bad_inputs_and_kills_end_well(tmp_path):
    attack = [sys.executable, str(FAULTS), "--inputs", "60", "--kills", "3", "--only", "inputs,kills"]
    result = subprocess.run([*attack, "--keep", str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
