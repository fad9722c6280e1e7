"""The plan of the house: what stands at the root, what a stage is, and how modules and functions look."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
from conftest import ROOT

import hepar.errors
from hepar.cases import Cohort
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.params import SignalName
from hepar.planning.gate_calibration import CalibrationFolder
from hepar.pool.arrays import PreprocessedArrays
from hepar.pool.table import Pool
from hepar.prediction.folder import PredictionFolder
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.pseudo_labels.reviews import Reviews
from hepar.pseudo_labels.signals import Signals
from hepar.registry.registration import Registration

PACKAGE = ROOT / "hepar"
SOURCES = sorted(path for name in ("hepar", "components", "pipelines") for path in (ROOT / name).rglob("*.py"))
STAGES = ["ingest", "train_liver", "pseudo_label", "assemble_pool", "train_universal", "evaluate", "register"]
MAX_PARAMETERS = 7
ARTIFACTS = (PredictionFolder, Cohort, PseudoLabels, Pool, ModelFolder, Report, Registration, CalibrationFolder)
KINDS = {owner.KIND for owner in ARTIFACTS} | {ModelFolder.ROLE, ModelFolder.POOL_VERSION, Report.COMMIT}
OWNER_OF = {  # the module of each file name that a folder class owns
    value: owner.__module__
    for owner in (*ARTIFACTS, PreprocessedArrays, Reviews)
    for name, value in vars(owner).items()
    if name.isupper() and isinstance(value, str) and re.search(r"\.[a-z0-9]+$", value)
}
BY_KIND = {"read_manifest", "verify_artifact", "write_artifact", "Manifest", "get"}  # calls that take a kind


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def is_decorated(function: ast.FunctionDef | ast.AsyncFunctionDef, names: tuple[str, ...]) -> bool:
    return any(name in ast.unparse(decorator) for decorator in function.decorator_list for name in names)


def test_the_root_of_the_package_holds_three_modules() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "cases.py", "params.py", "errors.py"}


def test_stages_holds_the_seven_and_nothing_else() -> None:
    assert {path.stem for path in (PACKAGE / "stages").glob("*.py")} == {"__init__", *STAGES}


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_has_one_run(stage: str) -> None:
    public = [f.name for f in functions(PACKAGE / "stages" / f"{stage}.py") if not f.name.startswith("_")]
    assert public == ["run"]


def test_tests_mirror_the_folders() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} - {"stages"}
    assert folders <= {path.name for path in (ROOT / "tests").iterdir()}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_our_modules_go_by_their_own_names(path: Path) -> None:
    """No `import … as` of a module or name of ours, so that a search finds every caller."""
    renamed = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("hepar", "components"):
            renamed += [f"{alias.name} as {alias.asname}" for alias in node.names if alias.asname]
        if isinstance(node, ast.Import):
            renamed += [alias.name for alias in node.names if alias.asname and alias.name.startswith("hepar")]
    assert renamed == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_takes_more_than_seven_parameters(path: Path) -> None:
    """Commands and KFP components are exempt: their parameters are the options and artifacts of a user."""
    outward = ("app.command", "pool_app.command", "dsl.component", "dsl.pipeline")
    too_many = {f.name: len(parameters(f)) for f in functions(path) if len(parameters(f)) > MAX_PARAMETERS}
    exempt = {f.name for f in functions(path) if is_decorated(f, outward)}
    assert {name: count for name, count in too_many.items() if name not in exempt} == {}


def test_no_class_name_is_defined_twice() -> None:
    nodes = (node for path in SOURCES for node in ast.walk(parsed(path)))
    found = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert {name: count for name, count in found.items() if count > 1} == {}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_names_of_artifacts_are_spelled_by_their_owner_alone(path: Path) -> None:
    """Readers of sources are exempt: they name the files of others."""
    if path.is_relative_to(PACKAGE / "ingest" / "sources"):
        return
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    texts = (node.value for node in ast.walk(parsed(path)) if isinstance(node, ast.Constant))
    assert [text for text in texts if isinstance(text, str) and OWNER_OF.get(text, module) != module] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_kinds_and_parents_of_artifacts_are_spelled_by_their_owner_alone(path: Path) -> None:
    """Neither the calls that take a kind nor the mappings of parents, origin and facts have one as a literal."""
    places: list[ast.expr | None] = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in BY_KIND:
            places += [*node.args, *(keyword.value for keyword in node.keywords)]
        if isinstance(node, ast.Subscript) and re.search(r"(parents|origin|facts)(\(\))?$", ast.unparse(node.value)):
            places.append(node.slice)
        if isinstance(node, ast.Dict) and path.is_relative_to(PACKAGE):
            places += node.keys
    assert [place.value for place in places if isinstance(place, ast.Constant) and place.value in KINDS] == []


def test_parents_of_a_model_are_named_by_kind() -> None:
    assert ModelFolder.POOL == Pool.KIND  # a model folder lies below the pool, so that it cannot import its class


def test_signals_of_the_params_are_those_that_are_measured() -> None:
    assert get_args(SignalName) == Signals.names()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/**/*.md"])
def test_paths_in_the_documents_exist(name: str) -> None:
    """Paths in backticks and the targets of links into the code."""
    missing = []
    for document in sorted(ROOT.glob(name)):
        text = document.read_text()
        places = [ROOT / place for place in re.findall(r"`((?:hepar|components|pipelines|tests)/[^`\s:]*)`", text)]
        places += [document.parent / place for place in re.findall(r"\]\(([\w./-]*(?:hepar|tests)/[\w./-]*)\)", text)]
        missing += [f"{document.relative_to(ROOT)}: {place}" for place in places if not place.exists()]
    assert missing == []


def _quotes(handler: ast.ExceptHandler) -> Iterator[str]:
    """Where an error of another library is quoted as it is in the message of one of ours."""
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type or ast.Name("BaseException")]
    if all(isinstance(kind, ast.Name) and kind.id in vars(hepar.errors) for kind in caught):
        return
    bare = {handler.name, f"str({handler.name})"}
    for raised in [node for node in ast.walk(handler) if isinstance(node, ast.Raise) and node.exc]:
        for node in ast.walk(raised):
            if isinstance(node, ast.FormattedValue) and ast.unparse(node.value) in bare:
                yield f"line {node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_foreign_messages_are_quoted_on_one_line(path: Path) -> None:
    handlers = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.ExceptHandler)]
    assert [line for handler in handlers if handler.name and handler.type for line in _quotes(handler)] == []


def test_scripts_of_a_page_share_no_name_with_the_viewer() -> None:
    """They are loaded into one page, where the later of two functions of a name replaces the other."""
    owners: dict[str, set[str]] = {}
    for path in sorted((ROOT / "hepar").rglob("static/*.js")):
        for name in re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", path.read_text(), re.MULTILINE):
            owners.setdefault(name, set()).add(str(path.parent.relative_to(ROOT)))
    viewer = "hepar/viewer/static"
    assert {name: places for name, places in owners.items() if viewer in places and len(places) > 1} == {}
