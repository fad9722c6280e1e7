"""Data by reference: what the steps of a pipeline move, through a proxy that counts, before a real S3 server.

The steps are the components that the pipeline is compiled from, each with an empty cache and with artifacts that are
copied to it, as a launcher does; the cluster around them is a stand-in. All tests look at one run in folders and two
with a store, of which the second has two cases more.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from counting_proxy import Traffic, counting_proxy
from services import s3_client as bucket_client
from services import s3_server

from components import stages
from hepar.cases import Case, Cohort, LabelState, Modality, Split
from hepar.evaluation.report_folder import Report
from hepar.params import Params, dump_sections, override_params
from hepar.phantoms import write_phantoms
from hepar.pool.table import Pool, PoolEntry
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.registry.model_registry import cohort_version, pool_version
from hepar.runtime import remote_cache, s3_client
from hepar.runtime.artifacts import dvc_version, read_any_manifest
from hepar.runtime.environment import STORE_VARIABLE
from hepar.runtime.fetching import complete
from hepar.runtime.stored_files import REFERENCE, read_stored
from hepar.runtime.verification import verify_artifact

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:.*inferred as AnyType"),  # MLflow, of a type of its own
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # connections of boto3 and MLflow
]

CASES, ADDED = 40, 2
MAX_ARTIFACT_BYTES = 1_000_000
STORE = "s3://store/hepar"
OBJECTS = "/store/hepar/files/md5/"
MODELS = ("liver-ct", "liver-mr", "universal")
SHORT = {"steps": 1, "warmup_steps": 0, "validate_every": 100}


class Artifact:
    """KFP's artifact, as a component sees it."""

    def __init__(self, path: Path) -> None:
        self.path, self.metadata = str(path), dict[str, Any]()

    def log_metric(self, metric: str, value: float) -> None:
        self.metadata[metric] = value


@dataclass
class Run:
    """One run of all steps: its artifacts, and what each step moved."""

    folder: Path
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    traffic: dict[str, Traffic] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        return Path(self.artifacts[name].path)

    def artifact_bytes(self, name: str) -> int:
        return sum(path.stat().st_size for path in self.path(name).rglob("*") if path.is_file())

    def sent(self, step: str) -> set[str]:
        """The MD5 of each object that a step wrote."""
        return {path.removeprefix(OBJECTS).replace("/", "") for path in self.traffic[step].sent}

    def fetched(self, step: str) -> set[str]:
        """The MD5 of each object that a step read."""
        return {path.removeprefix(OBJECTS).replace("/", "") for path in self.traffic[step].fetched}

    def md5(self, name: str, files: Iterable[str]) -> set[str]:
        """The MD5 of files of an artifact by reference; two may have the same content."""
        stored = read_stored(self.path(name)).files
        return {stored[file].md5 for file in files}


@dataclass
class Cluster:
    """Runs components one after another, in this process."""

    monkeypatch: pytest.MonkeyPatch
    traffic: Traffic
    folder: Path
    params: Params

    def run(self, name: str, source: Path, last: str = "register") -> Run:
        """All steps up to the last one, each with an empty cache."""
        sections, run = dump_sections(self.params), Run(self.folder / name)
        shared = {"experiment": "bytes"}
        settings = {"network": sections["network"], **shared}
        hashes: dict[str, Any] = {}

        def step(title: str, component: Any, output: str, inputs: Mapping[str, str], **arguments: Any) -> None:
            if last in run.traffic:
                return
            self.monkeypatch.setenv(remote_cache.FOLDER_VARIABLE, str(run.folder / "caches" / title))
            self.traffic.take()
            given = {place: self._copied(run, artifact, title) for place, artifact in inputs.items()}
            made = run.artifacts[output] = Artifact(run.folder / output)
            wanted = component.component_spec.inputs
            known = {place: value for place, value in {**hashes, **arguments}.items() if place in wanted}
            place, *more = [place for place in component.component_spec.outputs if place != "Output"]
            shown = {name: Artifact(run.folder / f"{output}-{name}") for name in more}  # what KFP's page shows
            hashes[_hash_name(output)] = component.python_func(**known, **given, **{place: made}, **shown)
            run.traffic[title] = self.traffic.take()

        both = ["CT", "MR"]
        step("ingest", stages.ingest, "cohort", {}, source=str(source), params=sections["ingest"], modalities=both)
        for modality in Modality:
            step(
                f"train-liver-{modality}", stages.train_liver, f"liver-{modality.lower()}", {"cohort": "cohort"},
                modality=modality, preprocessing=sections["preprocessing"], params=sections["train_liver"], **settings,
            )  # fmt: skip
        teachers = {"teacher_ct": "liver-ct", "teacher_mr": "liver-mr"}
        labelled = {"cohort": "cohort", **teachers}
        step("pseudo-label", stages.pseudo_label, "pseudo", labelled, params=sections["pseudo_label"])
        step(
            "assemble-pool", stages.assemble_pool, "pool", {"cohort": "cohort", "pseudo": "pseudo"},
            preprocessing=sections["preprocessing"], params=sections["assemble_pool"], modalities=both,
        )  # fmt: skip
        step(
            "train-universal", stages.train_universal, "universal", {"pool": "pool", **teachers},
            params=sections["train_universal"], **settings,
        )  # fmt: skip
        scored = {"cohort": "cohort", "model": "universal"}
        step("evaluate", stages.evaluate, "report", scored, params=sections["evaluate"])
        step(
            "register", stages.register, "registration", {**scored, "report": "report"},
            params=sections["register"], **shared,
        )  # fmt: skip
        return run

    def _copied(self, run: Run, artifact: str, step: str) -> Artifact:
        """A step's own copy of an artifact, as a launcher makes one."""
        return Artifact(Path(shutil.copytree(run.path(artifact), run.folder / "copies" / step / artifact)))


