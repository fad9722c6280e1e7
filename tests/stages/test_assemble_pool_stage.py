"""The assemble-pool stage: unchanged cases are linked, and the inputs must belong together."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import hepar.stages.assemble_pool
from hepar.cases import Cohort, LabelState, Split
from hepar.errors import ArtifactError
from hepar.params import Params, override_params
from hepar.pool.table import Pool
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.runtime.artifacts import MANIFEST, parents_of_parent, read_manifest, write_artifact

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
    pseudo = read_manifest(by_kfp / "pseudo", PseudoLabels.KIND)
    assert parents_of_parent(PseudoLabels.KIND, manifest.parents) == pseudo.parents
    assert pseudo.parents.keys() == {"cohort", "teacher-CT", "teacher-MR"}


def test_pseudo_labels_of_another_cohort_are_refused(by_kfp: Path, tiny: Params, tmp_path: Path) -> None:
    with write_artifact(tmp_path / "cohort", Cohort.KIND, {}) as folder:
        Cohort(folder, Cohort.load(by_kfp / "cohort").cases[:-1]).save()
    (tmp_path / "pseudo").symlink_to(by_kfp / "pseudo")
    message = r"/pseudo was made from cohort [0-9a-f]{12}, but .*/cohort is cohort [0-9a-f]{12}: run pseudo-label"
    with pytest.raises(ArtifactError, match=message):
        assemble(tmp_path, tmp_path / "pool", tiny)


def test_training_cases_with_an_unknown_tumour_can_be_left_out(by_kfp: Path, tiny: Params, tmp_path: Path) -> None:
    unknown = {"tumour": "", "tumour_sha256": "", "tumour_state": LabelState.UNKNOWN}
    given = Cohort.load(by_kfp / "cohort").cases
    hidden = {next(case.case_id for case in given if case.split == split) for split in (Split.TRAIN, Split.VAL)}
    with write_artifact(tmp_path / "cohort", Cohort.KIND, {}) as folder:
        shutil.copytree(by_kfp / "cohort" / Cohort.VOLUMES, folder / Cohort.VOLUMES)
        Cohort(folder, tuple(replace(c, **unknown) if c.case_id in hidden else c for c in given)).save()
    parents = {Cohort.KIND: read_manifest(tmp_path / "cohort", Cohort.KIND).hash}
    with write_artifact(tmp_path / "pseudo", PseudoLabels.KIND, parents) as folder:
        shutil.copytree(by_kfp / "pseudo", folder, ignore=shutil.ignore_patterns(MANIFEST), dirs_exist_ok=True)
    assemble(tmp_path, tmp_path / "pool", override_params(tiny, {"assemble_pool.unknown_tumour": "left-out"}, "test"))
    kept = {entry.case_id: entry.split for entry in Pool.load(tmp_path / "pool").entries}
    learned_from = {case.case_id for case in given if case.split != Split.TEST}
    assert {kept[name] for name in hidden & kept.keys()} == {Split.VAL}
    assert learned_from - kept.keys() == hidden - kept.keys()
    assert len(hidden - kept.keys()) == 1
