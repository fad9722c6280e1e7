"""A study compiled for Kubeflow: every step of every cell is one task, with the params of its arm."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_study import write_study

from hepar.errors import ParamsError
from hepar.runtime import s3_client
from hepar.runtime.environment import STORE_VARIABLE
from pipelines.execution import ONE_MACHINE_VARIABLE
from pipelines.studies.cluster import compile_study
from pipelines.studies.definition import load_study
from pipelines.studies.gathering import stored_name
from pipelines.studies.plan import plan_cells, unique_steps

ARMS = {
    "universal": {"train_universal.training.batch_size": 4},
    "CT only": {"modalities": ["CT"]},
    "tumour labels": {"assemble_pool.labels": "tumour"},
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The file of a study and the specification of its pipeline."""
    folder = tmp_path_factory.mktemp("study")
    study = write_study(folder, arms=ARMS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ONE_MACHINE_VARIABLE, "1")  # the image has no digest
        compile_study(study, folder / "built" / "study.yaml", "s3://scans/all")
    return study, next(yaml.safe_load_all((folder / "built" / "study.yaml").read_text()))


def tasks(specification: dict[str, Any]) -> list[dict[str, Any]]:
    return list(specification["root"]["dag"]["tasks"].values())


def constants(task: dict[str, Any]) -> dict[str, Any]:
    inputs = task["inputs"]["parameters"]
    return {name: value["runtimeValue"]["constant"] for name, value in inputs.items() if "runtimeValue" in value}


def stage_of(task: dict[str, Any]) -> str:
    return str(task["taskInfo"]["name"]).split(": ")[-1].split("-CT")[0].split("-MR")[0]


def test_every_step_is_one_task(compiled: tuple[Path, dict[str, Any]]) -> None:
    """Two seeds: one cohort, two teachers and pseudo-labels a seed, and pool, training and report of three arms."""
    found = Counter(stage_of(task) for task in tasks(compiled[1]))
    assert found == {
        "ingest": 1,
        "train-liver": 4,
        "pseudo-label": 2,
        "assemble-pool": 6,
        "train-universal": 6,
        "evaluate": 6,
    }
    assert sum(found.values()) == len(unique_steps(plan_cells(load_study(compiled[0]))))


def test_each_arm_has_its_params(compiled: tuple[Path, dict[str, Any]]) -> None:
    by_name = {task["taskInfo"]["name"]: task for task in tasks(compiled[1])}
    for seed in (1, 2):
        for arm, modalities, labels in (
            ("universal", ["CT", "MR"], "mixed"),
            ("CT only", ["CT"], "mixed"),
            ("tumour labels", ["CT", "MR"], "tumour"),
        ):
            pool = constants(by_name[f"{arm}, seed {seed}: assemble-pool"])
            assert (pool["modalities"], pool["params"]["labels"]) == (modalities, labels)
            training = constants(by_name[f"{arm}, seed {seed}: train-universal"])["params"]["training"]
            assert training["seed"] == seed
            batch, steps = (4, 8) if arm == "universal" else (2, 16)  # for both modalities; one takes half
            assert (training["batch_size"], training["steps"]) == (batch, steps)
    ingest = constants(by_name["universal, seed 1: ingest"])
    assert (ingest["source"], ingest["modalities"]) == ("s3://scans/all", ["CT", "MR"])
    assert constants(by_name["universal, seed 2: train-liver-MR"])["modality"] == "MR"


def test_each_report_is_of_the_model_of_its_arm(compiled: tuple[Path, dict[str, Any]]) -> None:
    by_key = compiled[1]["root"]["dag"]["tasks"]
    cells = plan_cells(load_study(compiled[0], "s3://scans/all"))
    names = {cell.title: stored_name(cell.steps[-1]) for cell in cells}  # where `hepar study --gather` looks
    for task in tasks(compiled[1]):
        if stage_of(task) != "evaluate":
            continue
        model = task["inputs"]["artifacts"]["model"]["taskOutputArtifact"]["producerTask"]
        cell = task["taskInfo"]["name"].split(": ")[0]
        assert constants(task)["stored_name"] == names[cell]
        assert by_key[model]["taskInfo"]["name"] == f"{cell}: train-universal"
        pool = by_key[model]["inputs"]["artifacts"]["pool"]["taskOutputArtifact"]["producerTask"]
        assert by_key[pool]["taskInfo"]["name"] == f"{cell}: assemble-pool"


