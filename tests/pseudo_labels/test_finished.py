"""Pseudo-livers that an interrupted run has finished are found in the store whole or not at all."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from hepar.imaging.volumes import Geometry
from hepar.pseudo_labels.finished import FILES, FinishedLivers
from hepar.pseudo_labels.prediction import PseudoLiver, load_signals
from hepar.pseudo_labels.signals import Signals
from hepar.runtime.environment import STORE_VARIABLE

GRID = Geometry((2, 3, 4), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))


@pytest.mark.parametrize("missing", [None, *FILES])
def test_a_case_that_the_store_has_in_part_is_not_finished(
    missing: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "store"))
    mask_zyx = np.ones(GRID.size_zyx, dtype=bool)
    signals = Signals(**{field.name: 0.5 for field in fields(Signals)})
    liver = PseudoLiver(mask_zyx, ~mask_zyx, signals, GRID, [mask_zyx])
    FinishedLivers(tmp_path / "lost" / "pseudo-1").keep("ct-1", liver)
    if missing is not None:
        (tmp_path / "store" / "checkpoints" / "pseudo-1" / "ct-1" / missing).unlink()
    new = FinishedLivers(tmp_path / "new" / "pseudo-1")
    found = new.find("ct-1")
    if missing is None:
        assert found is not None
        assert load_signals(found) == signals
    else:
        assert found is None
        kept = new.keep("ct-1", liver)  # predicted again, over what was fetched of it
        assert {path.name for path in kept.iterdir()} == set(FILES)
        assert new.find("ct-1") == kept
