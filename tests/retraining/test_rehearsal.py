"""The whole loop against real S3, MLflow and PostgreSQL: scans arrive, are learned from once, or are refused.

CT phantoms of 24×40×40 voxels. The stages of a run share a process, to save imports: this one, or the one that is
killed. What KFP does between them is tested with `hepar run`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import services
import SimpleITK as sitk
import yaml
from click.testing import Result
from conftest import TINY
from in_process import forked_retraining, run_in_process
from inbox import opened_inbox
from typer.testing import CliRunner
from webhook_receiver import Receiver, receiver

import hepar.cli.retraining
from hepar.cases import Cohort
from hepar.cli.main import app
from hepar.cli.retraining import REFUSED
from hepar.params import CHAMPION, Params
from hepar.phantoms import write_phantoms
from hepar.pool.table import Pool
from hepar.pseudo_labels.review_page.session import ReviewSession
from hepar.registry.model_registry import PREVIOUS, RegisteredModel
from hepar.registry.tracking import connect
from hepar.retraining.folder import RetrainingFolder
from hepar.runtime import s3_client

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:.*inferred as AnyType"),  # MLflow, of a type of its own
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # connections of boto3 and MLflow
]
NAME, SECRET = "hepar-rehearsal", "a secret of the test"
FIRST = tuple(f"phantom-ct-{number:04}" for number in (0, 2, 4, 6, 8, 24))  # two test patients with tumours
ARRIVING = tuple(f"phantom-ct-{number:04}" for number in range(12, 24, 2))
POISONED = tuple(f"phantom-ct-{number:04}" for number in (26, 28, 30, 36))  # their livers lie elsewhere in the grid
UNDRAWN = "phantom-ct-0020"  # arrives without its liver, which is drawn later
TRAINING = {"steps": 60, "learning_rate": 0.01, "validate_every": 1000, "checkpoint_every": 1000}
SAMPLING = {"tumour_share": 0.3, "tumour_free_share": 0.1, "liver_share": 0.4}
WIDE = {
    **{"max_liver_drop": 0.9, "max_tumour_drop": 0.9, "max_recall_drop": 1.0, "max_false_lesions_rise": 1e3},
    **{"max_specificity_drop": 1.0, "max_false_ml_rise": 1e6},
}
Row = dict[str, str]


@dataclass(frozen=True)
class Servers:
    """Addresses and credentials of the running services, as variables of their clients."""

    variables: dict[str, str]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("services")
    hooks = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
    }
    with (
        services.postgres_server(folder) as database,
        services.s3_server(folder / "s3", buckets=("mlflow", "scans")) as s3,
        services.mlflow_server(folder, {**database, **s3, **hooks}) as mlflow,
    ):
        yield Servers({**s3, "MLFLOW_TRACKING_URI": mlflow})


@dataclass
class Site:
    """A bucket of scans with its table, the files to upload, and looks at it from working directories."""

    folder: Path
    variables: dict[str, str]
    rows: dict[str, Row]
    runner: Callable[..., Any] = run_in_process
    listed: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.s3 = services.s3_client(self.variables)

    def upload(self, rows: Sequence[Row]) -> None:
        """Put scans and the table into the bucket; the table lists these rows and no others."""
        for row in rows:
            for what in ("image", "liver", "tumour"):
                if row[what]:
                    self.s3.upload_file(str(self.folder / "phantoms" / row[what]), "scans", f"cohort/{row[what]}")
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        self.s3.put_object(Bucket="scans", Key="cohort/cohort.csv", Body=text.getvalue().encode())
        self.listed = list(rows)

    def words(self, workdir: str, *more: str) -> list[str]:
        params = ["--params", str(self.folder / "own.yaml"), "--workdir", str(self.folder / workdir)]
        return ["retrain", "--source", "s3://scans/cohort", *params, *more]

    def retrain(self, *more: str, workdir: str = "run") -> Result:
        return CliRunner().invoke(app, self.words(workdir, *more))

    @property
    def aliases(self) -> dict[str, str]:
        return RegisteredModel(connect(), NAME).aliases()

    def cases_of(self, kind: str) -> set[str]:
        """The cases that the champion's lineage names for its pool or cohort."""
        found = CliRunner().invoke(
            app, ["lineage", f"models:/{NAME}@champion", "--json", "--in", str(self.folder / "run")]
        )
        assert found.exit_code == 0, found.output
        nodes = [node for node in json.loads(found.stdout)["nodes"] if node["kind"] == kind]
        return {row["case_id"] for node in nodes for row in node["cases"]}