def _hash_name(output: str) -> str:
    names = {"liver-ct": "teacher_ct", "liver-mr": "teacher_mr", "universal": "model"}
    return f"{names.get(output, output)}_hash"


@dataclass(frozen=True)
class Runs:
    """The same cases in folders and through a store, and then with two cases more."""

    in_folders: Run
    first: Run
    second: Run
    versions: tuple[str, str]  # of the champion's cohort and pool after the first run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, empty_database: Path, tiny: Params) -> Runs:
    folder = tmp_path_factory.mktemp("bytes")
    params = override_params(
        tiny,
        {
            "train_liver": {"training": SHORT},
            "train_universal": {"training": SHORT},
            "pseudo_label": {"variants": 1},
            "evaluate": {"bootstrap_resamples": 10},
            "register": {"gates": {"bootstrap_resamples": 10}},
        },
        "test",
    )
    table = write_phantoms(folder / "source", CASES + ADDED, seed=5, size_zyx=(24, 40, 40))
    lines = table.read_text().splitlines(keepends=True)
    earlier = table.with_name("earlier.csv")
    earlier.write_text("".join(lines[: CASES + 1]))
    with s3_server(folder / "s3", ["store"]) as variables, pytest.MonkeyPatch.context() as patch:
        with counting_proxy(variables["AWS_ENDPOINT_URL"]) as (url, traffic):
            for name, value in {**variables, "AWS_ENDPOINT_URL": url}.items():
                patch.setenv(name, value)
            s3_client.client.cache_clear()
            cluster = Cluster(patch, traffic, folder, params)
            done: dict[str, Run] = {}
            versions = ("", "")
            for name, database, source, last in (
                ("folders", "folders", earlier, "evaluate"),
                ("first", "store", earlier, "register"),
                ("second", "store", table, "assemble-pool"),
            ):
                if not (place := folder / f"{database}.db").exists():
                    shutil.copy(empty_database, place)
                patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}")
                if database == "store":
                    patch.setenv(STORE_VARIABLE, STORE)
                done[name] = cluster.run(name, source, last)
                if name == "first":
                    champion = f"models:/{params.register_model.model_name}@champion"
                    versions = (cohort_version(champion), pool_version(champion))
            for name in ("cohort", "pseudo", "pool"):  # which later tests look at, without a store
                whole = shutil.copytree(done["first"].path(name), folder / "whole" / name)
                complete(whole)
            assert bucket_client(variables).list_objects_v2(Bucket="store", MaxKeys=1)["KeyCount"] == 1
        s3_client.client.cache_clear()
    return Runs(done["folders"], done["first"], done["second"], versions)


def test_artifacts_without_models_stay_below_a_megabyte(runs: Runs) -> None:
    for name, traffic in runs.first.traffic.items():
        print(f"{name:16} fetched {traffic.fetched.total():>9,} bytes, sent {traffic.sent.total():>9,} bytes")
    for name in sorted(runs.first.artifacts):
        size = runs.first.artifact_bytes(name)
        whole = f"{runs.in_folders.artifact_bytes(name):,}" if name in runs.in_folders.artifacts else "not made"
        print(f"{name:16} {size:>9,} bytes by reference, {whole:>9} in folders")
        shown = sum(path.stat().st_size for path in runs.first.folder.glob(f"{name}-*") if path.is_file())
        assert name in MODELS or size + shown < MAX_ARTIFACT_BYTES
    assert (runs.first.folder / "report-page").stat().st_size > 100_000, "the page is shown"
    assert not runs.first.path("report").joinpath(Report.PAGE).exists(), "what is shown is enough"
    for name in ("cohort", "pseudo", "pool", "report"):
        assert read_stored(runs.first.path(name)).files
        assert not list(runs.first.path(name).rglob("*.nii.gz")) + list(runs.first.path(name).rglob("*.b2nd"))


