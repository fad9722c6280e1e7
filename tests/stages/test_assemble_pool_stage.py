"""The assemble-pool stage: unchanged cases are linked, and the inputs must belong together."""

from __future__ import annotations

from pathlib import Path

import pytest

import hepar.stages.assemble_pool
from hepar.cases import Cohort
from hepar.errors import ArtifactError
from hepar.params import Params
from hepar.pool.table import Pool
from hepar.runtime.artifacts import read_manifest, write_artifact

pytestmark = pytest.mark.slow


def assemble(run: Path, pool: Path, params: Params) -> None:
    hepar.stages.assemble_pool.run(
        run / "cohort", run / "pseudo", pool, params.modalities, params.preprocessing, params.assemble_pool
    )


def inodes(pool: Path) -> dict[Path, int]:
    return {path: path.stat().st_ino for path in (pool / Pool.CASES).rglob("*.b2nd")}


def test_a_pool_assembled_again_is_linked_and_has_the_same_hash(by_kfp: Path, tiny: Params, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    assemble(by_kfp, pool, tiny)
    before, manifest = inodes(pool), read_manifest(pool, Pool.KIND)
    assemble(by_kfp, pool, tiny)
    assert inodes(pool) == before
    assert read_manifest(pool, Pool.KIND) == manifest
    assert manifest.hash == read_manifest(by_kfp / "pool", Pool.KIND).hash


def test_pseudo_labels_of_another_cohort_are_refused(by_kfp: Path, tiny: Params, tmp_path: Path) -> None:
    with write_artifact(tmp_path / "cohort", Cohort.KIND, {}) as folder:
        Cohort(folder, Cohort.load(by_kfp / "cohort").cases[:-1]).save()
    (tmp_path / "pseudo").symlink_to(by_kfp / "pseudo")
    message = r"/pseudo was made from cohort [0-9a-f]{12}, but .*/cohort is cohort [0-9a-f]{12}: run pseudo-label"
    with pytest.raises(ArtifactError, match=message):
        assemble(tmp_path, tmp_path / "pool", tiny)
