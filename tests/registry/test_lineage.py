"""Lineage: every link of a run where its folders are there, where only MLflow is left, and where nothing is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
from toy_lineage import COMMIT, IMAGE, KFP, LICENCE, NAME, PATIENT, ToyRun, copied_run, finished_run, hash_of, train

from hepar.cases import Cohort
from hepar.errors import ArtifactError, DataError, NotConfigured, StorageError
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params
from hepar.registry.lineage import FILE, Lineage, LinkState, Node, trace_folder, trace_version
from hepar.registry.lineage_folders import ArtifactFolders
from hepar.registry.lineage_records import LINEAGE, Record
from hepar.registry.lineage_server import server_records
from hepar.registry.model_registry import COHORT_TAG
from hepar.registry.registration import Registration
from hepar.registry.tracking import MODEL_TAG
from hepar.runtime.artifacts import MANIFEST, read_any_manifest, write_artifact
from hepar.runtime.environment import STORE_VARIABLE
from hepar.runtime.object_store import Store
from hepar.runtime.stored_versions import publish

pytestmark = pytest.mark.filterwarnings("ignore:.*inferred as AnyType")  # MLflow, of a type of its own
VERSION = f"models:/{NAME}/1"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Params) -> ToyRun:
    return finished_run(tmp_path_factory, tiny)


@pytest.fixture
def run(finished: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyRun:
    """A copy of the run's folders, with its MLflow server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished.folder / 'mlflow.db'}")
    return copied_run(finished, tmp_path / "run")


@contextmanager
def no_remote(version: str) -> Iterator[Path]:
    raise StorageError(f"the remote does not have version {version}")
    yield


def from_registry(*roots: Path) -> Lineage:
    with server_records() as server:
        return trace_version(f"models:/{NAME}@champion", roots, server, no_remote)


def states(found: Lineage) -> dict[str, str]:
    """The state of each node, by its kind; by its role for a model."""
    return {str(node.facts.get(ModelFolder.ROLE, node.kind)): node.state.name for node in found.nodes.values()}


def node(found: Lineage, folder: Path) -> Node:
    return found.nodes[hash_of(folder)]


KINDS = ("registered version", "universal", "liver teacher CT", "pseudo-labels", "pool", "cohort", "report")


def test_with_all_folders_every_link_can_be_opened(run: ToyRun) -> None:
    found = from_registry(run.folder)
    assert states(found) == dict.fromkeys(KINDS, "HERE")
    assert found.root == VERSION
    root = found.nodes[VERSION]
    assert root.parents == {"model": hash_of(run.model), "report": hash_of(run.report)}
    assert (root.facts["aliases"], root.facts["decision"]) == ("champion", "promoted")
    model = node(found, run.model)
    assert model.parents == {"pool": hash_of(run.pool), "warm start": hash_of(run.teacher)}
    assert [place.where for place in model.places] == ["folder", "registry"]
    assert model.parameters["training.seed"] == "1"
    assert node(found, run.pool).parents == {"cohort": hash_of(run.cohort), "pseudo-labels": hash_of(run.pseudo)}
    assert node(found, run.pseudo).parents == {"cohort": hash_of(run.cohort), "teacher-CT": hash_of(run.teacher)}
    assert node(found, run.teacher).parents == {"cohort": hash_of(run.cohort)}
    assert node(found, run.cohort).parents == {}
    for opened in found.nodes.values():
        for place in opened.places:
            assert place.problem or place.where != "folder" or (Path(place.address) / MANIFEST).is_file()


def test_cases_have_hash_source_licence_and_file(run: ToyRun) -> None:
    cases = node(from_registry(run.folder), run.cohort).cases
    assert cases is not None
    first, second = cases.to_dict(orient="records")
    assert (first["case_id"], first["source"], first["licence"], first["split"]) == ("a", "LiTS", LICENCE, "train")
    assert first["image_sha256"] == read_any_manifest(run.cohort).files["volumes/a/image.nii.gz"]
    assert first[FILE] == str(run.cohort / "volumes" / "a" / "image.nii.gz")
    assert (second["liver_state"], second["liver_sha256"]) == ("unknown", "")


