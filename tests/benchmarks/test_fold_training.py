"""Params, preparation and stages of a fold; the command `hepar` is a script that notes its words."""

from pathlib import Path

import pytest
from conftest import ROOT
from folds.training import FoldFolder, link_model, make_params, prepare, run_steps, steps

import pipelines.steps
from hepar.cases import Cohort
from hepar.errors import ArtifactError, HeparError, ParamsError, Preempted
from hepar.inference.model_folder import ModelFolder
from hepar.params import load_params
from hepar.runtime.artifacts import write_artifact

TINY = ROOT / "params" / "tiny.yaml"
SPLITS = "case_id,split\na,test\n"


def fold(out, overrides=(), splits=SPLITS, name="variant"):
    params = make_params(TINY, overrides, seed=3)
    return FoldFolder(out / name / "seed-3" / "fold-1", out / "cohorts" / "c", out / "table.csv", params, splits)


def write_model(folder):
    with write_artifact(folder, ModelFolder.KIND, {}) as partial:
        (partial / "weights").write_text("w")


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A function that makes `hepar` end with a code, and returns the file with the words of its calls."""

    def make(code=0):
        script = tmp_path / "hepar"
        script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexit {code}\n')
        script.chmod(0o755)
        monkeypatch.setattr(pipelines.steps, "HEPAR", str(script))
        return tmp_path / "calls"

    return make


def test_overrides_and_seed_are_in_the_params():
    params = make_params(TINY, ["train_universal.training.steps=7", "evaluate.min_lesion_ml=null"], seed=3)
    assert params.train_universal.training.steps == 7
    assert params.evaluate.min_lesion_ml is None
    assert (params.train_liver.training.seed, params.train_universal.training.seed) == (3, 3)
    assert params.train_liver.training.steps == load_params(TINY).train_liver.training.steps


@pytest.mark.parametrize("override", ["evaluate.overlap", "nothing.here=1", "evaluate.unknown=1", "evaluate.overlap=2"])
def test_an_override_that_is_no_param_is_refused(override):
    with pytest.raises(ParamsError, match="--set"):
        make_params(TINY, [override], seed=1)


def test_a_fold_keeps_the_params_and_the_split_it_was_begun_with(tmp_path):
    begun = fold(tmp_path)
    prepare(begun)
    prepare(begun)
    assert load_params(begun.folder / "params.yaml") == begun.params
    with pytest.raises(HeparError, match=r"begun with evaluate\.overlap = .*, not 0\.3: choose another --name"):
        prepare(fold(tmp_path, ["evaluate.overlap=0.3"]))
    with pytest.raises(HeparError, match="another split"):
        prepare(fold(tmp_path, splits="case_id,split\na,val\n"))


def test_finished_stages_are_not_run_again(tmp_path, calls):
    written, begun = calls(), fold(tmp_path)
    prepare(begun)
    with write_artifact(begun.cohort, Cohort.KIND, {}):
        pass
    write_model(begun.folder / "models" / "liver-ct")
    run_steps(begun, steps(begun))
    lines = [line.split() for line in written.read_text().splitlines()]
    trained = ["train-liver", "pseudo-label", "assemble-pool", "train-universal"]
    assert [line[0] for line in lines] == [*trained, "evaluate"]
    assert lines[0][1:3] == ["--modality", "MR"]
    assert set(begun.seconds) == {"train-liver MR", *trained[1:], "evaluate"}


def test_a_cohort_is_read_by_the_split_of_the_fold_or_by_its_own(tmp_path):
    ingest = steps(fold(tmp_path))[0].words
    assert ingest[ingest.index("--split-from") + 1] == "splits.csv"
    assert "--split-from" not in steps(fold(tmp_path, splits=""))[0].words


def test_a_failed_stage_is_named_and_a_stopped_one_resumes(tmp_path, calls):
    begun = fold(tmp_path)
    prepare(begun)
    calls(code=2)
    with pytest.raises(HeparError, match="fold-1: ingest ended with exit code 2"):
        run_steps(begun, steps(begun))
    calls(code=75)
    with pytest.raises(Preempted, match="to resume"):
        run_steps(begun, steps(begun))


def test_a_model_of_another_name_is_taken_over_whole(tmp_path):
    source, begun = fold(tmp_path, name="other"), fold(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        link_model(source, begun)
    write_model(source.model)
    link_model(source, begun)
    link_model(source, begun)
    names = {path.name for path in Path(begun.model).iterdir()}
    assert names == {"weights", "manifest.json"}
