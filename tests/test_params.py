"""Parameters: what is refused and in which words, presets, and what a component hands over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from hepar.errors import ParamsError
from hepar.params import (
    EvaluateParams,
    Params,
    PhantomParams,
    SamplingParams,
    SplitParams,
    dump_params,
    dump_sections,
    load_params,
    load_register_params,
    read_section,
)

ROOT = Path(__file__).parents[1]
PRESETS = [ROOT / "params.yaml", *sorted((ROOT / "params").glob("*.yaml"))]
EVALUATE: dict[str, Any] = {
    "overlap": 0.5,
    "threads": 1,
    "bootstrap_resamples": 10,
    "bootstrap_seed": 1,
    "variants": 2,
    "mirror_axes": ["x"],
    "tumour_threshold": None,
    "min_lesion_ml": 0.1,
}


@pytest.fixture
def values() -> dict[str, Any]:
    """The repository's params as plain values, to be changed at will."""
    loaded: dict[str, Any] = dump_params(load_params(ROOT / "params.yaml"))
    return loaded


def write(folder: Path, values: object, name: str = "own.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(values))
    return path


def refused(path: Path) -> str:
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    return str(caught.value)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_every_params_file_of_the_repository_is_valid(path: Path) -> None:
    assert isinstance(load_params(path), Params)


def test_there_is_a_preset_beside_the_params() -> None:
    assert len(PRESETS) >= 2  # an empty glob would leave the test above without presets


def test_dumped_params_load_to_the_same_params(tmp_path: Path, values: dict[str, Any]) -> None:
    assert load_params(write(tmp_path, values)) == load_params(ROOT / "params.yaml")


def test_a_promotion_reads_the_params_of_another_release(tmp_path: Path, values: dict[str, Any]) -> None:
    """What it needs of them is checked as strictly as ever."""
    whole = write(tmp_path, values)
    del values["cluster"]
    values["retrain"]["of_another_release"] = 1
    path = write(tmp_path, values, "older.yaml")
    assert "key cluster is missing" in refused(path)
    assert load_register_params(path) == load_params(whole).register_model
    values["register"]["gates"]["min_patients"] = "many"
    with pytest.raises(ParamsError, match=r"older\.yaml: register\.gates\.min_patients is 'many'"):
        load_register_params(write(tmp_path, values, "older.yaml"))
    del values["register"]
    with pytest.raises(ParamsError, match="key register is missing"):
        load_register_params(write(tmp_path, values, "older.yaml"))


@pytest.mark.parametrize("extends", [False, True])
def test_a_promotion_refuses_a_misspelt_section(tmp_path: Path, values: dict[str, Any], extends: bool) -> None:
    """It would be judged by the gates of the file that it extends; without one, none would be left."""
    write(tmp_path, values, "base.yaml")
    stricter = {"regster": values["register"] | {"model_name": "other"}}
    path = write(tmp_path, {"extends": "base.yaml", **stricter} if extends else stricter)
    missing = "" if extends else "key register is missing; "
    with pytest.raises(ParamsError) as caught:
        load_register_params(path)
    assert str(caught.value) == f"{path}: {missing}unknown key regster"
    if extends:
        assert refused(path) == str(caught.value)


def test_params_cannot_be_changed_once_they_are_read() -> None:
    params = load_params(ROOT / "params.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        params.ingest.max_refused_share = 1.0  # type: ignore[misc]


def test_an_unknown_key_is_named_with_its_file(tmp_path: Path, values: dict[str, Any]) -> None:
    values["ingest"]["split"]["tset"] = 0.2
    path = write(tmp_path, values)
    assert refused(path) == f"{path}: unknown key ingest.split.tset"


def test_a_missing_key_is_named_with_its_file(tmp_path: Path, values: dict[str, Any]) -> None:
    del values["evaluate"]["bootstrap_seed"]
    path = write(tmp_path, values)
    assert refused(path) == f"{path}: key evaluate.bootstrap_seed is missing"


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("ingest", "max_refused_share", 1.5, "less than or equal to 1"),
        ("evaluate", "bootstrap_resamples", 0, "greater than or equal to 1"),
        ("assemble_pool", "labels", "mixd", "'tumour', 'manual' or 'mixed'"),
        ("preprocessing", "window_hu", [250.0, -150.0], "must be ascending"),
        ("pseudo_label", "overlap", 1.0, "less than 1"),
    ],
)
def test_a_wrong_value_is_named_with_file_key_and_rule(
    tmp_path: Path, values: dict[str, Any], section: str, key: str, value: object, said: str
) -> None:
    values[section][key] = value
    path = write(tmp_path, values)
    message = refused(path)
    assert message.startswith(f"{path}: {section}.{key} is {value!r}: ")
    assert said in message