def test_an_image_that_is_gone_is_said_to_be_gone(run: ToyRun) -> None:
    (run.cohort / "volumes" / "a" / "image.nii.gz").unlink()
    cohort = node(from_registry(run.folder), run.cohort)
    assert cohort.cases is not None
    assert [bool(file) for file in cohort.cases[FILE]] == [False, True]
    folder = cohort.places[0]
    assert folder.problem == "1 of 7 files are missing or of another size, such as volumes/a/image.nii.gz"
    assert cohort.state == LinkState.RECORDED


def test_from_the_registry_alone_the_tree_is_complete(run: ToyRun, tmp_path: Path) -> None:
    here = from_registry(run.folder)
    alone = from_registry(tmp_path / "empty")
    assert {key: kept.parents for key, kept in alone.nodes.items()} == {
        key: kept.parents for key, kept in here.nodes.items()
    }
    assert states(alone) == {
        **dict.fromkeys(("registered version", "universal", "report"), "HERE"),
        **dict.fromkeys(("liver teacher CT", "pseudo-labels", "pool", "cohort"), "RECORDED"),
    }
    for folder in (run.cohort, run.pool):
        before, after = node(here, folder).cases, node(alone, folder).cases
        assert before is not None
        assert after is not None
        assert after.drop(columns=FILE, errors="ignore").equals(before.drop(columns=FILE, errors="ignore"))
    cohort = node(alone, run.cohort).cases
    assert cohort is not None
    assert cohort[FILE].tolist() == ["", ""]
    assert node(alone, run.cohort).refused == node(here, run.cohort).refused == ("c",)
    assert node(alone, run.pool).refused is None


def test_commit_image_and_kfp_run_stand_by_the_version_and_by_each_training(run: ToyRun) -> None:
    found = from_registry(run.folder)
    known = {"git commit": COMMIT, "image": IMAGE, "kfp run": KFP}
    for told in (found.nodes[VERSION], node(found, run.model), node(found, run.teacher)):
        assert {name: told.facts[name] for name in known} == known


def test_what_no_run_has_recorded_is_not_known(run: ToyRun) -> None:
    found = trace_folder(run.model, (), None, no_remote)
    model = node(found, run.model)
    assert [model.facts[name] for name in ("git commit", "image", "kfp run")] == [None, None, None]
    assert model.parameters == {}


def test_facts_of_execution_are_in_no_artifact(run: ToyRun) -> None:
    texts = [path.read_bytes() for path in run.folder.rglob("*") if path.is_file()]
    assert len(texts) > 20
    assert not [text for text in texts if IMAGE.encode() in text or KFP.encode() in text]


def test_without_server_and_folders_only_hashes_are_left(run: ToyRun) -> None:
    found = trace_folder(run.model, (), None, no_remote)
    assert states(found) == {"universal": "HERE", "pool": "GONE", "model": "GONE"}
    assert found.nodes[hash_of(run.pool)].places[0].problem.startswith("the remote does not have version")
    assert set(found.nodes) == {hash_of(place) for place in (run.model, run.pool, run.teacher)}


def test_a_pool_whose_remote_is_not_configured_says_so_in_few_words(run: ToyRun) -> None:
    @contextmanager
    def unknown_remote(version: str) -> Iterator[Path]:
        raise NotConfigured("pass --remote, or set a variable, or do something else that takes a line to explain")
        yield

    found = trace_folder(run.model, (), None, unknown_remote)
    assert found.nodes[hash_of(run.pool)].places[0].problem == "none is configured, see --remote"


