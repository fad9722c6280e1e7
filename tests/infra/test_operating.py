"""docs/operating.md: what it names exists, and what it counts is so."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from infra.deployment_files import COMPOSE, INFRA, ROOT, STORAGE, load_script

from pipelines.execution import ONE_MACHINE_VARIABLE

DOCUMENT = ROOT / "docs" / "operating.md"
TEXT = DOCUMENT.read_text()


def test_the_files_that_it_names_exist() -> None:
    named = set(re.findall(r"\binfra/[\w./-]*[\w/]", TEXT)) | set(re.findall(r"\bparams/[\w-]+\.yaml", TEXT))
    assert {"infra/compose/compose.yaml", "infra/kubernetes/make_secrets.py", "params/tiny.yaml"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_targets_of_make_that_it_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`|… )make ([a-z-]+)", TEXT, re.MULTILINE))
    assert {"images", "services-image", "manifests", "compile", "sbom", "demo"} <= named <= targets


def test_the_commands_of_the_storage_tool_parse() -> None:
    storage = load_script(STORAGE)
    commands = re.findall(r"hepar-storage ((?:backup|verify|restore) [^`\n#]*)", TEXT)
    assert {command.split()[0] for command in commands} == {"backup", "verify", "restore"}
    for command in commands:
        storage.parse(shlex.split(command))
    with pytest.raises(SystemExit):
        storage.parse(["restore"])


@pytest.mark.parametrize("word", ["POSTGRES_PASSWORD", "S3_ACCESS_KEY", "BACKUP_FOLDER"])
def test_no_secret_or_folder_of_a_site_is_in_the_repository(word: str) -> None:
    files = [path for path in INFRA.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    found = [path for path in files if re.search(rf"^{word}=.", path.read_text(), re.M)]
    assert found == []


def test_services_that_it_starts_by_name_are_those_of_compose() -> None:
    services = yaml.safe_load(re.sub(r"\$\{[^}]*\}", "x", COMPOSE.read_text()))["services"]
    named = re.findall(
        r"docker compose (?:--profile \w+ )?(?:up --detach|run --rm|logs) ([a-z0-9 ]+?)(?= hepar-storage|`|\n|$)", TEXT
    )
    assert named
    assert {name for words in named for name in words.split()} <= services.keys()


def test_the_steps_that_read_the_cohort_and_the_pool_are_counted_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ONE_MACHINE_VARIABLE, "1")  # the image has no digest
    from pipelines.two_stage import two_stage

    (tasks,) = [one.dag.tasks for one in two_stage.pipeline_spec.components.values() if one.HasField("dag")]
    readers = {name for name, task in tasks.items() if "cohort" in task.inputs.artifacts}
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    counted = f"ingest writes and {words[len(readers)]} steps read: {words[len(readers) + 1]} times the cohort"
    assert counted in " ".join(TEXT.split())
    assert [name for name, task in tasks.items() if "pool" in task.inputs.artifacts] == ["train-universal"]
