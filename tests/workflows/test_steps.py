"""The shell of workflows, with `hepar`, `make` and `gh` replaced by programs that write down what they are asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from workflows.workflow_files import step

from hepar.cli.retraining import NO, REFUSED
from hepar.runtime.notification import FORMAT_VARIABLE, URL_VARIABLE

DIGESTS = {"data": f"sha256:{'d' * 64}", "compute": f"sha256:{'c' * 64}"}
RECORD = """#!/bin/bash
printf '%s\\n' "$@" > "$FOLDER/words"
env > "$FOLDER/variables"
echo what it says
exit "$CODE"
"""
MADE = """#!/bin/bash
echo "$HEPAR_PARAMS: $*" > "$FOLDER/made"
"""
MAKE = f"""#!/bin/bash
printf '%s\\n' "$@" >> "$FOLDER/words"
mkdir -p build
echo '{json.dumps({target: f"r/hepar@{digest}" for target, digest in DIGESTS.items()})}' > build/images.json
"""
GH = """#!/bin/bash
echo "$*" >> "$FOLDER/words"
case "$*" in
  "pr list"*"--state all"*) echo "$REPORTED";;
  *"--jq .sha") echo "${KNOWN:-not found}"; test -n "$KNOWN";;  # an error is printed, whatever --jq says
  *"--jq .commit.sha") echo c0ffee;;