def test_every_task_gets_what_its_step_asks_for(compiled: tuple[Path, dict[str, Any]]) -> None:
    built = compiled[0].parent / "built" / "study.yaml"
    _, platform = yaml.safe_load_all(built.read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    assert len(executors) == len(tasks(compiled[1]))
    assert not any("retryPolicy" in task for task in tasks(compiled[1]))  # it was compiled to run on one machine
    for executor in executors:
        assert "hepar-image" in executor["podMetadata"]["annotations"]
        assert int(executor["activeDeadlineSeconds"]) > 0


def test_folds_of_a_teacher_are_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folds and what gathers them, for each modality; the cells use what was gathered."""
    monkeypatch.setenv(ONE_MACHINE_VARIABLE, "1")
    study = write_study(tmp_path, common={"train_liver.folds": 2}, seeds=[1])
    compile_study(study, tmp_path / "study.yaml", "s3://scans/all")
    specification = next(yaml.safe_load_all((tmp_path / "study.yaml").read_text()))
    names = [task["taskInfo"]["name"].removeprefix("universal, seed 1: ") for task in tasks(specification)]
    teachers = [f"train-liver-{modality}{fold}" for modality in ("CT", "MR") for fold in (" 1/2", " 2/2", "")]
    assert sorted(name for name in names if name.startswith("train-liver")) == sorted(teachers)
    by_key = specification["root"]["dag"]["tasks"]
    (pseudo,) = [task for task in tasks(specification) if task["taskInfo"]["name"].endswith(": pseudo-label")]
    given = pseudo["inputs"]["artifacts"]["teacher_mr"]["taskOutputArtifact"]["producerTask"]
    assert by_key[given]["taskInfo"]["name"] == "universal, seed 1: train-liver-MR"
    assert by_key[given]["componentRef"]["name"].startswith("comp-gather-folds")


def test_an_image_by_its_tag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="is named by a tag, but a cluster needs a digest"):
        compile_study(write_study(tmp_path), tmp_path / "study.yaml", None)


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"--cluster is .*study\.json but its name must end in \.yaml"):
        compile_study(write_study(tmp_path), tmp_path / "study.json", None)


@pytest.fixture
def store(bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of the S3 server, where HEPAR_STORE is a prefix of the only bucket."""
    for name, value in {**bucket, STORE_VARIABLE: "s3://pools/store", ONE_MACHINE_VARIABLE: "1"}.items():
        monkeypatch.setenv(name, value)
    s3_client.client.cache_clear()
    yield s3_client.client()
    s3_client.client.cache_clear()


def remote_table(phantom_source: Path) -> str:
    """The table of phantoms with its files below s3://scans/all, some of them by their whole address."""
    header, first, *others = (phantom_source / "cohort.csv").read_text().splitlines()
    image = first.split(",")[header.split(",").index("image")]
    return "\n".join([header, first.replace(image, f"s3://scans/all/{image}"), *others]) + "\n"


def read_object(store: Any, address: str) -> list[dict[str, str]]:
    name, _, key = address.removeprefix("s3://").partition("/")
    return list(csv.DictReader(store.get_object(Bucket=name, Key=key)["Body"].read().decode().splitlines()))


def test_the_tables_of_folds_go_to_the_store(store: Any, tmp_path: Path, phantom_source: Path) -> None:
    """Each fold reads the same table, without the test patients of the source, by a split table of its own."""
    store.put_object(Bucket="pools", Key="scans/all/cohort.csv", Body=remote_table(phantom_source).encode())
    study = write_study(tmp_path, folds=2, seeds=[1])
    compile_study(study, tmp_path / "study.yaml", "s3://pools/scans/all/cohort.csv")
    specification = next(yaml.safe_load_all((tmp_path / "study.yaml").read_text()))
    ingests = [constants(task) for task in tasks(specification) if stage_of(task) == "ingest"]
    (source,) = {given["source"] for given in ingests}
    assert source.startswith("s3://pools/store/studies/")
    rows = read_object(store, source)
    with (phantom_source / "cohort.csv").open() as stream:
        originals = {row["case_id"]: row for row in csv.DictReader(stream)}
    assert {row["case_id"] for row in rows} == {name for name, row in originals.items() if row["split"] != "test"}
    for row in rows:
        image = originals[row["case_id"]]["image"]
        assert row["image"] in (f"s3://pools/scans/all/{image}", f"s3://scans/all/{image}")
    splits = [read_object(store, given["params"]["split_from"]) for given in ingests]
    assert len(splits) == 2
    tested = [row["case_id"] for split in splits for row in split if row["split"] == "test"]
    assert len(tested) == len(set(tested)) > 0
    names = {task["taskInfo"]["name"] for task in tasks(specification)}
    assert {"universal, seed 1, fold 1: evaluate", "CT only, seed 1, fold 2: evaluate"} <= names


def test_folds_that_a_cluster_cannot_read_are_refused(
    store: Any, tmp_path: Path, phantom_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, package = write_study(tmp_path, folds=2), tmp_path / "study.yaml"
    with pytest.raises(ParamsError, match=r"source .*cohort.csv: the image of case \S+ is /.*, which a cluster cannot"):
        compile_study(study, package, str(phantom_source / "cohort.csv"))
    with pytest.raises(ParamsError, match="folds is 2, but the source s3://pools/scans is no table: set folds to 1"):
        compile_study(study, package, "s3://pools/scans")
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path))
    with pytest.raises(ParamsError, match=r"folds is 2: their tables go to .*, so set HEPAR_STORE to its address"):
        compile_study(study, package, "s3://pools/scans/all/cohort.csv")
    with pytest.raises(ParamsError, match=r"source scans/cohort.csv is a path on this machine, which a cluster cannot"):
        compile_study(write_study(tmp_path), package, "scans/cohort.csv")
    assert not package.exists()