def test_a_pool_without_the_tracking_server_tells_the_teachers_of_its_pseudo_labels(run: ToyRun) -> None:
    shutil.rmtree(run.pseudo)
    found = trace_folder(run.pool, (run.folder,), None, no_remote)
    assert node_states(found, pool="HERE", cohort="HERE")
    lost = next(kept for kept in found.nodes.values() if kept.kind == "pseudo-labels")
    assert (lost.state, lost.parents["teacher-CT"]) == (LinkState.RECORDED, hash_of(run.teacher))


def node_states(found: Lineage, **wanted: str) -> bool:
    return all(states(found)[kind] == state for kind, state in wanted.items())


def test_a_working_directory_starts_at_the_version_that_it_registered(run: ToyRun) -> None:
    with server_records() as server:
        found = trace_folder(run.folder, (), server, no_remote)
    assert found.root == VERSION
    assert states(found) == dict.fromkeys(KINDS, "HERE")


def test_a_registration_outlives_its_registry(run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'new.db'}")
    with server_records() as server:
        found = trace_folder(run.folder, (), server, no_remote)
    root = found.nodes[VERSION]
    assert root.state == LinkState.RECORDED
    assert "is not in the registry at" in root.places[0].problem
    assert root.parents == {"model": hash_of(run.model)}
    assert node(found, run.model).state == LinkState.HERE
    assert found.nodes.keys() > {hash_of(run.pool), hash_of(run.cohort), hash_of(run.pseudo)}
    shutil.rmtree(run.registration)
    assert trace_folder(run.folder, (), None, no_remote).root == hash_of(run.model)


def test_a_version_of_another_registry_with_the_same_number_is_not_taken_for_it(
    run: ToyRun, tiny: Params, tmp_path: Path
) -> None:
    shutil.rmtree(run.model)
    train(run.model, tiny, {ModelFolder.ROLE: ModelFolder.UNIVERSAL}, ())
    loaded = Registration.load(run.registration)
    with write_artifact(run.registration, Registration.KIND, {ModelFolder.KIND: hash_of(run.model)}) as partial:
        loaded.save(partial)
    with server_records() as server:
        root = trace_folder(run.folder, (), server, no_remote).nodes[VERSION]
    assert root.places[0].problem == "this registry has another model under its number"