esac
"""


@dataclass(frozen=True)
class Runner:
    """A folder in which steps are run."""

    folder: Path

    def put(self, name: str, program: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(program)
        path.chmod(0o755)

    def put_report(self, report: str = "r") -> None:
        """What `hepar report-run` writes, without a figure, and a `gh` that writes down what it is asked."""
        self.put("gh", GH)
        for name, text in (("pointers.yaml", "name: m\nversion: '2'\n"), ("title.txt", "m"), ("report.md", report)):
            self.put(f"build/report/{name}", text)

    def run(self, name: str, title: str, **variables: str) -> int:
        """The exit code of a step, whose expressions are replaced by these variables."""
        found = step(name, title)
        assert variables.keys() - {"CODE", "REPORTED", "KNOWN"} <= found.get("env", {}).keys()
        files = {key: str(self.folder / key) for key in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT", "GITHUB_EVENT_PATH")}
        files |= {"GITHUB_REPOSITORY": "Own/Hepar", "GITHUB_SERVER_URL": "https://github.com", "GITHUB_SHA": "c0"}
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        given = {"PATH": path, "FOLDER": str(self.folder), "CODE": "0", **files, **variables}
        command = ["bash", "-e", "-c", found["run"]]
        return subprocess.run(command, cwd=self.folder, env=given, capture_output=True, timeout=60).returncode

    def text(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    @property
    def words(self) -> list[str]:
        return self.text("words").splitlines()

    @property
    def variables(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.text("variables").splitlines() if "=" in line)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    found = Runner(tmp_path)
    found.put(".venv/bin/hepar", RECORD)
    found.put("make", MADE)
    return found


LOOK = {"SOURCE": "s3://scans", "PARAMS": "own.yaml", "WORKDIR": "work", "RUNNER": "submit", "DRY_RUN": ""}


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (NO, 0), (REFUSED, REFUSED), (2, 2), (75, 75)])
def test_a_look_that_finds_no_reason_is_no_failure(runner: Runner, code: int, expected: int) -> None:
    assert runner.run("retrain", "look", CODE=str(code), HEPAR_PATIENT_KEY="k", HEPAR_STORE="", **LOOK) == expected
    words = "retrain --source s3://scans --params own.yaml --workdir work --runner submit"
    assert runner.words == words.split()
    assert "what it says" in runner.text("GITHUB_STEP_SUMMARY")
    assert ("labels are refused" in runner.text("GITHUB_STEP_SUMMARY")) == (code == REFUSED)
    assert {URL_VARIABLE, FORMAT_VARIABLE} <= step("retrain", "look")["env"].keys()
    assert runner.variables["HEPAR_PATIENT_KEY"] == "k"
    assert "HEPAR_STORE" not in runner.variables  # an empty one would be a store without a name
    assert runner.text("made") == "own.yaml: compile\n"


def test_a_look_trains_unless_told_otherwise(runner: Runner) -> None:
    assert runner.run("retrain", "look", **{**LOOK, "DRY_RUN": "--dry-run"}) == 0
    assert runner.words[-1] == "--dry-run"
    assert runner.text("made") == ""
    assert runner.run("retrain", "look", **{**LOOK, "RUNNER": "subprocess"}) == 0
    assert runner.text("made") == ""
    given = step("retrain", "look")["env"]
    assert given["DRY_RUN"].split(" ")[1:3] == ["inputs.dry_run", "&&"]
    assert given["RUNNER"].endswith("|| 'submit' }}")


@pytest.mark.parametrize(("code", "expected", "found"), [(0, 0, "found=true"), (3, 0, ""), (2, 2, "")])
def test_a_report_is_published_if_there_is_something_new(runner: Runner, code: int, expected: int, found: str) -> None:
    runner.put("build/report/report.md", "a table")
    assert runner.run("report", "report", CODE=str(code), PARAMS="own.yaml", VERSION="7") == expected
    message = ["--message", str(runner.folder / "GITHUB_EVENT_PATH")]
    place = ["--pointers", "versions", "--out", "build/report", "--params", "own.yaml"]
    assert runner.words == ["report-run", "7", *message, *place]
    assert runner.text("GITHUB_OUTPUT").strip() == found
    assert step("report", "publish")["if"] == "steps.report.outputs.found == 'true'"
    assert step("report", "summary")["if"] == "always() && steps.report.outputs.found == 'true'"


@pytest.mark.parametrize("reported", ["", "5"])
def test_a_job_summary_shows_the_figure_by_its_address(runner: Runner, reported: str) -> None:
    """It is that of the commit; nothing is committed if a pull request has it already."""
    runner.put_report("a table\n\n![difference to models:/m/1, with 95 % intervals](forest.png)\n")
    runner.put("build/report/forest.png", "a picture")
    assert runner.run("report", "publish", ISSUE="", REPORTED=reported) == 0
    assert runner.run("report", "summary", PUBLISHED="success") == 0
    address = "https://github.com/Own/Hepar/raw/c0ffee/versions/m.png"
    shown = f"![difference to models:/m/1, with 95 % intervals]({address})"
    if reported:
        shown = "The pull request has the figure: difference to models:/m/1, with 95 % intervals."
    assert runner.text("GITHUB_STEP_SUMMARY") == f"a table\n\n{shown}\n"


def test_a_job_summary_promises_no_figure_if_nothing_was_published(runner: Runner) -> None:
    runner.put("build/report/report.md", "a table\n\n![difference to models:/m/1](forest.png)\n")
    assert runner.run("report", "summary", PUBLISHED="failure") == 0
    assert runner.text("GITHUB_STEP_SUMMARY") == (
        "a table\n\nThe figure was not published: difference to models:/m/1.\n"
    )
    assert step("report", "summary")["env"] == {"PUBLISHED": "${{ steps.publish.outcome }}"}
    assert step("report", "publish")["id"] == "publish"


@pytest.mark.parametrize("known", ["abc", ""])
def test_a_commit_names_the_content_that_it_replaces(runner: Runner, known: str) -> None:
    """GitHub wants it of a file that is there, as after the first version, and refuses it of a new one."""
    runner.put_report()
    assert runner.run("report", "publish", ISSUE="", REPORTED="", KNOWN=known) == 0
    (commit,) = [line for line in runner.words if "--method PUT" in line]
    assert "contents/versions/m.yaml" in commit
    assert re.findall(r"sha=\S+", commit) == ([f"sha={known}"] if known else [])
    assert "-f branch=hepar/m-2" in commit
    assert runner.words[-1].startswith("pr create --head hepar/m-2")


def test_a_pull_request_that_was_declined_is_not_opened_again(runner: Runner) -> None:
    runner.put_report()
    assert runner.run("report", "publish", ISSUE="", REPORTED="5") == 0
    assert len(runner.words) == 1


@pytest.mark.parametrize("by_hand", ["8", ""])
def test_a_version_with_a_pull_request_is_a_comment_if_somebody_asks_for_it(runner: Runner, by_hand: str) -> None:
    """A doubled event is not."""
    runner.put_report("a table\n\n![difference to models:/m/1](forest.png)\n")
    assert runner.run("report", "publish", ISSUE=by_hand or "5", BY_HAND=by_hand, REPORTED="5") == 0
    assert runner.words[1:] == (["issue comment 8 --body-file report.md"] if by_hand else [])
    assert ("The pull request has the figure: " in runner.text("build/report/report.md")) == (by_hand != "")
    assert step("report", "publish")["env"]["BY_HAND"] == "${{ inputs.issue }}"


@pytest.mark.parametrize("code", [0, 1])
def test_a_refused_promotion_fails(runner: Runner, code: int) -> None:
    assert runner.run("promote", "promote", CODE=str(code), VERSION="versions", PARAMS="own.yaml", FORCE="") == code
    assert runner.words == ["promote", "versions", "--params", "own.yaml"]
    assert "what it says" in runner.text("GITHUB_STEP_SUMMARY")


def test_a_promotion_reaches_the_store(runner: Runner) -> None:
    given = {"HEPAR_STORE": "s3://store", "AWS_ACCESS_KEY_ID": "k", "AWS_ENDPOINT_URL": "", "PARAMS": "own.yaml"}
    assert runner.run("promote", "promote", VERSION="7", FORCE="", **given) == 0
    assert {"HEPAR_STORE", "AWS_ACCESS_KEY_ID"} <= runner.variables.keys()
    assert "AWS_ENDPOINT_URL" not in runner.variables


def test_only_by_hand_are_gates_overruled(runner: Runner) -> None:
    assert runner.run("promote", "promote", VERSION="7", PARAMS="own.yaml", FORCE="--force") == 0
    assert runner.words == ["promote", "7", "--params", "own.yaml", "--force"]
    assert step("promote", "promote")["env"]["FORCE"].split(" ")[1:3] == ["inputs.force", "&&"]


def test_the_digests_of_pushed_images_are_handed_on(runner: Runner) -> None:
    runner.put("make", MAKE)
    assert runner.run("images", "build and push", BASE_IMAGE="python@sha256:b") == 0
    assert runner.words == ["release-image", "BASE_IMAGE=python@sha256:b", "PUSH=ghcr.io/own/hepar", "sbom"]
    outputs = dict(line.split("=", 1) for line in runner.text("GITHUB_OUTPUT").splitlines())
    assert outputs == {"repository": "ghcr.io/own/hepar", **DIGESTS}