@pytest.fixture
def site(servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    s3_client.client.cache_clear()  # of another test's server
    for name, value in {**servers.variables, "HEPAR_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    write_phantoms(tmp_path / "phantoms", cases=38, seed=11, size_zyx=(24, 40, 40))
    with (tmp_path / "phantoms" / "cohort.csv").open() as stream:
        rows = {row["case_id"]: row for row in csv.DictReader(stream)}
    values = {
        "extends": str(TINY),
        "experiment": "rehearsal",
        "modalities": ["CT"],
        "train_liver": {"training": {"checkpoint_every": 4}},
        "train_universal": {"training": {**TRAINING, "sampling": SAMPLING}},
        "register": {"model_name": NAME, "gates": WIDE},
        "retrain": {"min_new_cases": 6, "suspect_dice": 0.5},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values))
    made = Site(tmp_path, servers.variables, rows)

    def runner(name: str) -> Callable[..., Any]:
        return lambda params, workdir, image: made.runner(params=params, workdir=workdir, image=image)

    monkeypatch.setattr(hepar.cli.retraining, "load_runner", runner)
    yield made
    s3_client.client.cache_clear()


def undrawn(row: Row) -> Row:
    return {**row, "liver": "", "liver_state": "unknown"}


def test_rehearsal(site: Site) -> None:
    with receiver(SECRET) as told:
        add_webhook(site, told)
        a_champion_exists(site)
        six_cases_arrive_and_two_events_start_one_run(site)
        assert told.wait_for(2) == ["1", "2"]
    nothing_changed(site)
    a_poisoned_batch_is_refused(site)
    a_liver_is_drawn_and_the_killed_run_is_resumed(site)


def add_webhook(site: Site, told: Receiver) -> None:
    variables = {"HEPAR_WEBHOOK_SECRET": SECRET}
    added = CliRunner().invoke(app, ["webhook", "add", told.url, "--name", "deployment"], env=variables)
    assert added.exit_code == 0, added.output
    listed = CliRunner().invoke(app, ["webhook", "list"])
    assert listed.stdout.split() == ["deployment", told.url]
    assert SECRET not in added.output + listed.output


def a_champion_exists(site: Site) -> None:
    site.upload([site.rows[name] for name in FIRST])
    first = site.retrain()
    assert first.exit_code == 0, first.output
    assert "reason: there is no champion yet" in first.stdout
    assert site.aliases == {CHAMPION: "1"}


def six_cases_arrive_and_two_events_start_one_run(site: Site) -> None:
    """The second event arrives, in another working directory, when the first has begun to train."""
    arriving = [undrawn(site.rows[name]) if name == UNDRAWN else site.rows[name] for name in ARRIVING]
    site.upload([*site.listed, *arriving])
    trained, others = [], list[Result]()

    def train(params: Params, workdir: Path, image: str) -> None:
        trained.append(workdir.name)
        if len(trained) == 1:
            others.append(site.retrain(workdir="elsewhere"))
        run_in_process(params, workdir, image)

    site.runner = train
    event = site.retrain()
    site.runner = run_in_process
    assert event.exit_code == 0, event.output
    assert "reason: 6 new cases (CT/phantom 6), at least 6 are enough" in event.stdout
    (other,) = others
    assert (other.exit_code, trained) == (3, ["run"]), other.output
    assert "not trained: this state is being trained already (MLflow run " in other.stdout
    assert site.aliases == {CHAMPION: "2", PREVIOUS: "1"}
    assert site.cases_of(Cohort.KIND) == {*FIRST, *ARRIVING}
    assert set(ARRIVING) <= site.cases_of(Pool.KIND)


def nothing_changed(site: Site) -> None:
    for workdir in ("run", "elsewhere"):
        look = site.retrain(workdir=workdir)
        assert look.exit_code == 3, look.output
        assert "no reason: 0 new cases, at least 6 are enough" in look.stdout
        assert "no reason: 0 unknowns became known, at least 1 are enough" in look.stdout


def a_poisoned_batch_is_refused(site: Site) -> None:
    """Each scan has the voxels of the liver of that other scan which is turned another way; tumours are not known."""
    before, kept = site.aliases, site.listed
    folder, masks = site.folder / "phantoms", dict[str, Any]()
    for name in POISONED:
        masks[name] = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / site.rows[name]["liver"])))
    for name in POISONED:
        path = str(folder / site.rows[name]["liver"])
        least, other = min((dice(masks[name], mask), key) for key, mask in masks.items() if key != name)
        assert least < 0.2
        shuffled = sitk.GetImageFromArray(masks[other])
        shuffled.CopyInformation(sitk.ReadImage(path))
        sitk.WriteImage(shuffled, path)
    site.upload([*kept, *({**site.rows[name], "tumour": "", "tumour_state": "unknown"} for name in POISONED)])
    with opened_inbox() as inbox, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEPAR_NOTIFY_URL", inbox.url)
        look = site.retrain()
        assert site.retrain().exit_code == REFUSED  # the same state: nobody is told again
    assert look.exit_code == REFUSED, look.output
    refused = "refused: 4 of 4 new cases are suspicious, more than retrain.max_suspect_share (0.2) allows: "
    assert refused in look.stdout
    (news,) = inbox.bodies
    assert (news["event"], news["outcome"]) == ("retraining", "REFUSED")
    assert f"refused: {news['details'][0]}" in look.stdout
    assert site.aliases == before
    kept_in = RetrainingFolder.of_workdir(site.folder / "run")
    session = ReviewSession(kept_in.cohort, kept_in.suspects, kept_in.reviews_folder, "somebody")
    judged = {name for name in POISONED if f"{name} (liver Dice with the champion's prediction 0." in look.stdout}
    misplaced = "(refused by ingest: the liver mask lies in the right place"
    rest = {name for name in POISONED if f"{name} {misplaced}" in look.stdout}
    assert judged
    assert judged | rest == set(POISONED)
    assert {described["case_id"] for described in session.describe_all()} == judged
    assert all(session.file(name, "uncertain.nii.gz").is_file() for name in judged)
    site.upload(kept)
    assert site.retrain().exit_code == 3


