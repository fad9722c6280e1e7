"""Commands for data and settings: check a run, list a source, make phantoms, list cases, plan, compare networks, print
params."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hepar.cli.options import (
    COHORT,
    PARAMS,
    SOURCE_HELP,
    CohortFolder,
    Layout,
    ParamsFile,
    Source,
    SplitFrom,
    TableFormat,
    load_with_options,
)
from hepar.cli.tables import print_frame
from hepar.errors import ParamsError
from hepar.runtime.whole_files import write_text

if TYPE_CHECKING:
    from hepar.params import SizeZYX

PANEL = "Data and settings"
MULTIPLES = (1, 32, 64)  # to which the sides of a patch are rounded up, until a network accepts it

cohorts_app = typer.Typer()


@cohorts_app.command(rich_help_panel=PANEL)
def phantom(
    out: Annotated[Path, typer.Option(help="Folder to write cohort.csv and the volumes to.")],
    cases: Annotated[int, typer.Option(min=8, help="Number of scans, half CT, half MR.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal scans.")] = 7,
    size: Annotated[tuple[int, int, int], typer.Option(help="Voxels along z, y, x.")] = (64, 96, 96),
    full: Annotated[bool, typer.Option("--full", help="Hide no mask.")] = False,
) -> None:
    """Make a cohort of digital abdomens, partially labelled unless --full is given."""
    from hepar.params import PhantomParams, read_section
    from hepar.phantoms import CohortDesign, write_phantoms
    from hepar.runtime.progress import stage

    labels = "full" if full else "partial"
    p = read_section(PhantomParams, {"cases": cases, "seed": seed, "size_zyx": size, "labels": labels})
    design = CohortDesign().revealed() if full else CohortDesign()
    with stage("phantom") as running, running.counting(cases, "phantoms") as count:
        table = write_phantoms(
            out,
            cases=p.cases,
            seed=p.seed,
            size_zyx=p.size_zyx,
            design=design,
            progress=lambda done, _: count.advance(done),
        )
    print(table)


@cohorts_app.command(rich_help_panel=PANEL)
def check(
    source: Source = None,
    overrides: Annotated[
        str, typer.Option(help='Other values, as JSON: \'{"evaluate": {"overlap": 0.75}}\'.', show_default="none")
    ] = "{}",
    layout: Layout = None,
    split_from: SplitFrom = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Check the params, and that a run can reach its source, MLflow, the store and the patient key."""
    import hepar.planning.preflight
    from hepar.params import override_params
    from hepar.runtime.progress import stage

    loaded = load_with_options(params, source, layout, split_from)
    with stage(hepar.planning.preflight.STAGE):
        hepar.planning.preflight.check_params(override_params(loaded, _parsed(overrides), "--overrides"))
    print("ready to run")


def _parsed(overrides: str) -> dict[str, Any]:
    """Overrides from JSON. Raises ParamsError unless they are an object."""
    try:
        found = json.loads(overrides)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ParamsError(f"--overrides is {overrides!r} but must be a JSON object")
    return found


@cohorts_app.command(rich_help_panel=PANEL)
def list_source(
    out: Annotated[Path, typer.Option(help="CSV file to write; an unchanged listing leaves it untouched.")],
    source: Annotated[str | None, typer.Argument(help=SOURCE_HELP)] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """List the files of a source as CSV, so that DVC detects added and changed scans."""
    import hepar.ingest.listing

    _write_if_changed(out, hepar.ingest.listing.list_source(load_with_options(params, source).source))


def _write_if_changed(path: Path, text: str) -> None:
    """Write a text file; one that already holds the text keeps its inode and time."""
    if path.is_file() and path.read_text() == text:
        return
    write_text(path, text)


@cohorts_app.command("cases", rich_help_panel=PANEL)
def list_cases(
    cohort: Annotated[Path, typer.Argument(help="Cohort folder, written by 'hepar ingest'.")] = COHORT,
    format: Annotated[TableFormat, typer.Option(help="Output format.")] = TableFormat.TABLE,
) -> None:
    """List the cases of a cohort, and the refused ones with the rule they break."""
    from hepar.ingest.summary import cohort_table, summary_line

    table = cohort_table(cohort)
    print_frame(table, format)
    if format == TableFormat.TABLE:
        print(summary_line(table))


@cohorts_app.command(rich_help_panel=PANEL)
def plan(
    cohort: CohortFolder = COHORT,
    memory_gib: Annotated[float, typer.Option(min=0.1, help="Memory for a training step, on each GPU.")] = 8.0,
    out: Annotated[Path | None, typer.Option(help="Also write the proposals, as a params file.")] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Propose spacing, CT window, MR percentiles, patch, batch, depth and strides for a cohort, with reasons."""
    from rich.console import Console

    from hepar.cases import Cohort
    from hepar.params import dump_params, load_params, write_preset
    from hepar.planning.cohort_statistics import compute_statistics, summarise_statistics
    from hepar.planning.proposals import propose

    loaded = load_params(params)
    cases = Cohort.load(cohort)
    cases.verify(cases)
    statistics = compute_statistics(cases)
    proposals = propose(statistics, loaded.network, loaded.train_universal.training, memory_gib)
    console = Console(soft_wrap=True, highlight=False)
    for sentence in summarise_statistics(statistics):
        console.print(sentence, markup=False)
    current = dump_params(loaded)
    for proposal in proposals:
        console.print(f"\n{proposal.key}: {proposal.value}", markup=False)
        console.print(f"  {proposal.reason}.", markup=False)
        console.print(f"  {params} has {_value(current, proposal.key)}.", markup=False)
    if out is not None:
        write_preset(out, params, {p.key: p.value for p in proposals}, "proposed by `hepar plan`")
        console.print(f"\nwritten to {out}", markup=False)


def _value(values: Any, key: str) -> Any:
    """The value of a dotted key; None if there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


@cohorts_app.command(rich_help_panel=PANEL)
def networks(params: ParamsFile = PARAMS) -> None:
    """Compare networks by parameters and multiply-adds, at the patch size of train_universal."""
    from rich.console import Console
    from rich.table import Table

    from hepar.networks import BUILDERS, cost
    from hepar.params import load_params

    loaded = load_params(params)
    patch = loaded.train_universal.training.patch_zyx
    table = Table("network.name", "patch z×y×x", "parameters", "multiply-adds", "settings")
    for name in BUILDERS:
        own = name == loaded.network.name
        if name == "medformer" and not own:
            continue  # it has no default settings
        config = loaded.network.config if own else {}
        size, found = _smallest_patch(patch, partial(cost, name, config))
        amounts = f"{found.parameters / 1e6:.2f} M", f"{found.multiply_adds / 1e9:.1f} G"
        table.add_row(name, "×".join(map(str, size)), *amounts, "params file" if own else "default")
    Console().print(table)


def _smallest_patch(patch: SizeZYX, cost: Callable[[SizeZYX], Any]) -> tuple[SizeZYX, Any]:
    """The patch, or the next larger one that the network accepts, and the network's cost on it."""
    z, y, x = patch
    *smaller, largest = ((-(-z // by) * by, -(-y // by) * by, -(-x // by) * by) for by in MULTIPLES)
    for size in smaller:
        with suppress(ParamsError):
            return size, cost(size)
    return largest, cost(largest)


@cohorts_app.command("params", rich_help_panel=PANEL)
def show_params(params: ParamsFile = PARAMS) -> None:
    """Print all parameters of a params file, with those of the files it extends."""
    import yaml

    from hepar.params import dump_params, load_params

    print(yaml.safe_dump(dump_params(load_params(params)), sort_keys=False), end="")
