"""The file of a study: what is refused and how it is named, and the budget by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT
from toy_study import ARMS, CLAIM, write_study

from hepar.errors import ParamsError
from hepar.networks import cost
from hepar.params import Params, load_params, override_params
from pipelines.studies.budget import BudgetKind, budgeted, spending
from pipelines.studies.definition import load_study

STEPS = "train_universal.training.steps"


def refused(path: Path) -> str:
    with pytest.raises(ParamsError) as caught:
        load_study(path)
    return str(caught.value)


def test_an_arm_changes_the_params_that_all_share(tmp_path: Path) -> None:
    arms = {"a": {}, "b": {"assemble_pool.labels": "tumour", "evaluate": {}, "assemble_pool": {"margin_mm": 3.0}}}
    study = load_study(write_study(tmp_path, arms=arms, common={"experiment": "x"}, claims=[]), source="scans.csv")
    first, second = (arm.params for arm in study.arms)
    assert (first.assemble_pool.labels, second.assemble_pool.labels) == ("mixed", "tumour")
    assert (first.assemble_pool.margin_mm, second.assemble_pool.margin_mm) == (5.0, 3.0)
    assert {first.experiment, second.experiment} == {"x"}
    assert {first.source, second.source} == {"scans.csv"}
    assert study.name == "toy"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": {}}, r"^study .*toy\.yaml: arm: unknown key$"),
        ({"seeds": [1, 1]}, "seeds has a number twice"),
        ({"arms": {"only": {}}}, "arms: "),
        ({"arms": {"a|b": {}, "c": {}}}, r"arms\.a\|b"),
        ({"budget": "hours"}, "budget: "),
        ({"folds": 0}, "folds: "),
        ({"claims": [{**CLAIM, "arm": "MR only", "by": 0.0}]}, "'MR helps CT' names the unknown arm 'MR only'"),
        (
            {"claims": [{**CLAIM, "metric": "Dice", "by": 0.0}]},
            r"^study .*toy\.yaml: claim 'MR helps CT': metric 'Dice' is unknown: choose from liver Dice, ",
        ),
        (
            {"claims": [{**CLAIM, "than": "universal", "by": 0.0}]},
            r"^study .*toy\.yaml: claim 'MR helps CT' compares the arm 'universal' with itself$",
        ),
        ({"claims": [CLAIM]}, r"claims\.0\.by: "),
        ({"params": "none.yaml"}, "params file .*none.yaml does not exist"),
        ({"common": {"network.size": 3}}, r"toy\.yaml: common: unknown key network\.size$"),
        ({"arms": {**ARMS, "x": {"assemble_pool.label": "mixed"}}}, r"arm 'x': unknown key assemble_pool\.label$"),
        ({"arms": {**ARMS, "x": {"assemble_pool.labels": "all"}}}, r"arm 'x': assemble_pool\.labels is 'all'"),
        ({"arms": {**ARMS, "x": {"nothing.here": 1}}}, r"arm 'x': unknown key nothing\.here$"),
        ({"arms": {**ARMS, "x": {STEPS: 9}}}, rf"arm 'x' changes {STEPS}: the budget gives it$"),
        ({"arms": {**ARMS, "x": {"train_liver.training.seed": 9}}}, "arm 'x' changes train_liver.training.seed: seeds"),
        ({"arms": {**ARMS, "x": {"source": "y"}}}, "arm 'x' changes source: all arms learn from one source"),
        ({"arms": {**ARMS, "x": {"ingest.phantoms.seed": 9}}}, "arm 'x' changes ingest, so it needs teachers: own"),
        ({"arms": {**ARMS, "x": {"train_universal.warm_start": "MR", "modalities": ["CT"]}}}, "arm 'x': train_univers"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        load_study(write_study(tmp_path, **changes))


def test_a_source_that_names_a_patient_is_refused(tmp_path: Path) -> None:
    source = "dicomweb+https://server/dicom?PatientID=Jane"
    with pytest.raises(ParamsError, match="names a patient: leave the value empty and set HEPAR_") as caught:
        load_study(write_study(tmp_path), source=source)
    assert "Jane" not in str(caught.value)


def test_a_warm_start_from_a_teacher_of_another_network_is_refused(tmp_path: Path) -> None:
    arms = {"a": {"train_universal.warm_start": "CT"}, "b": {"train_universal.warm_start": "CT"}}
    other = {**arms["b"], "network": {"name": "unet", "config": {}}}
    load_study(write_study(tmp_path, arms=arms, claims=[]))
    assert "arm 'b' starts from a teacher of another network" in refused(
        write_study(tmp_path, arms={"a": arms["a"], "b": other}, claims=[])
    )


def test_a_file_that_is_missing_or_no_study_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    assert refused(path) == f"study {path} does not exist"
    path.write_text("[1]")
    assert refused(path) == f"study {path} must be a mapping"
    path.write_text("a: [1")
    assert refused(path).startswith(f"study {path} cannot be read: ")


def changed(params: Params, **overrides: object) -> Params:
    training = {f"train_universal.training.{name}": value for name, value in overrides.items()}
    return override_params(params, training, "test")


def test_a_budget_in_patches_makes_up_for_the_batch(tiny: Params) -> None:
    """8 steps of 2 patches are 16 patches: 4 steps of a batch of 4, 2 of 4 accumulated twice."""
    for overrides, steps in (({"batch_size": 4}, 4), ({"batch_size": 4, "accumulate": 2}, 2), ({}, 8)):
        training = budgeted(changed(tiny, **overrides), tiny, BudgetKind.PATCHES).train_universal.training
        assert training.steps == steps
        assert (training.warmup_steps, training.validate_every) == (max(1, steps // 4), steps // 2)


def test_each_modality_gets_as_many_patches_in_a_model_of_its_own(tiny: Params) -> None:
    both = spending(tiny)
    one = spending(override_params(tiny, {"modalities": ["CT"]}, "test"))
    assert (both.steps, both.patches) == (8, 8)
    assert (one.steps, one.patches) == (4, 8)
    assert (
        both.multiply_adds
        == one.multiply_adds
        == 8 * cost("medformer", tiny.network.config, (16, 32, 32)).multiply_adds
    )


def test_a_budget_in_multiply_adds_makes_up_for_the_network_and_the_patch(tiny: Params) -> None:
    first = changed(tiny, steps=100)
    network = {"network": {"name": "unet", "config": {"channels": [4, 8, 8, 8, 8]}}}
    ours = cost(first.network.name, first.network.config, (16, 32, 32)).multiply_adds
    theirs = cost("unet", {"channels": [4, 8, 8, 8, 8]}, (16, 32, 32)).multiply_adds
    assert ours != theirs
    arm = budgeted(override_params(first, network, "test"), first, BudgetKind.MULTIPLY_ADDS)
    assert arm.train_universal.training.steps == round(100 * ours / theirs)
    assert spending(arm).multiply_adds == pytest.approx(spending(first).multiply_adds, rel=0.02)
    half = budgeted(changed(first, batch_size=4), first, BudgetKind.MULTIPLY_ADDS)
    assert half.train_universal.training.steps == 50


@pytest.mark.parametrize("path", sorted((ROOT / "params" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_of_the_repository_is_valid(path: Path) -> None:
    study = load_study(path)
    base = load_params(path.parent / study.file.params)
    assert study.first.params.train_universal.training.steps >= 1
    assert base.register_model == study.base.register_model
