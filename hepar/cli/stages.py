"""The seven stages, in pipeline order, and `run` for all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from hepar.cases import Modality
from hepar.cli.entry_points import entry_points
from hepar.cli.messages import print_message
from hepar.cli.options import (
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
    MrTeacher,
    ParamsFile,
    PoolFolder,
    PseudoFolder,
    ReportFolder,
    ScoredCohort,
    Source,
    SplitFrom,
    UniversalModel,
    load_with_options,
    scored_cohort,
)
from hepar.errors import HeparError
from hepar.runtime.environment import DEFAULT_IMAGE

RUNNERS = "hepar.runners"  # the entry point group of runners of the whole pipeline
OUTCOMES = "hepar.run_outcomes"  # how runs ended that a runner of the same name has handed to a cluster
PANEL = "Stages, in pipeline order"

stages_app = typer.Typer()


@stages_app.command(rich_help_panel=PANEL)
def ingest(
    source: Source = None,
    cohort: CohortFolder = COHORT,
    layout: Layout = None,
    split_from: SplitFrom = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Read scans and labels, check every case, reorient it and split the cohort by patient."""
    import hepar.stages.ingest

    p = load_with_options(params, source, layout, split_from)
    hepar.stages.ingest.run(p.source, cohort, p.ingest, p.modalities)