def test_all_mistakes_are_named_in_one_sentence(tmp_path: Path, values: dict[str, Any]) -> None:
    values["ingest"]["max_refused_share"] = 2
    values["evaluate"]["overlap"] = -1
    values["evaluate"]["threads"] = -1
    values["evaluate"]["overlaps"] = 0.5
    problems = refused(write(tmp_path, values)).removeprefix(f"{tmp_path / 'own.yaml'}: ").split("; ")
    names = ("ingest.max_refused_share is 2: ", "evaluate.overlap is -1: ", "evaluate.threads is -1: ")
    assert all(problem.startswith(name) for name, problem in zip(names, problems, strict=False))
    assert problems[3:] == ["unknown key evaluate.overlaps"]


def test_the_teacher_of_a_warm_start_must_be_trained(tmp_path: Path, values: dict[str, Any]) -> None:
    values["modalities"] = ["MR"]
    values["train_universal"]["warm_start"] = "CT"
    path = write(tmp_path, values)
    assert refused(path) == f"{path}: train_universal.warm_start is CT, but modalities is MR"
    for warm_start in ("MR", "none", "models:/name@champion"):
        values["train_universal"]["warm_start"] = warm_start
        assert load_params(write(tmp_path, values)).train_universal.warm_start == warm_start


@pytest.mark.parametrize(("modalities", "said"), [([], "at least 1 item"), (["PET"], "'CT' or 'MR'")])
def test_a_model_learns_ct_mr_or_both(tmp_path: Path, values: dict[str, Any], modalities: list[str], said: str) -> None:
    values["modalities"] = modalities
    assert said in refused(write(tmp_path, values))


def test_shares_of_patch_centres_add_up_to_one_at_most() -> None:
    read_section(SamplingParams, {"tumour_share": 0.5, "tumour_free_share": 0.25, "liver_share": 0.25})
    with pytest.raises(ParamsError, match=r"1\.25 but must be at most 1"):
        read_section(SamplingParams, {"tumour_share": 0.5, "tumour_free_share": 0.25, "liver_share": 0.5})


def test_the_fractions_held_out_leave_patients_to_train_on() -> None:
    read_section(SplitParams, {"test": 0.5, "val": 0.25})
    with pytest.raises(ParamsError, match=r"test \+ val is 1\.25 but must be below 1"):
        read_section(SplitParams, {"test": 0.75, "val": 0.5})
    with pytest.raises(ParamsError, match=r"test \+ val is 1\.0 but must be below 1"):
        read_section(SplitParams, {"test": 0.75, "val": 0.25})


def test_a_probability_by_modality_names_both(values: dict[str, Any], tmp_path: Path) -> None:
    augmentation = values["train_liver"]["training"]["augmentation"]
    augmentation["lesions"] = {"CT": 0.5}
    assert "train_liver.training.augmentation.lesions.MR is missing" in refused(write(tmp_path, values))
    augmentation["lesions"] = {"CT": 0.5, "MR": 1.5}
    assert "train_liver.training.augmentation.lesions.MR is 1.5: " in refused(write(tmp_path, values))
    augmentation["lesions"] = {"CT": 0.5, "MR": 0.25}
    loaded = load_params(write(tmp_path, values)).train_liver.training.augmentation
    assert (loaded.lesions.CT, loaded.lesions.MR) == (0.5, 0.25)


