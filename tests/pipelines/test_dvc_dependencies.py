"""`dvc.yaml` names the code that each stage runs: no module that it imports is missing, and none is listed in vain."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml
from conftest import ROOT

CANNOT_CHANGE_A_RESULT = {  # modules that no stage depends on, and why
    "hepar.errors": "messages",
    "hepar.params": "types; the values are listed under `params`",
    "hepar.runtime.progress": "what is shown while a stage runs",
    "hepar.runtime.journal": "when a finished folder gets its name",
    "hepar.runtime.locks": "who may write",
    "hepar.runtime.commit": "notes the commit",
    "hepar.runtime.cpu_quota": "how many cores there are, as on another machine",
    "hepar.runtime.environment": "names of environment variables",
    "hepar.runtime.execution": "notes the image and the KFP run",
    "hepar.runtime.fetching": "brings files from a store",
    "hepar.runtime.object_store": "compares what it brings with its hash",
    "hepar.runtime.plain_names": "refuses names that lead elsewhere",
    "hepar.runtime.redaction": "what messages leave out",
    "hepar.runtime.remote_cache": "where copies of remote files lie",
    "hepar.runtime.s3_client": "how S3 is reached",
    "hepar.runtime.scratch": "where temporary files lie",
    "hepar.runtime.tensor_files": "how torch's errors are worded",
    "hepar.runtime.seals": "when an artifact was sealed",
    "hepar.runtime.stored_checkpoint": "brings unfinished work to a store and back",
    "hepar.runtime.stored_files": "which files are in a store",
    "hepar.runtime.stored_versions": "puts artifacts into a store and opens them again",
    "hepar.runtime.verification": "refuses what is damaged",
    "hepar.runtime.whole_files": "how a file gets to its place",
    "hepar.registry": "keeps records, and fetches the model of a warm start; `register` itself depends on it",
}
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
RUN = [name for name in STAGES if name != "list-source"]


def module_of(stage: str) -> str:
    return f"hepar.stages.{stage.replace('-', '_')}"


def is_below(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def needed(graph: grimp.ImportGraph, stage: str) -> set[str]:
    """The modules that a stage imports, directly or not, and that can change what it writes."""
    own, reduced = module_of(stage), deepcopy(graph)
    ignored = set(CANNOT_CHANGE_A_RESULT) - ({"hepar.registry"} if stage == "register" else set())
    for module in graph.modules:
        if any(is_below(module, package) for package in ignored):
            reduced.remove_module(module)
    return reduced.find_upstream_modules(own) | {own}


def listed(stage: str) -> set[str]:
    """The code dependencies of a stage in `dvc.yaml` as modules or packages."""
    places = [Path(place) for place in STAGES[stage]["deps"] if place.startswith("hepar/")]
    assert all((ROOT / place).exists() for place in places), places
    return {".".join(place.with_suffix("").parts) for place in places}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("hepar")


@pytest.mark.parametrize("stage", RUN)
def test_every_module_that_a_stage_runs_is_a_dependency(graph: grimp.ImportGraph, stage: str) -> None:
    covered = listed(stage)
    assert {m for m in needed(graph, stage) if not any(is_below(m, place) for place in covered)} == set()


@pytest.mark.parametrize("stage", RUN)
def test_every_dependency_is_code_that_the_stage_runs(graph: grimp.ImportGraph, stage: str) -> None:
    modules = needed(graph, stage)
    assert {place for place in listed(stage) if not any(is_below(m, place) for m in modules)} == set()


def test_every_stage_of_the_flow_is_in_dvc_yaml() -> None:
    files = {path.stem.replace("_", "-") for path in (ROOT / "hepar" / "stages").glob("*.py")} - {"--init--"}
    assert set(RUN) == files