def dice(one: Any, other: Any) -> float:
    one, other = np.asarray(one) > 0, np.asarray(other) > 0
    return float(2 * np.sum(one & other) / (np.sum(one) + np.sum(other)))


def a_liver_is_drawn_and_the_killed_run_is_resumed(site: Site) -> None:
    """Killed in the training of the liver teacher, after its first checkpoint."""
    site.upload([site.rows[UNDRAWN] if row["case_id"] == UNDRAWN else row for row in site.listed])
    reason = "1 unknowns became known (CT/phantom 1): 1 liver drawn, at least 1 are enough"
    planned = site.retrain("--dry-run")
    assert planned.exit_code == 0, planned.output
    assert f"reason: {reason}" in planned.stdout
    checkpoints = site.folder / "run" / "models" / ".checkpoints"
    event = forked_retraining(site.words("run"), dict(os.environ))
    try:
        end = time.monotonic() + 600
        while not list(checkpoints.glob("*/checkpoint.pt")):
            assert event.is_alive(), "the run ended before it was killed"
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        event.kill()
        event.join()
    (began,) = [path.read_text() for path in checkpoints.glob("*/mlflow_run")]
    assert connect().get_run(began).info.status == "RUNNING"
    assert site.aliases == {CHAMPION: "2", PREVIOUS: "1"}
    resumed = site.retrain()
    assert resumed.exit_code == 0, resumed.output
    assert f"reason: {reason}" in resumed.stdout
    assert site.aliases == {CHAMPION: "3", PREVIOUS: "2"}
    assert attempts(reason) == ["FAILED", "FINISHED"]
    teacher = connect().get_run(began)
    assert (teacher.info.status, teacher.data.tags["hepar.role"]) == ("FINISHED", "liver teacher CT")
    after = site.retrain()
    assert (after.exit_code, site.aliases) == (3, {CHAMPION: "3", PREVIOUS: "2"})


def attempts(reason: str) -> list[str]:
    """How the attempts with this reason ended, in their order."""
    found = connect().search_runs(
        search_all_experiments=True,
        filter_string=f"tags.`hepar.reasons` = '{reason}'",
        order_by=["start_time"],
        output_format="list",
    )
    return [run.info.status for run in found]
