"""Results of `hepar run` are put in place whole: the old set or the new one, wherever the process dies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from kill_points import is_finished, tree

from hepar.cases import Cohort
from hepar.errors import ArtifactError
from hepar.inference.model_folder import ModelFolder
from hepar.runtime.artifacts import MANIFEST, read_manifest, write_artifact
from pipelines.results import PARAMS_FILE, PLACES, find_artifacts, finish_placing, place_results

ROLES = ("liver teacher CT", "liver teacher MR", "universal")


def write_kfp_folders(workdir: Path, text: str, without: str = "") -> Path:
    """What a finished pipeline leaves: one artifact per task, sealed, and the params."""
    kfp_root = workdir / ".kfp"
    for key in PLACES:
        if key != without:
            kind, role = (ModelFolder.KIND, {"role": key}) if key in ROLES else (key, {})
            with write_artifact(kfp_root / "two-stage-1" / key.replace(" ", "-") / "output", kind, role) as folder:
                (folder / f"{text}.txt").write_text(f"{text} {key}")
                (folder / "data").mkdir()
                (folder / "data" / "values.txt").write_text(f"{text} values of {key}")
    (kfp_root / PARAMS_FILE).write_text(text)
    return kfp_root


def run(workdir: Path, text: str) -> None:
    assert place_results(write_kfp_folders(workdir, text), workdir) == []
    shutil.rmtree(workdir / ".kfp")


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with old results, in which the stages of a new run have finished."""
    workdir = tmp_path_factory.mktemp("before")
    run(workdir, "old")
    write_kfp_folders(workdir, "new")
    return workdir


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    sets = {}
    for text in ("old", "new"):
        workdir = tmp_path_factory.mktemp(text)
        run(workdir, text)
        sets[text] = tree(workdir)
    return sets


def place(workdir: Path) -> None:
    place_results(workdir / ".kfp", workdir)
    shutil.rmtree(workdir / ".kfp")


def test_all_results_are_old_or_all_are_new_wherever_the_run_dies(
    before: Path, expected: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    finished, points, seen = False, 0, []
    while not finished:
        points += 1
        workdir, again = tmp_path / str(points), tmp_path / f"{points}-again"
        shutil.copytree(before, workdir, copy_function=os.link)
        finished = is_finished(lambda workdir=workdir: place(workdir), points)  # type: ignore[misc]
        shutil.copytree(workdir, again, copy_function=os.link)
        finish_placing(workdir)  # as the next run does
        read_manifest(again / "models" / "liver-mr", ModelFolder.KIND)  # as every other command does
        assert tree(workdir) == tree(again)
        assert tree(workdir) in expected.values(), f"killed before change {points}"
        seen.append("old" if tree(workdir) == expected["old"] else "new")
        shutil.rmtree(workdir)
        shutil.rmtree(again)
    assert points >= 60
    assert seen == sorted(seen, reverse=True)  # old up to a point, new from there on
    assert {"old", "new"} == set(seen)


def test_a_second_death_while_the_first_is_mended_loses_nothing(
    before: Path, expected: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    for first in (12, 17, 22):
        for second in (1, 2, 3, 6, 11, 20):
            workdir = tmp_path / f"{first}-{second}"
            shutil.copytree(before, workdir, copy_function=os.link)
            is_finished(lambda workdir=workdir: place(workdir), first)  # type: ignore[misc]
            is_finished(lambda workdir=workdir: finish_placing(workdir), second)  # type: ignore[misc]
            finish_placing(workdir)
            assert tree(workdir) in expected.values(), f"killed before change {first}, then {second}"
            shutil.rmtree(workdir)


def test_a_fold_of_a_teacher_has_no_place(tmp_path: Path) -> None:
    kfp_root = write_kfp_folders(tmp_path, "new")
    known, fold = find_artifacts(kfp_root), kfp_root / "two-stage-1" / "train-liver-fold" / "model"
    with write_artifact(fold, ModelFolder.KIND, {"role": ROLES[0], "fold": "1/2"}) as folder:
        (folder / "fold.txt").write_text("its last folder by name")
    assert find_artifacts(kfp_root) == known


def test_artifacts_go_to_their_places_by_kind_and_role(tmp_path: Path) -> None:
    run(tmp_path, "old")
    run(tmp_path, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {Path(name).parts[0] for name in PLACES.values()} | {PARAMS_FILE}
    )
    assert (tmp_path / "models" / "liver-mr" / "new.txt").read_text() == "new liver teacher MR"
    assert not list(tmp_path.rglob("old.txt"))
    assert not list(tmp_path.rglob(".*"))
    assert read_manifest(tmp_path / "cohort", Cohort.KIND).kind == Cohort.KIND


def test_an_incomplete_run_replaces_nothing(tmp_path: Path, expected: dict[str, dict[str, str]]) -> None:
    run(tmp_path, "old")
    assert place_results(write_kfp_folders(tmp_path, "new", without="pool"), tmp_path) == ["pool"]
    assert tree(tmp_path) == expected["old"]


def test_a_damaged_artifact_replaces_nothing(tmp_path: Path, expected: dict[str, dict[str, str]]) -> None:
    run(tmp_path, "old")
    kfp_root = write_kfp_folders(tmp_path, "new")
    (manifest,) = kfp_root.glob(f"*/pool/*/{MANIFEST}")
    (manifest.parent / "new.txt").unlink()
    with pytest.raises(ArtifactError, match=r"is damaged: new\.txt is missing"):
        place_results(kfp_root, tmp_path)
    assert tree(tmp_path) == expected["old"]


def test_a_linked_folder_of_models_is_refused_and_a_linked_pool_replaced(tmp_path: Path) -> None:
    """A rename replaces a link, but cannot reach through one to another disk."""
    workdir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept.txt").write_text("kept")
    workdir.mkdir()
    (workdir / "pool").symlink_to(elsewhere)
    run(workdir, "new")
    assert not (workdir / "pool").is_symlink()
    shutil.rmtree(workdir / "models")
    (workdir / "models").symlink_to(elsewhere)
    with pytest.raises(ArtifactError, match=r"models/liver-.* cannot be replaced: models is a symbolic link"):
        place_results(write_kfp_folders(workdir, "newer"), workdir)
    assert tree(elsewhere) == {"kept.txt": "kept"}
