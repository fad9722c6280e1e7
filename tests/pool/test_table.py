"""The table of a pool: what it stores is what is loaded, and the documentation lists every column and audit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT
from toy_pool import Toy, toy_pool, with_columns

from hepar.cases import LabelState, Modality, Split
from hepar.errors import ArtifactError
from hepar.pool.audit import AUDITS, audit_rule
from hepar.pool.table import COLUMNS, Pool


def test_a_saved_pool_is_loaded_with_the_same_entries(tmp_path: Path) -> None:
    toys = [Toy("a"), Toy("b", Modality.MR, split=Split.VAL, tumour_state=LabelState.ABSENT, lesions=())]
    pool = toy_pool(tmp_path, toys)
    pool.save()
    assert Pool.load(tmp_path) == pool


def test_the_order_of_entries_does_not_change_the_bytes(tmp_path: Path) -> None:
    pool = toy_pool(tmp_path, [Toy("a"), Toy("b")])
    pool.save()
    before = (tmp_path / Pool.TABLE).read_bytes()
    Pool(tmp_path, pool.plan, pool.entries[::-1]).save()
    assert (tmp_path / Pool.TABLE).read_bytes() == before


def test_entries_with_nothing_known_are_selected_only_on_request(tmp_path: Path) -> None:
    pool = toy_pool(tmp_path, [Toy("a"), Toy("b"), Toy("c", split=Split.VAL)])
    unknown = with_columns(pool.entries[1], known_share=0.0)
    pool = Pool(tmp_path, pool.plan, (pool.entries[0], unknown, pool.entries[2]))
    assert [entry.case_id for entry in pool.select(Split.TRAIN)] == ["a"]
    assert [entry.case_id for entry in pool.select(Split.TRAIN, also_unknown=True)] == ["a", "b"]


def test_an_incomplete_or_damaged_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is not a pool: pool.parquet or plan.json is missing$"):
        Pool.load(tmp_path)
    toy_pool(tmp_path, [Toy("a")]).save()
    (tmp_path / Pool.TABLE).write_bytes(b"truncated")
    with pytest.raises(ArtifactError, match="is damaged"):
        Pool.load(tmp_path)


def test_the_documentation_lists_every_column_and_audit() -> None:
    documentation = (ROOT / "docs" / "pool.md").read_text()
    assert set(COLUMNS) <= set(re.findall(r"`(\w+)`", documentation))
    for name in AUDITS:
        assert f"| `{name}` | {audit_rule(name)} |" in documentation