def test_hashes_and_metrics_equal_those_of_a_run_in_folders(runs: Runs) -> None:
    for name in ("cohort", *MODELS, "pseudo", "pool"):
        known, found = (read_any_manifest(run.path(name)) for run in (runs.in_folders, runs.first))
        assert (found.hash, found.parents) == (known.hash, known.parents)
    metrics = [(run.path("report") / Report.METRICS).read_bytes() for run in (runs.in_folders, runs.first)]
    assert metrics[0] == metrics[1]
    for name, kind in (("cohort", Cohort.KIND), ("pseudo", PseudoLabels.KIND), ("pool", Pool.KIND)):
        whole = runs.first.folder.parent / "whole" / name
        verify_artifact(whole, kind, deep=True)
        version = runs.first.artifacts[name].metadata["version"]
        assert version == dvc_version(whole) == dvc_version(runs.in_folders.path(name)), "the version that DVC gives"
    assert runs.versions == tuple(runs.first.artifacts[name].metadata["version"] for name in ("cohort", "pool"))
    assert not any(traffic.sent or traffic.fetched for traffic in runs.in_folders.traffic.values())


def test_steps_fetch_only_the_volumes_that_they_need(runs: Runs) -> None:
    first = runs.first
    cases = list(Cohort.load(first.path("cohort")))
    taught = [case for case in cases if case.split != Split.TEST and case.liver_state == LabelState.MANUAL]
    for modality in Modality:
        own = [name for case in taught if case.modality == modality for name in (case.image, case.liver)]
        fetched = first.fetched(f"train-liver-{modality}")
        assert fetched
        assert fetched <= first.md5("cohort", own)
    tested = [case for case in cases if case.split == Split.TEST]
    assert first.fetched("evaluate") == first.md5("cohort", volumes(tested))
    unlabelled = [case for case in cases if case.split != Split.TEST and case.liver_state == LabelState.UNKNOWN]
    images = [name for case in unlabelled for name in (case.image, case.tumour) if name]
    assert first.fetched("pseudo-label") == first.md5("cohort", images)
    pool = Pool.load(first.path("pool"))
    assert first.fetched("train-universal") == first.md5("pool", array_files(pool.entries))
    assert first.fetched("register") == first.md5("report", read_stored(first.path("report")).files)


def test_a_second_run_sends_its_two_new_cases_and_tables(runs: Runs) -> None:
    first, second = runs.first, runs.second
    cases = list(Cohort.load(second.path("cohort")))
    known = {case.case_id for case in Cohort.load(first.path("cohort"))}
    new = [case for case in cases if case.case_id not in known]
    assert len(new) == ADDED
    tables = [path for path in second.path("cohort").iterdir() if path.name != REFERENCE]
    volumes_sent = second.sent("ingest") & second.md5("cohort", volumes(cases))
    assert volumes_sent == second.md5("cohort", volumes(new))
    assert len(second.sent("ingest")) <= len(volumes_sent) + len(tables) + 1, "the list of files is one more"
    assert not second.fetched("ingest") & second.md5("cohort", volumes(cases))
    pools = [Pool.load(run.path("pool")) for run in (first, second)]
    keys = {(entry.case_id, entry.arrays.key) for entry in pools[0].entries}
    changed = [entry for entry in pools[1].entries if (entry.case_id, entry.arrays.key) not in keys]
    assert {case.case_id for case in new if case.split != Split.TEST} <= {entry.case_id for entry in changed}
    assert all(entry.liver.teacher or entry.case_id not in known for entry in changed), "the others are taken over"
    assert len(changed) < len(pools[1].entries)
    arrays_sent = second.sent("assemble-pool") & second.md5("pool", array_files(pools[1].entries))
    assert arrays_sent <= second.md5("pool", array_files(changed))


def array_files(entries: Iterable[PoolEntry]) -> list[str]:
    return [name for entry in entries for name in Pool.array_files(entry)]


def volumes(cases: Iterable[Case]) -> list[str]:
    return [name for case in cases for name in case.file_hashes]
