"""The phantoms that the documents report on are those of a seed which nothing else uses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

DEMO = ROOT / "params" / "demo.yaml"
PLACES = ("hepar", "components", "pipelines", "benchmarks", "tests", "docs", "params", "containers", ".ci", ".github")
SUFFIXES = {"", ".py", ".yaml", ".toml", ".html", ".j2"}


def phantom_seed(path: Path) -> int:
    """The seed of the phantoms in a params file itself, not in the file that it extends."""
    return int(yaml.safe_load(path.read_text())["ingest"]["phantoms"]["seed"])


def sources() -> Iterator[Path]:
    """Code and settings: whatever could make phantoms."""
    yield from (path for path in ROOT.iterdir() if path.is_file() and path.suffix in SUFFIXES)
    for place in PLACES:
        yield from (path for path in (ROOT / place).rglob("*") if path.is_file() and path.suffix in SUFFIXES)


def names_number(text: str, number: int) -> bool:
    return re.search(rf"(?<![\w.]){number}(?![\w.])", text.replace("_", "")) is not None


def test_the_demo_names_its_own_seed() -> None:
    """`ingest.added_phantoms` has the seed plus 1."""
    development = phantom_seed(ROOT / "params.yaml")
    assert phantom_seed(DEMO) not in (development, development + 1)
    assert phantom_seed(DEMO) + 1 != development


@pytest.mark.parametrize(
    ("text", "named"), [("seed=12", True), ("seed: 12\n", True), ("1_2", True), ("120 0.12", False)]
)
def test_numbers_are_found_whole(text: str, named: bool) -> None:
    assert names_number(text, 12) == named


def test_no_other_file_uses_the_seed_of_the_release() -> None:
    seed = phantom_seed(DEMO)
    searched = sorted(path for path in sources() if path != DEMO and "__pycache__" not in path.parts)
    assert {ROOT / "params.yaml", ROOT / "Makefile", ROOT / "benchmarks" / "calibration.py", Path(__file__)} <= {
        *searched
    }
    found = [path for path in searched if names_number(path.read_text(errors="replace"), seed)]
    assert [str(path.relative_to(ROOT)) for path in found] == []