def test_nothing_is_stored_for_a_pipeline_that_cannot_be_compiled(
    store: Any, tmp_path: Path, phantom_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_object(Bucket="pools", Key="other/cohort.csv", Body=remote_table(phantom_source).encode())
    monkeypatch.setenv(STORE_VARIABLE, "s3://pools/unused")
    monkeypatch.delenv(ONE_MACHINE_VARIABLE)
    with pytest.raises(ParamsError, match="is named by a tag"):
        compile_study(write_study(tmp_path, folds=2), tmp_path / "study.yaml", "s3://pools/other/cohort.csv")
    assert "Contents" not in store.list_objects_v2(Bucket="pools", Prefix="unused/")


@pytest.mark.parametrize("name", ["a" * 117, "a_b"])
def test_a_name_that_kfp_refuses_ends_in_a_sentence(tmp_path: Path, name: str) -> None:
    study = write_study(tmp_path).rename(tmp_path / f"{name}.yaml")
    with pytest.raises(ParamsError, match=rf"^study {name}: its pipeline would be hepar-study-{name}, but KFP takes"):
        compile_study(study, tmp_path / "built" / "study.yaml", "phantoms")
    assert not (tmp_path / "built").exists()


def test_the_longest_name_that_kfp_takes_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ONE_MACHINE_VARIABLE, "1")
    study = write_study(tmp_path, seeds=[1]).rename(tmp_path / f"{'A' * 116}.yaml")
    compile_study(study, tmp_path / "study.yaml", "phantoms")
    assert (tmp_path / "study.yaml").is_file()
