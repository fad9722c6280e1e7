"""The command `lineage`, and the tree that it prints."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hepar.cli.messages import print_message
from hepar.cli.pool import Remote, pool_versions
from hepar.errors import DataError, StorageError

if TYPE_CHECKING:
    from hepar.registry.lineage import Lineage, Node
    from hepar.registry.lineage_server import ServerRecords

PANEL = "Models"
SHOWN = 12  # characters of a hash
UNKNOWN = "not known"
EMPTY = "none"

lineage_app = typer.Typer()


@lineage_app.command(rich_help_panel=PANEL)
def lineage(
    what: Annotated[
        str,
        typer.Argument(
            help="A registered version (models:/NAME@ALIAS, models:/NAME/NUMBER), the working directory of a run, or a"
            " folder that a stage wrote."
        ),
    ],
    look_in: Annotated[
        list[Path] | None,
        typer.Option(
            "--in",
            help="Folder to look for artifacts in, such as the working directory of a run; repeatable.",
            show_default="the current folder, or those around the given one",
        ),
    ] = None,
    cases: Annotated[bool, typer.Option("--cases", help="List every case with hash, licence and file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    remote: Remote = "",
) -> None:
    """Show what a model was made from: pool, teachers, pseudo-labels, cohort and cases, and where each of them is now.

    Each artifact is looked for by its hash in folders, in MLflow and, a pool or cohort, in the store.
    What cannot be opened any more is said to be gone, with what is still recorded about it.
    """
    found = trace(what, look_in, remote)
    for problem in found.damaged:
        print_message(problem)
    if as_json:
        print(json.dumps(found.as_json(), indent=2, sort_keys=True))
    else:
        print("\n".join(tree_lines(found, cases)))


def trace(what: str, look_in: Sequence[Path] | None, remote: str) -> Lineage:
    """The lineage of a version or a folder, as the command takes them. Raises DataError if it is neither."""
    from hepar.params import REGISTERED
    from hepar.registry import tracking
    from hepar.registry.lineage import trace_folder, trace_version
    from hepar.registry.lineage_server import server_records
    from hepar.runtime.artifacts import MANIFEST

    @contextmanager
    def open_pool(version: str) -> Iterator[Path]:
        with pool_versions().open_pool(version, remote) as opened:
            opened.fetch([MANIFEST])
            yield opened.pool.folder

    for place in look_in or ():
        if not place.is_dir():
            raise DataError(f"--in is {place}, which is no folder")
    if what.startswith(REGISTERED):
        tracking.check_server()
        with server_records() as server:
            return trace_version(what, look_in or [Path()], server, open_pool)
    folder = Path(what)
    if not folder.is_dir():
        raise DataError(f"{what} is neither {REGISTERED}NAME@ALIAS nor {REGISTERED}NAME/VERSION nor a folder")
    around = look_in or [folder.resolve().parent, folder.resolve().parent.parent]
    with ExitStack() as stack:
        return trace_folder(folder, around, _server_of(folder, stack), open_pool)


def _server_of(folder: Path, stack: ExitStack) -> ServerRecords | None:
    """The tracking server that is set, else the database of the run that wrote a folder; None if neither is there."""
    from hepar.registry import tracking
    from hepar.registry.lineage_server import server_records

    near = [place / tracking.DATABASE for place in (folder.resolve(), *folder.resolve().parents[:2])]
    if not os.environ.get(tracking.URI_VARIABLE) and (databases := [path for path in near if path.is_file()]):
        os.environ[tracking.URI_VARIABLE] = f"{tracking.SQLITE}{databases[0]}"
    if not tracking.has_server():
        return None
    try:
        return stack.enter_context(server_records())
    except StorageError as error:
        print_message(f"{error}; going on without it")
        return None


def tree_lines(found: Lineage, cases: bool) -> list[str]:
    """The lineage as a tree, one line of text each; what occurs twice is described where it occurs first."""
    shown = set[str]()

    def branch(key: str, part: str) -> list[str]:
        node = found.nodes[key]
        title = f"{part}: " if part and part != node.kind else ""
        head = f"{title}{node.kind} {_short(key)}"
        if key in shown:
            return [f"{head}  (see above)"]
        shown.add(key)
        parents = list(node.parents.items())
        lines = [f"{head}  {str(node.state).upper()}"]
        lines += [f"{'│' if parents else ' '}   {line}" for line in _details(node, cases)]
        for number, (name, parent) in enumerate(parents, start=1):
            first, rest = ("└── ", "    ") if number == len(parents) else ("├── ", "│   ")
            below = branch(parent, name)
            lines += [first + below[0], *(rest + line for line in below[1:])]
        return lines

    return branch(found.root, "")


def _short(value: str) -> str:
    """A hash by its start; any other text as it is."""
    is_hash = len(value) == 64 and all(letter in "0123456789abcdef" for letter in value)
    return value[:SHOWN] if is_hash else value


def _details(node: Node, cases: bool) -> list[str]:
    """What the tree says below a node: places, records, facts, parameters and cases."""
    lines = []
    for place in node.places:
        if not place.problem:
            lines.append(f"in {place.where}: {place.address}")
        else:
            lines.append(f"not in {place.where}: {place.address} ({place.problem})")
    lines += [f"recorded in MLflow run: {run}" for run in node.records]
    lines += [f"{name}: {_fact(name, value)}" for name, value in node.facts.items()]
    if node.parameters:
        lines.append(f"parameters: {len(node.parameters)} in that run, listed by --json")
    return lines + (_case_lines(node, cases) if node.cases is not None else [])


def _fact(name: str, value: str | None) -> str:
    """The value of a fact; without one, a commit, image or KFP run was not recorded, and anything else is none."""
    from hepar.registry.lineage_server import EXECUTION

    return _short(value) if value else UNKNOWN if value is None or name in EXECUTION else EMPTY


def _case_lines(node: Node, all_of_them: bool) -> list[str]:
    """The cases counted by source and licence, and if wanted one by one."""
    from hepar.registry.lineage import FILE

    assert node.cases is not None
    counts = Counter(zip(node.cases.source, node.cases.licence, strict=True))
    lines = [f"cases: {len(node.cases)}"]
    lines += [
        f"  {count} of {source}, licence {licence or 'not stated'}"
        for (source, licence), count in sorted(counts.items())
    ]
    if FILE in node.cases and (gone := int((node.cases[FILE] == "").sum())):
        lines.append(f"  the images of {gone} are gone; their hashes are known")
    if all_of_them:
        for case in node.cases.to_dict(orient="records"):
            hashes = [f"{name} {case[f'{name}_sha256'][:SHOWN] or 'none'}" for name in ("image", "liver", "tumour")]
            words = [case["case_id"], case["source"], case["split"], case["licence"] or "licence not stated", *hashes]
            lines.append("  " + ", ".join([*words, *([case[FILE] or "gone"] if FILE in case else [])]))
    return lines