@stages_app.command(rich_help_panel=PANEL)
def train_liver(
    modality: Annotated[Modality, typer.Option(case_sensitive=False, help="Modality of the teacher.")],
    cohort: CohortFolder = COHORT,
    model: Annotated[
        Path | None,
        typer.Option(help="Model folder to write.", show_default="models/liver-MODALITY, with --fold -fold-N"),
    ] = None,
    fold: Annotated[
        int | None,
        typer.Option(help="Train the teacher of this fold alone, from 1 to train_liver.folds; see gather-folds."),
    ] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Train the liver teacher of one modality on manual liver masks."""
    import hepar.stages.train_liver
    from hepar.params import load_params
    from hepar.training.folds import Fold

    p = load_params(params)
    folder = model or _teacher(modality, fold)
    teacher = modality if fold is None else Fold(modality, fold, p.train_liver.folds)
    hepar.stages.train_liver.run(cohort, folder, teacher, p.preprocessing, p.network, p.train_liver, p.experiment)


@stages_app.command(rich_help_panel=PANEL)
def gather_folds(
    modality: Annotated[Modality, typer.Option(case_sensitive=False, help="Modality of the teacher.")],
    folds: Annotated[
        list[Path] | None,
        typer.Argument(help="Model folders of all folds.", show_default="models/liver-MODALITY-fold-1 and on"),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model folder to write.", show_default="models/liver-MODALITY")
    ] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Make one teacher of folds that 'train-liver --fold' has trained, as on several machines."""
    from hepar.params import load_params
    from hepar.training.ensemble import gather
    from hepar.training.folds import Fold

    if not folds:
        total = load_params(params).train_liver.folds
        Fold(modality, 1, total).check(total)
        folds = [_teacher(modality, number) for number in range(1, total + 1)]
    gather(folds, model or _teacher(modality), modality)


@stages_app.command(rich_help_panel=PANEL)
def pseudo_label(
    cohort: CohortFolder = COHORT,
    teacher_ct: CtTeacher = TEACHER_CT,
    teacher_mr: MrTeacher = TEACHER_MR,
    pseudo: PseudoFolder = PSEUDO,
    params: ParamsFile = PARAMS,
) -> None:
    """Predict liver masks for the cases without one, and accept or reject each by quality gates."""
    import hepar.stages.pseudo_label
    from hepar.params import load_params

    teachers = {Modality.CT: teacher_ct, Modality.MR: teacher_mr}
    hepar.stages.pseudo_label.run(cohort, teachers, pseudo, load_params(params).pseudo_label)


@stages_app.command(rich_help_panel=PANEL)
def assemble_pool(
    cohort: CohortFolder = COHORT,
    pseudo: PseudoFolder = PSEUDO,
    pool: PoolFolder = POOL,
    reviews: Annotated[
        str | None,
        typer.Option(help="Folder of decisions, written by 'hepar review'; overrides assemble_pool.reviews."),
    ] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Combine manual masks, pseudo-livers and tumour masks into one partially labelled training pool."""
    import hepar.stages.assemble_pool
    from hepar.params import load_params

    p = load_params(params)
    section = p.assemble_pool if reviews is None else p.assemble_pool.model_copy(update={"reviews": reviews})
    if not section.reviews and reviews is None and REVIEWS.is_dir():
        print_message(f"{REVIEWS} has review decisions, which are ignored: pass --reviews {REVIEWS} to apply them")
    hepar.stages.assemble_pool.run(cohort, pseudo, pool, p.modalities, p.preprocessing, section)


@stages_app.command(rich_help_panel=PANEL)
def train_universal(
    pool: PoolFolder = POOL,
    teacher_ct: CtTeacher = TEACHER_CT,
    teacher_mr: MrTeacher = TEACHER_MR,
    model: UniversalModel = UNIVERSAL,
    params: ParamsFile = PARAMS,
) -> None:
    """Train one model for CT and MR, liver and tumour, on the pool."""
    import hepar.stages.train_universal
    from hepar.params import load_params

    p = load_params(params)
    teachers = {Modality.CT: teacher_ct, Modality.MR: teacher_mr}
    hepar.stages.train_universal.run(pool, teachers, model, p.network, p.train_universal, p.experiment)


@stages_app.command(rich_help_panel=PANEL)
def evaluate(
    cohort: CohortFolder = COHORT,
    model: UniversalModel = UNIVERSAL,
    report: ReportFolder = REPORT,
    params: ParamsFile = PARAMS,
) -> None:
    """Score the model on the held-out patients; writes metrics.json and report.html."""
    import hepar.stages.evaluate
    from hepar.params import load_params

    hepar.stages.evaluate.run(cohort, model, report, load_params(params).evaluate)


@stages_app.command(rich_help_panel=PANEL)
def register(
    model: UniversalModel = UNIVERSAL,
    report: ReportFolder = REPORT,
    registration: Annotated[Path, typer.Option(help="Registration folder to write.")] = REGISTRATION,
    cohort: ScoredCohort = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Register the model in MLflow as champion or challenger."""
    import hepar.stages.register
    from hepar.params import load_params

    p = load_params(params)
    folder = scored_cohort(cohort)
    hepar.stages.register.run(model, report, registration, p.register_model, p.experiment, folder)


@stages_app.command(rich_help_panel=PANEL)
def run(
    source: Source = None,
    workdir: Annotated[Path, typer.Option(help="Folder for everything that the run writes.")] = Path("runs/latest"),
    runner: Annotated[
        str,
        typer.Option(
            help="Where stages run: 'subprocess' in this environment, 'docker' in containers, 'cluster' on KFP,"
            " 'submit' there without waiting."
        ),
    ] = "subprocess",
    image: Annotated[str, typer.Option(help="Image for the docker runner.")] = DEFAULT_IMAGE,
    layout: Layout = None,
    split_from: SplitFrom = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Run the whole pipeline on this machine through kfp.local, and print the scores."""
    p = load_with_options(params, source, layout, split_from)
    load_runner(runner)(params=p, workdir=workdir, image=image)


def _teacher(modality: Modality, fold: int | None = None) -> Path:
    """The default folder of a teacher, or of one of its folds."""
    folder = {Modality.CT: TEACHER_CT, Modality.MR: TEACHER_MR}[modality]
    return folder if fold is None else folder.with_name(f"{folder.name}-fold-{fold}")


def load_runner(name: str) -> Callable[..., str | None]:
    """A runner of the whole pipeline: returns the id of a run on a cluster, waited for or not, and None for one here.

    Raises HeparError if no runner has this name.
    """
    runners = entry_points(RUNNERS)
    if name not in runners:
        raise HeparError(f"--runner is {name!r} but must be one of {', '.join(sorted(runners))}")
    loaded: Callable[..., str | None] = runners[name].load()
    return loaded


def load_outcome(name: str) -> Callable[[str], str] | None:
    """How a run on a cluster stands, by its id, as `retraining.submission` names it; None if the runner cannot tell."""
    entry = entry_points(OUTCOMES).get(name)
    return None if entry is None else entry.load()
