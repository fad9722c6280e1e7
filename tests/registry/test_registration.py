"""The folder `registration/`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hepar.errors import ArtifactError
from hepar.registry.registration import Registration


def test_a_registration_survives_a_round_trip(tmp_path: Path) -> None:
    registration = Registration("hepar", "2", "challenger", ("CT liver Dice 0.700 < 0.800",))
    registration.save(tmp_path)
    assert Registration.load(tmp_path) == registration
    assert set(json.loads((tmp_path / Registration.FILE).read_text())) == {"name", "version", "alias", "reasons"}


@pytest.mark.parametrize("content", [None, "{", "[]", '{"name": "hepar"}'])
def test_a_missing_or_damaged_registration_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / Registration.FILE).write_text(content)
    with pytest.raises(ArtifactError, match=r"registration\.json is not a registration"):
        Registration.load(tmp_path)
