"""The command `hepar`: one command per stage in flow order, `run` for all of them, and what one does with a model."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from hepar import __version__
from hepar.cases import Cohort, Modality
from hepar.cli.options import (
    CALIBRATION,
    COHORT,
    PARAMS,
    POOL,
    PSEUDO,
    REGISTRATION,
    REPORT,
    REVIEWS,
    TEACHER_CT,
    TEACHER_MR,
    UNIVERSAL,
    CohortFolder,
    CtTeacher,
    Layout,
    ModelFolder,
    MrTeacher,
    ParamsFile,
    PoolFolder,
    PseudoFolder,
    ReportFolder,
    Source,
    SplitFrom,
    TableFormat,
    print_table,
)
from hepar.cli.pool import pool_app
from hepar.errors import DataError, HeparError, ParamsError, Preempted
from hepar.params import (
    Params,
    PhantomParams,
    PreprocessingParams,
    SizeZYX,
    check_new_preset,
    dump_params,
    load_params,
    read_section,
    write_preset,
)

RUNNERS = "hepar.runners"  # the entry point group in which runners of the whole pipeline announce themselves

app = typer.Typer(
    help="One universal liver-tumour segmentation model for CT and MR, out of labels that do not agree."
    " The stages run in this order: ingest, train-liver (CT, MR), pseudo-label, assemble-pool, train-universal,"
    " evaluate, register; 'run' runs them all.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
SIDES = (1, 32, 64)  # multiples that sides of a patch are raised to, until a network takes it
STAGES, TOOLS = "Stages, in flow order", "Tools"
app.add_typer(pool_app, name="pool", rich_help_panel=TOOLS)


@app.callback(invoke_without_command=True)
def _main(show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show_version:
        print(f"hepar {__version__}")
        raise typer.Exit


@app.command(rich_help_panel=STAGES)
def ingest(
    source: Source = "phantoms",
    cohort: CohortFolder = COHORT,
    layout: Layout = None,
    split_from: SplitFrom = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Read a source, check every case, bring it to one orientation and split it by patient."""
    import hepar.stages.ingest

    hepar.stages.ingest.run(source, cohort, _with_options(load_params(params), layout, split_from).ingest)


