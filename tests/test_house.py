"""The plan of the house: what stands at the root, what a stage is, and how modules and functions look."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "hepar"
SOURCES = sorted(path for name in ("hepar", "components", "pipelines") for path in (ROOT / name).rglob("*.py"))
STAGES = ["ingest", "train_liver", "pseudo_label", "assemble_pool", "train_universal", "evaluate", "register"]
MAX_PARAMETERS = 7


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
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
    for node in ast.walk(ast.parse(path.read_text())):
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
