"""docs/submitting.md and docs/operating.md: each line of their blocks runs here, or `NOT_HERE` says why not.

KFP is the stand-in, with several users; S3 is a server on loopback. `kubectl` finds no cluster, which it says only
after it has understood its command and read its files.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import services
import yaml
from click.testing import CliRunner
from cluster.kfp_stand_in import DIGEST, KfpStandIn
from commands import Shell
from conftest import BIN, ROOT, environment
from doc_blocks import blocks

from pipelines.kfp_server import TOKEN_VARIABLE

SUBMITTING, OPERATING = (ROOT / "docs" / f"{name}.md" for name in ("submitting", "operating"))
ADDRESS, NAMESPACE, TOKEN = "https://kfp.example.org", "hepar-runs", "sesame-and-more"
NO_DOCKER = "needs a Docker Engine; .ci/run has one"
NO_REGISTRY = "needs a registry; tests/infra/test_registry_roundtrip.py pushes to one of its own"
NO_COMPOSE = "needs Docker; tests/infra/test_compose.py runs the commands of the services"
NOT_HERE = {
    "make images": f"{NO_DOCKER} and builds them",
    "make images PUSH=REGISTRY/hepar": NO_REGISTRY,
    "make services-image": NO_DOCKER,
    "make sbom": f"{NO_DOCKER}; tests/infra/test_images.py checks what is written",
    "docker tag hepar-services:latest REGISTRY/hepar-services && docker push REGISTRY/hepar-services": NO_REGISTRY,
    "docker pull postgres:15-bookworm && docker inspect --format '{{index .RepoDigests 0}}' postgres:15-bookworm": (
        "needs Docker and its public registry"
    ),
    "install --directory --owner 10001 /srv/backup /srv/reviews /srv/work": "makes folders of a server",
    "docker compose up --detach": NO_COMPOSE,
    "docker compose ps": NO_COMPOSE,
    "docker compose up --detach postgres s3": NO_COMPOSE,
    "docker compose run --rm backup hepar-storage restore /backup": (
        f"{NO_COMPOSE}; tests/infra/test_site.py restores a backup"
    ),
    "hepar run --source scans --params params/full.yaml --workdir /srv/work": (
        "needs GPUs; tests/pipelines/test_readme.py has the same run with small params"
    ),
}
LINKED = ("Makefile", "hepar", "components", "pipelines", "params", "params.yaml")
BLOCKS = {(page.stem, heading): lines for page in (SUBMITTING, OPERATING) for heading, lines in blocks(page).items()}


@dataclass
class Site:
    """A folder like the repository's root, where the lines of a block run one after another."""

    shell: Shell
    kfp: KfpStandIn

    def run(self, line: str) -> None:
        line = re.sub(r"^((?:\w+=\S+ )*)make ", r"\1make -o setup ", line)  # not the environment that runs this test
        line = line.replace(ADDRESS, self.kfp.address).replace("--endpoint URL", f"--endpoint {self.kfp.address}")
        words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
        if words[0] == "cd":
            self.shell.folder /= words[1]
        elif "kubectl" in words:
            done = self.bash(line)
            assert "refused" in done.stderr, f"{line}: {done.stdout}{done.stderr}"
        elif words[0] == "kfp":
            self.kfp_command(shlex.split(line.replace(f"${TOKEN_VARIABLE}", TOKEN))[1:])
        elif words[0] in ("hepar", "export"):
            self.shell.succeed(line)
        else:
            done = self.bash(line)
            assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"

    def bash(self, text: str) -> subprocess.CompletedProcess[str]:
        own = environment(**self.shell.exported, KUBECONFIG="/dev/null")
        return subprocess.run(["bash", "-c", text], cwd=self.shell.folder, env=own, capture_output=True, text=True)

    def kfp_command(self, words: list[str]) -> None:
        from kfp.cli.cli import cli

        done = CliRunner().invoke(cli, words, obj={})  # as its entry point calls it
        assert done.exit_code == 0, f"{done.output}{done.exception}"