def test_the_settings_of_a_model_at_prediction_survive_an_orchestrator_without_null(values: dict[str, Any]) -> None:
    values["evaluate"] |= {"tumour_threshold": None, "min_lesion_ml": 0.0}
    handed = dump_sections(Params.model_validate(values))["evaluate"]
    assert handed["tumour_threshold"] == "null"
    section = read_section(EvaluateParams, handed)
    assert (section.tumour_threshold, section.min_lesion_ml) == (None, 0.0)


def test_a_preset_holds_only_what_differs_from_what_it_extends(tmp_path: Path, values: dict[str, Any]) -> None:
    write(tmp_path, values, "base.yaml")
    over = {"extends": "base.yaml", "evaluate": {"overlap": 0.125}}
    loaded = load_params(write(tmp_path, over))
    base = load_params(tmp_path / "base.yaml")
    assert loaded.evaluate == base.evaluate.model_copy(update={"overlap": 0.125})
    assert loaded.train_universal == base.train_universal


def test_a_preset_is_found_beside_the_file_that_extends_it_over_several_steps(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, values, "base.yaml")
    write(tmp_path / "deep", {"extends": "../base.yaml", "evaluate": {"threads": 3}}, "middle.yaml")
    last = write(tmp_path / "deep", {"extends": "middle.yaml", "evaluate": {"bootstrap_seed": 5}}, "last.yaml")
    evaluate = load_params(last).evaluate
    assert (evaluate.threads, evaluate.bootstrap_seed) == (3, 5)


def test_a_presets_network_config_replaces_the_whole_config(tmp_path: Path, values: dict[str, Any]) -> None:
    write(tmp_path, values, "base.yaml")
    over = {"extends": "base.yaml", "network": {"name": "segresnet", "config": {"init_filters": 4}}}
    assert load_params(write(tmp_path, over)).network.config == {"init_filters": 4}


def test_a_file_that_extends_itself_in_a_circle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"extends": "b.yaml"}, "a.yaml")
    write(tmp_path, {"extends": "a.yaml"}, "b.yaml")
    assert "extends itself" in refused(tmp_path / "a.yaml")


def test_a_missing_base_is_named_with_the_file_that_extends_it(tmp_path: Path) -> None:
    middle = write(tmp_path, {"extends": "../gone.yaml"}, "middle.yaml")
    write(tmp_path, {"extends": "middle.yaml"}, "last.yaml")
    assert refused(tmp_path / "last.yaml") == f"{middle} extends ../gone.yaml, which does not exist"


def test_a_file_that_is_missing_no_yaml_or_no_mapping_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.yaml") == f"params file {tmp_path / 'none.yaml'} does not exist"
    broken = tmp_path / "broken.yaml"
    broken.write_text("ingest: [1, 2\nevaluate: {")
    assert refused(broken).startswith(f"{broken} is not YAML: ")
    assert "\n" not in refused(broken)
    assert "must be a mapping" in refused(write(tmp_path, ["ingest"]))


def test_whole_numbers_that_an_orchestrator_hands_over_as_floats_are_read() -> None:
    handed = {"cases": 8.0, "seed": 3.0, "size_zyx": [24.0, 40.0, 40.0], "labels": "partial"}
    section = read_section(PhantomParams, handed)
    assert section == PhantomParams(cases=8, seed=3, size_zyx=(24, 40, 40), labels="partial")
    assert isinstance(section.seed, int)


def test_a_broken_number_is_not_taken_for_a_whole_one() -> None:
    with pytest.raises(ParamsError, match=r"PhantomParams: cases is 8\.5"):
        read_section(PhantomParams, {"cases": 8.5, "seed": 3, "size_zyx": [24, 40, 40], "labels": "full"})


def test_a_section_by_itself_is_checked_as_strictly_as_in_a_file() -> None:
    assert read_section(EvaluateParams, EVALUATE).overlap == 0.5
    with pytest.raises(ParamsError, match="EvaluateParams: unknown key tta"):
        read_section(EvaluateParams, {**EVALUATE, "tta": 1})
    with pytest.raises(ParamsError, match="EvaluateParams: key overlap is missing"):
        read_section(EvaluateParams, {key: value for key, value in EVALUATE.items() if key != "overlap"})
