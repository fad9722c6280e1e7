"""`hepar phantom`: a partially or fully labelled cohort of digital abdomens."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from hepar.cli.main import app


@pytest.mark.parametrize("full", [False, True])
def test_phantoms_hide_masks_unless_all_are_wanted(full: bool, tmp_path: Path) -> None:
    words = [
        "phantom",
        "--cases",
        "8",
        "--size",
        "12",
        "16",
        "16",
        "--out",
        str(tmp_path),
        *(["--full"] if full else []),
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "cohort.csv", keep_default_na=False)
    assert len(table) == 8
    known = table["liver_state"].isin(["manual", "absent"]) & table["tumour_state"].isin(["manual", "absent"])
    assert known.all() == full
    assert all((tmp_path / place).is_file() for place in table["image"])