@pytest.fixture
def site(
    kfp: KfpStandIn, compiled: Path, bucket: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Site:
    """A compiled pipeline, images by digest, manifests that are rendered, and scans in S3."""
    kfp.token, kfp.namespaces, kfp.states = TOKEN, frozenset({NAMESPACE}), ("SUCCEEDED",)
    folder = tmp_path / "site"
    (folder / "build").mkdir(parents=True)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(BIN.parent)
    shutil.copytree(ROOT / "infra", folder / "infra", ignore=shutil.ignore_patterns("__pycache__"))
    images = folder / "infra" / "kubernetes" / "images" / "kustomization.yaml"
    images.write_text(re.sub(r"newTag: .*", f"digest: {DIGEST.split('@')[1]}", images.read_text()))
    shutil.copy(compiled, folder / "build" / "two_stage.yaml")
    (folder / "build" / "images.json").write_text(json.dumps({"data": DIGEST, "compute": DIGEST}))
    for overlay in ("gpu", "restore"):
        (folder / "build" / f"kubernetes-{overlay}.yaml").write_text(
            yaml.safe_dump({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": overlay}})
        )
    client = services.s3_client(bucket)
    client.create_bucket(Bucket="scans")
    for prefix in ("liver", "2025q1", "2025q2", "2025q3"):
        client.put_object(Bucket="scans", Key=f"{prefix}/cohort.csv", Body=b"case_id\n")
    monkeypatch.chdir(folder)
    return Site(Shell(folder, {**bucket, TOKEN_VARIABLE: TOKEN}), kfp)


def started(site: Site) -> list[tuple[str, str]]:
    """Source and account of the runs, all of which are in the namespace."""
    assert {run["namespace"] for run in site.kfp.runs} <= {NAMESPACE}
    return [(run["runtime_config"]["parameters"]["source"], run["service_account"]) for run in site.kfp.runs]


def test_a_line_that_does_not_run_here_is_one_of_the_pages() -> None:
    assert set(NOT_HERE) <= {line for lines in BLOCKS.values() for line in lines}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This client only works:FutureWarning")
@pytest.mark.parametrize(("page", "heading"), [key for key, lines in BLOCKS.items() if not lines[0].startswith("for ")])
def test_the_lines_of_a_block_run(site: Site, page: str, heading: str) -> None:
    for line in BLOCKS[page, heading]:
        if line not in NOT_HERE:
            site.run(line)
    sources = {("submitting", "One run"): "s3://scans/liver", ("operating", "5. The first run"): "phantoms"}
    expected = sources.get((page, heading))
    assert started(site) == ([(expected, "hepar-run")] if expected else [])


@pytest.mark.slow
def test_a_backfill_that_is_repeated_passes_over_what_has_finished(site: Site) -> None:
    """Bash expands the loop, and each command of it runs in a fork."""
    (loop,) = ["\n".join(lines) for lines in BLOCKS.values() if lines[0].startswith("for ")]
    written = site.bash(f"hepar() {{ printf '%q ' hepar \"$@\"; echo; }}\n{loop}").stdout.splitlines()
    site.shell.exported["KF_PIPELINES_ENDPOINT"] = site.kfp.address
    for command in (*written, *written):
        site.shell.succeed(command)
    assert started(site) == [(f"s3://scans/2025q{number}", "hepar-run") for number in (1, 2, 3)]
    assert [one["display_name"] for one in site.kfp.experiments] == ["backfill"]


@pytest.mark.slow
def test_the_line_for_cron_is_a_schedule_and_a_command_that_needs_no_variables_of_a_user(site: Site) -> None:
    """Cron starts `sh` with a bare environment, in which the line must find its program and its variables."""
    ((line,), *others) = blocks(SUBMITTING, "cron").values()
    assert others == []
    *schedule, command = line.split(maxsplit=5)
    assert [re.fullmatch(r"\*|\d+", part) is None for part in schedule] == [False] * 5
    variables = {**site.shell.exported, "KF_PIPELINES_ENDPOINT": site.kfp.address}
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    (site.shell.folder / "env.sh").write_text(exports)
    (site.shell.folder / "two_stage.yaml").symlink_to(site.shell.folder / "build" / "two_stage.yaml")
    command = command.replace("/srv/hepar", str(site.shell.folder))
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(site.shell.folder)}
    done = subprocess.run(["/bin/sh", "-c", command], cwd="/", env=bare, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert started(site) == [("s3://scans/liver", "hepar-run")]


@pytest.mark.filterwarnings("ignore:This client only works:FutureWarning")
def test_both_ways_to_a_recurring_run_create_the_same_but_for_the_account(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    (lines,) = blocks(SUBMITTING, "python").values()
    exec("\n".join(lines).replace(ADDRESS, site.kfp.address), {})
    for line in BLOCKS["submitting", "On a schedule"]:
        site.run(line)
    first, second = site.kfp.recurring_runs
    assert first.pop("service_account") == "hepar-run"
    differing = {key for key in first | second if first.get(key) != second.get(key)}
    assert differing <= {"recurring_run_id", "created_at"}
    assert (first["mode"], first["namespace"], first["no_catchup"]) == ("ENABLE", NAMESPACE, True)
    assert first["trigger"]["cron_schedule"]["cron"] == "0 30 3 * * *"
    assert first["runtime_config"]["parameters"] == {"source": "s3://scans/liver"}
    assert len(site.kfp.experiments) == 1