def test_a_pool_is_opened_on_the_remote_unless_that_holds_another(run: ToyRun, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    shutil.move(run.pool, kept)

    @contextmanager
    def remote(version: str) -> Iterator[Path]:
        assert version == read_any_manifest(run.model).parents["pool version"]
        yield kept

    pool = trace_folder(run.model, (), None, remote).nodes[hash_of(kept)]
    assert (pool.state, pool.places[0].where) == (LinkState.HERE, "DVC remote")
    assert pool.cases is not None
    assert pool.cases.case_id.tolist() == ["a"]
    assert pool.parents["pseudo-labels"] == hash_of(run.pseudo)
    shutil.rmtree(kept)
    shutil.copytree(run.cohort, kept)
    other = trace_folder(run.model, (), None, remote)
    problems = [
        place.problem for found in other.nodes.values() for place in found.places if place.where == "DVC remote"
    ]
    assert problems == [f"it is cohort {hash_of(kept)[:12]}"]


def test_a_cohort_by_reference_is_there_as_long_as_the_store_has_it(
    run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "own.db"  # the version gets a tag
    shutil.copy(mlflow.get_tracking_uri().removeprefix("sqlite:///"), database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    cohort_hash, store = hash_of(run.cohort), Store(str(tmp_path / "store"))
    version = publish(run.cohort, (Cohort.VOLUMES,), store)
    mlflow.MlflowClient(f"sqlite:///{database}").set_model_version_tag(NAME, "1", COHORT_TAG, version)

    def cohort() -> Node:
        return from_registry(run.folder).nodes[cohort_hash]

    places = {place.where: place.problem for place in cohort().places}
    assert places["folder"].endswith(f"files are in a store: set {STORE_VARIABLE} to it")
    assert places["store"] == f"none is configured, set {STORE_VARIABLE}"
    assert cohort().state == LinkState.RECORDED
    monkeypatch.setenv(STORE_VARIABLE, store.url)
    assert [(place.where, place.problem) for place in cohort().places] == [("folder", ""), ("store", "")]
    shutil.rmtree(run.cohort)
    (only,) = cohort().places
    assert (only.where, only.address, only.problem) == ("store", version, "")
    cases = cohort().cases
    assert cases is not None
    assert cases[FILE].str.endswith(f"of version {version} in the store").all()
    with monkeypatch.context() as older:
        older.setattr("hepar.registry.lineage_server.LoggedRun.refused", lambda *given: None)
        assert cohort().refused == ("c",)
    shutil.rmtree(store.url)
    assert cohort().state == LinkState.RECORDED


def test_members_of_an_ensemble_lead_to_their_own_trainings(run: ToyRun, tiny: Params, tmp_path: Path) -> None:
    record = Record(ModelFolder.KIND, "e" * 64, {ModelFolder.member_name(1): hash_of(run.teacher), "fold": "x"})
    assert record.links == {"member 1": (ModelFolder.KIND, hash_of(run.teacher))}
    assert record.facts == {"fold": "x"}


def test_a_report_that_its_run_has_lost_is_gone(run: ToyRun, finished: ToyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = finished.folder / "mlartifacts"
    (held,) = artifacts.rglob(f"report/*/{MANIFEST}")
    text = held.read_bytes()
    held.unlink()
    try:
        found = from_registry()
    finally:
        held.write_bytes(text)
    report = node(found, run.report)
    assert (report.state, report.places[0].problem) == (LinkState.GONE, "not in this run")


def test_what_trainings_log_is_small_and_the_same_again_and_names_no_patient(run: ToyRun, tiny: Params) -> None:
    client = mlflow.MlflowClient()
    (trained,) = mlflow.search_runs(
        search_all_experiments=True, filter_string=f"tags.`{MODEL_TAG}` = '{hash_of(run.model)}'", output_format="list"
    )
    names = [Path(file.path).name for file in client.list_artifacts(trained.info.run_id, LINEAGE)]
    assert names == [
        f"model-{hash_of(run.teacher)[:12]}.json",
        f"pool-{hash_of(run.pool)[:12]}.csv",
        f"pool-{hash_of(run.pool)[:12]}.json",
    ]
    artifacts = Path(trained.info.artifact_uri.removeprefix("file://")).parents[1]
    texts = [path.read_text() for path in artifacts.rglob(f"{LINEAGE}/*")]
    assert len(texts) == 6  # and those of the teacher: cohort as JSON and CSV, and the ids of the cases it refused
    assert not [text for text in texts if PATIENT in text or "secret" in text or len(text) > 2000]


def test_folders_that_are_none_are_refused(run: ToyRun, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="neither an artifact nor the working directory of a run"):
        trace_folder(tmp_path / "empty", (), None, no_remote)
    with server_records() as server:
        with pytest.raises(DataError, match=f"models:/{NAME}/9 is not in the registry"):
            trace_version(f"models:/{NAME}/9", (), server, no_remote)
        with pytest.raises(DataError, match="models:/x must be models:/NAME@ALIAS or models:/NAME/VERSION"):
            trace_version("models:/x", (), server, no_remote)


def test_a_damaged_manifest_is_no_artifact(run: ToyRun) -> None:
    text, pool = (run.pool / MANIFEST).read_text(), hash_of(run.pool)
    (run.pool / MANIFEST).write_text(text.replace("pool", "loop", 1))
    folders = ArtifactFolders([run.folder])
    assert [problem.split(" is damaged")[0] for problem in folders.damaged] == [str(run.pool / MANIFEST)]
    found = from_registry(run.folder)
    assert found.nodes[pool].state == LinkState.RECORDED
    assert list(found.damaged) == folders.damaged
