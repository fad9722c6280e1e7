"""Commands that score and compare: masks of any model against a reference, two or more models with each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hepar.cases import Modality
from hepar.cli.messages import print_message
from hepar.cli.options import REPORT
from hepar.errors import DataError, ParamsError
from hepar.evaluation.breakdown import Breakdown

if TYPE_CHECKING:
    from hepar.evaluation.score_table import ScoreTable

PANEL = "Scores"
LABELS = "liver=1,tumour=2"
RESAMPLES, SEED = 5000, 1  # of the bootstrap
LABELS_HELP = "What the values of a label map mean: NAME=VALUE,… with the names liver, tumour and background."

evaluation_app = typer.Typer()
Resamples = Annotated[int, typer.Option(min=1, help="Bootstrap resamples of patients.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")]


@evaluation_app.command(rich_help_panel=PANEL)
def score(
    reference: Annotated[Path, typer.Argument(help="Folder of label maps by experts: NIfTI, NRRD or MetaImage.")],
    prediction: Annotated[Path, typer.Argument(help="Folder of predicted label maps of the same names.")],
    labels: Annotated[str, typer.Option(help=LABELS_HELP)] = LABELS,
    prediction_labels: Annotated[
        str | None, typer.Option(help="The same for the predictions.", show_default="as --labels")
    ] = None,
    out: Annotated[Path, typer.Option(help="Report folder to write.")] = Path("scores"),
    table: Annotated[
        Path | None,
        typer.Option(
            help="A table with case_id (the file name without its ending) and any of patient_id, modality, sequence,"
            " source, liver_state, tumour_state, spacing_known; or cases.csv of a report."
        ),
    ] = None,
    modality: Annotated[
        Modality | None, typer.Option(case_sensitive=False, help="Modality of cases whose row in --table has none.")
    ] = None,
    resamples: Resamples = RESAMPLES,
    seed: Seed = SEED,
) -> None:
    """Score predicted masks of any model against reference masks; writes the report that 'evaluate' writes.

    The liver includes its tumours. Without a table each file is a patient of its own and all labels are known: a
    reference without tumour is tumour-free.
    """
    from hepar.evaluation.folder_scores import MaskFolders, score_folders
    from hepar.evaluation.mask_folders import LabelValues
    from hepar.evaluation.summary import Bootstrap

    values = LabelValues.parse(labels)
    predicted = values if prediction_labels is None else LabelValues.parse(prediction_labels)
    folders = MaskFolders(reference, prediction, values, predicted, table, modality)
    report = score_folders(folders, out, Bootstrap(seed, resamples))
    for name, group in report.metrics().items():
        dices = [f"{structure} Dice {_mean(group[structure]['dice'])}" for structure in ("liver", "tumour")]
        print(f"{name}: {', '.join(dices)}")
    print(report.page)


def _mean(estimate: dict[str, Any]) -> str:
    return "not scored" if estimate["mean"] is None else f"{estimate['mean']:.3f} (n {estimate['n']})"


@evaluation_app.command(rich_help_panel=PANEL)
def compare(
    scores: Annotated[
        list[str],
        typer.Argument(
            help="Two or more of: working directory of a run, report folder, cases.csv of a report, registered version"
            " (models:/NAME@ALIAS, models:/NAME/VERSION). The first is compared with each of the others.",
        ),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Compare this metric, such as 'liver NSD'; repeatable.", show_default="a set of seven"),
    ] = None,
    by: Annotated[
        list[Breakdown] | None,
        typer.Option(help="Rows beside those of each modality; repeatable.", show_default="source and size"),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write everything as JSON.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw a forest plot: .svg or .png.")] = None,
    resamples: Resamples = RESAMPLES,
    seed: Seed = SEED,
) -> None:
    """Compare models on the patients that both were scored on: differences with intervals, tests and effect sizes.

    Prints a table in Markdown. Holm's correction takes every row of enough patients into account, so ask for few.
    """
    from hepar.evaluation.comparison import DEFAULT_METRICS, RECALL, compare_tables
    from hepar.evaluation.comparison_table import comparison_table
    from hepar.evaluation.forest_plot import check_figure, write_forest_plot
    from hepar.evaluation.scored_alike import scoring_differences
    from hepar.evaluation.summary import Bootstrap
    from hepar.runtime.artifacts import write_json

    if len(scores) < 2:
        raise DataError(f"{scores[0]} alone has nothing to be compared with: give two or more")
    if figure is not None:
        check_figure(figure)
    metrics = metric or DEFAULT_METRICS
    if Breakdown.SIZE in (by or ()) and RECALL not in metrics:
        raise ParamsError(f"--by is size, but only {RECALL} is known by lesion size: add --metric {RECALL!r}")
    tables = [_read(place) for place in scores]
    comparison = compare_tables(tables, metrics, by or tuple(Breakdown), Bootstrap(seed, resamples))
    if json_file is not None:
        write_json(json_file, comparison.as_json())
    if figure is not None:
        write_forest_plot(comparison, figure)
    if differences := scoring_differences(tables):
        print_message(f"warning: not all was scored alike, so it may not be the models that differ: {differences}")
    print(comparison_table(comparison))


def _read(place: str) -> ScoreTable:
    from hepar.evaluation.score_table import read_scores
    from hepar.params import REGISTERED

    if place.startswith(REGISTERED):
        from hepar.registry.version_scores import version_scores

        return version_scores(place)
    return read_scores(Path(place), REPORT.name)