@app.command(rich_help_panel=STAGES)
def train_liver(
    modality: Annotated[Modality, typer.Option(case_sensitive=False, help="Whose liver teacher to train.")],
    cohort: CohortFolder = COHORT,
    model: Annotated[Path | None, typer.Option(help="Where to write it.  [default: models/liver-MODALITY]")] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Train the liver teacher of one modality on the manual livers."""
    import hepar.stages.train_liver

    p = load_params(params)
    folder = model or {Modality.CT: TEACHER_CT, Modality.MR: TEACHER_MR}[modality]
    hepar.stages.train_liver.run(cohort, folder, modality, p.preprocessing, p.network, p.train_liver)


@app.command(rich_help_panel=STAGES)
def pseudo_label(
    cohort: CohortFolder = COHORT,
    teacher_ct: CtTeacher = TEACHER_CT,
    teacher_mr: MrTeacher = TEACHER_MR,
    pseudo: PseudoFolder = PSEUDO,
    params: ParamsFile = PARAMS,
) -> None:
    """Give a liver mask to the cases that lack one, and judge it by the gates."""
    import hepar.stages.pseudo_label

    hepar.stages.pseudo_label.run(
        cohort, {Modality.CT: teacher_ct, Modality.MR: teacher_mr}, pseudo, load_params(params).pseudo_label
    )


@app.command(rich_help_panel=STAGES)
def assemble_pool(
    cohort: CohortFolder = COHORT,
    pseudo: PseudoFolder = PSEUDO,
    pool: PoolFolder = POOL,
    reviews: Annotated[
        str | None,
        typer.Option(help="Decisions of 'hepar review'; overrides assemble_pool.reviews.", show_default="none"),
    ] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Bring manual livers, pseudo-livers and tumour labels into one mixed-label pool."""
    import hepar.stages.assemble_pool

    p = load_params(params)
    assembling = p.assemble_pool if reviews is None else p.assemble_pool.model_copy(update={"reviews": reviews})
    if not assembling.reviews and reviews is None and REVIEWS.is_dir():
        _note(f"the decisions in {REVIEWS} are not used: give --reviews {REVIEWS}")
    hepar.stages.assemble_pool.run(cohort, pseudo, pool, p.preprocessing, assembling)


@app.command(rich_help_panel=STAGES)
def train_universal(
    pool: PoolFolder = POOL,
    teacher_ct: CtTeacher = TEACHER_CT,
    teacher_mr: MrTeacher = TEACHER_MR,
    model: ModelFolder = UNIVERSAL,
    params: ParamsFile = PARAMS,
) -> None:
    """Train one model for CT and MR, liver and tumour, on the pool."""
    import hepar.stages.train_universal

    p = load_params(params)
    teachers = {Modality.CT: teacher_ct, Modality.MR: teacher_mr}
    hepar.stages.train_universal.run(pool, teachers, model, p.network, p.train_universal)


@app.command(rich_help_panel=STAGES)
def evaluate(
    cohort: CohortFolder = COHORT,
    model: ModelFolder = UNIVERSAL,
    report: ReportFolder = REPORT,
    params: ParamsFile = PARAMS,
) -> None:
    """Score the model on the held-out patients and write metrics.json and report.html."""
    import hepar.stages.evaluate

    hepar.stages.evaluate.run(cohort, model, report, load_params(params).evaluate)


@app.command(rich_help_panel=STAGES)
def register(
    model: ModelFolder = UNIVERSAL,
    report: ReportFolder = REPORT,
    registration: Annotated[Path, typer.Option(help="Where to write what was registered.")] = REGISTRATION,
    params: ParamsFile = PARAMS,
) -> None:
    """Register the model in MLflow as champion or challenger."""
    import hepar.stages.register

    hepar.stages.register.run(model, report, registration, load_params(params).register_model)


@app.command(rich_help_panel=STAGES)
def run(
    source: Source = "phantoms",
    workdir: Annotated[Path, typer.Option(help="Everything is written below it.")] = Path("runs/latest"),
    runner: Annotated[
        str, typer.Option(help="How stages run: 'subprocess' here, 'docker' in containers.")
    ] = "subprocess",
    image: Annotated[str, typer.Option(help="The image of the docker runner.")] = "hepar:latest",
    layout: Layout = None,
    split_from: SplitFrom = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Run the whole pipeline through kfp.local and print what came out."""
    loaded = _with_options(load_params(params), layout, split_from)
    _runner(runner)(source=source, params=loaded, workdir=workdir, image=image)


def _with_options(params: Params, layout: str | None, split_from: str | None) -> Params:
    """The parameters, with those of ingest that options name in place of the file's."""
    given = {"layout": layout, "split_from": split_from}
    ingest = params.ingest.model_copy(update={name: value for name, value in given.items() if value is not None})
    return params.model_copy(update={"ingest": ingest})


def _runner(name: str) -> Callable[..., None]:
    found = {entry.name: entry for entry in importlib.metadata.entry_points(group=RUNNERS)}
    if name not in found:
        raise HeparError(f"--runner is {name!r}, must be one of {', '.join(sorted(found))}")
    loaded: Callable[..., None] = found[name].load()
    return loaded


@app.command(rich_help_panel=TOOLS)
def phantom(
    out: Annotated[Path, typer.Option(help="The folder to write cohort.csv and the volumes to.")],
    cases: Annotated[int, typer.Option(min=8, help="How many scans, half CT, half MR.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same scans.")] = 7,
    size: Annotated[tuple[int, int, int], typer.Option(help="Voxels along z, y, x.")] = (64, 96, 96),
) -> None:
    """Make a cohort of digital abdomens with labels that do not agree."""
    from hepar.phantoms import write_phantoms
    from hepar.runtime.progress import stage

    p = read_section(PhantomParams, {"cases": cases, "seed": seed, "size_zyx": size})
    with stage("phantom") as running, running.counting(cases, "phantoms") as count:
        table = write_phantoms(
            out, cases=p.cases, seed=p.seed, size_zyx=p.size_zyx, progress=lambda done, _: count.advance(done)
        )
    print(table)


@app.command(rich_help_panel=TOOLS)
def predict(
    image: Annotated[Path, typer.Argument(help="A scan that SimpleITK reads.")],
    out: Annotated[Path, typer.Option(help="Where to write the labels: 0 background, 1 liver, 2 tumour.")],
    model: ModelFolder = UNIVERSAL,
    modality: Annotated[
        Modality | None, typer.Option(case_sensitive=False, help="CT or MR; told by the intensities if not given.")
    ] = None,
    overlap: Annotated[float, typer.Option(min=0, max=0.9, help="Of neighbouring windows.")] = 0.5,
    min_lesion_ml: Annotated[float, typer.Option(min=0, help="Smaller tumour components are dropped.")] = 0.1,
) -> None:
    """Segment liver and tumour of one scan, on its own grid, and print the volumes."""
    from hepar.imaging.preprocessing import guess_modality
    from hepar.imaging.volumes import Geometry, check_writable, read_image, to_image, write_image
    from hepar.inference.prediction import load_model, segment
    from hepar.runtime.device import pick_device, use_threads

    check_writable(out)
    if out.exists() and image.exists() and out.samefile(image):
        raise DataError(f"{out} is the scan itself: name another file for its labels")
    use_threads(0)
    scan = read_image(image)
    kind = modality or guess_modality(scan)
    found = segment(load_model(model, pick_device()), scan, kind, overlap, min_lesion_ml)
    write_image(to_image(found.labels, Geometry.of(scan)), out)
    volumes = {"liver_ml": round(found.liver_ml, 3), "tumour_ml": round(found.tumour_ml, 3)}
    result = {"labels": str(out), "modality": str(kind), **volumes}
    print(json.dumps(result))


@app.command(rich_help_panel=TOOLS)
def plan(
    cohort: CohortFolder = COHORT,
    memory_gib: Annotated[float, typer.Option(min=0.1, help="What a training step may take, on each GPU.")] = 8.0,
    out: Annotated[Path | None, typer.Option(help="Write the proposals as a params file.")] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Propose spacing, CT window, MR recipe, patch, batch, depth and strides for a cohort, and say why."""
    from hepar.planning.proposals import describe, in_words, propose

    loaded = load_params(params)
    facts = describe(Cohort.load(cohort))
    proposals = propose(facts, loaded.network, loaded.train_universal.training, memory_gib)
    console = Console(soft_wrap=True, highlight=False)
    for sentence in in_words(facts):
        console.print(sentence, markup=False)
    now = dump_params(loaded)
    for proposal in proposals:
        console.print(f"\n{proposal.key}: {proposal.value}", markup=False)
        console.print(f"  {proposal.reason}.", markup=False)
        console.print(f"  {params} has {_value(now, proposal.key)}.", markup=False)
    if out is not None:
        write_preset(out, params, {p.key: p.value for p in proposals}, "proposed by `hepar plan`")
        console.print(f"\nwritten to {out}", markup=False)


@app.command(rich_help_panel=TOOLS)
def review(
    pseudo: Annotated[Path, typer.Argument(help="The pseudo-labels, written by 'hepar pseudo-label'.")] = PSEUDO,
    cohort: CohortFolder = COHORT,
    reviews: Annotated[Path, typer.Option(help="Where decisions and corrected masks are kept.")] = REVIEWS,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    who: Annotated[str, typer.Option(help="Who decides.", show_default="the user's name")] = "",
) -> None:
    """Look at pseudo-livers in the browser, and accept, reject or correct them; 'assemble-pool' honours it."""
    from hepar.pseudo_labels.review_page import serve

    def ready(address: str) -> None:
        print(f"open {address}\nCtrl-C ends it; decisions are in {reviews}", flush=True)

    serve(cohort, pseudo, reviews, port, who, ready)


@app.command(rich_help_panel=TOOLS)
def calibrate_gates(
    cohort: CohortFolder = COHORT,
    calibration: Annotated[Path, typer.Option(help="Where to write observations, curve and picture.")] = CALIBRATION,
    out: Annotated[Path | None, typer.Option(help="Write the calibrated gates as a params file.")] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Hide manual livers from teachers, and learn which pseudo-livers can be trusted."""
    import hepar.planning.gates

    if out is not None:
        check_new_preset(out, params)
    gates = hepar.planning.gates.run(cohort, calibration, load_params(params))
    print(hepar.planning.gates.summary(calibration))
    if out is not None:
        values = {f"pseudo_label.gates.{name}": value for name, value in gates.items()}
        write_preset(out, params, values, "calibrated by `hepar calibrate-gates`")
        print(f"written to {out}")


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


@app.command(rich_help_panel=TOOLS)
def networks(params: ParamsFile = PARAMS) -> None:
    """List the networks with their parameters and multiply-adds, for the patch of train_universal."""
    from hepar.networks import BUILDERS, cost

    loaded = load_params(params)
    patch = loaded.train_universal.training.patch_zyx
    table = Table("network.name", "patch z×y×x", "parameters", "multiply-adds", "settings")
    for name in BUILDERS:
        own = name == loaded.network.name
        if name == "medformer" and not own:
            continue  # it has no settings but those of a params file
        config = loaded.network.config if own else {}
        sides, counted = _fitting(patch, partial(cost, name, config))
        amounts = f"{counted.parameters / 1e6:.2f} M", f"{counted.multiply_adds / 1e9:.1f} G"
        table.add_row(name, "×".join(map(str, sides)), *amounts, "of the params file" if own else "by default")
    Console().print(table)


def _fitting(patch: SizeZYX, count: Callable[[SizeZYX], Any]) -> tuple[SizeZYX, Any]:
    """What a network costs on the patch, or on the next larger one that it can take, and on which."""
    z, y, x = patch
    *smaller, largest = ((-(-z // by) * by, -(-y // by) * by, -(-x // by) * by) for by in SIDES)
    for size in smaller:
        with suppress(ParamsError):
            return size, count(size)
    return largest, count(largest)


@app.command(rich_help_panel=TOOLS)
def import_weights(
    checkpoint: Annotated[Path, typer.Argument(help="A published MedFormer checkpoint: .pt, .pth or .npz.")],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    params: ParamsFile = PARAMS,
    spacing: Annotated[
        tuple[float, float, float], typer.Option(help="Millimetres along z, y, x that it was trained at.")
    ] = (1.0, 0.77, 0.77),
    patch: Annotated[tuple[int, int, int], typer.Option(help="Patch along z, y, x.")] = (128, 128, 128),
    window: Annotated[tuple[float, float], typer.Option(help="HU window that it was trained on.")] = (-17.0, 201.0),
) -> None:
    """Make a model folder of a published MedFormer checkpoint; the network is that of the params file."""
    import hepar.inference.import_weights
    from hepar.imaging.preprocessing import make_preprocessing_plan

    p = load_params(params)
    given = {"spacing_zyx_mm": spacing, "window_hu": window, "mr_percentiles": p.preprocessing.mr_percentiles}
    plan = make_preprocessing_plan((), read_section(PreprocessingParams, given))
    hepar.inference.import_weights.run(checkpoint, out, p.network, plan, patch)
    print(out)


@app.command(rich_help_panel=TOOLS)
def promote(
    version: Annotated[str, typer.Argument(help="The version's number.")],
    params: ParamsFile = PARAMS,
    force: Annotated[bool, typer.Option(help="Promote even if the gates say no.")] = False,
) -> None:
    """Make a registered version the champion if it passes the gates."""
    import hepar.stages.register

    decision = hepar.stages.register.promote(version, load_params(params).register_model, force)
    print("; ".join([f"version {version}: {'champion' if decision.promote else 'not promoted'}", *decision.reasons]))
    if not decision.promote:
        raise typer.Exit(1)


@app.command("params", rich_help_panel=TOOLS)
def show_params(params: ParamsFile = PARAMS) -> None:
    """Print the parameters in full, with what the file extends filled in."""
    print(yaml.safe_dump(dump_params(load_params(params)), sort_keys=False), end="")


@app.command(rich_help_panel=TOOLS)
def cases(
    cohort: Annotated[Path, typer.Argument(help="A cohort folder.")] = COHORT,
    format: Annotated[TableFormat, typer.Option(help="How to print them.")] = TableFormat.TABLE,
) -> None:
    """List the cases of a cohort, and those that were refused with the rule that they break."""
    from hepar.ingest.summary import cohort_table, in_a_line

    table = cohort_table(cohort)
    print_table(table, format)
    if format == TableFormat.TABLE:
        print(in_a_line(table))


MENDABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)  # a full disk, or one not to write to


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Print what the user can mend as one sentence and exit with code 2, or 75 where the same command can go on."""
    try:
        yield
    except HeparError as error:
        _note(str(error))
        sys.exit(os.EX_TEMPFAIL if isinstance(error, Preempted) else 2)
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        _note(f"{error.filename or 'a file'} cannot be written or read: {error.strerror}")
        sys.exit(2)


def _note(text: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"hepar: {text}", markup=False)


def main() -> None:
    """The entry point of the command line."""
    with errors_as_sentences():
        app()
