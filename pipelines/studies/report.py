"""The report of a study: claims, a table and a forest plot per figure, what each arm spent, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hepar.cases import Modality
from hepar.errors import DataError
from hepar.evaluation.bootstrap import Estimate, bootstrap_ratio
from hepar.evaluation.comparison import ComparedMetric, Comparison, Metric, choose_metrics, compare_tables
from hepar.evaluation.comparison_table import TOO_FEW, metric_label, signed
from hepar.evaluation.forest_plot import write_forest_plot
from hepar.evaluation.paired import MIN_PATIENTS
from hepar.evaluation.report_folder import Report
from hepar.evaluation.score_table import ScoreTable, share_cases
from hepar.evaluation.summary import Bootstrap
from hepar.evaluation.tables import UNDEFINED, interval, number
from hepar.runtime.artifacts import write_json
from hepar.runtime.whole_files import write_text
from pipelines.studies.budget import spending
from pipelines.studies.claims import RULE, JudgedClaim, judge_claim
from pipelines.studies.definition import Study
from pipelines.studies.layout import UNKNOWN, commits_of, result_of, seconds_of
from pipelines.studies.plan import StudyCell, unique_steps
from pipelines.studies.scores import ArmScores, Missing, read_arm_scores

REPORTS, PAGE, FIGURES = "reports", "study.md", "study.json"
METRICS = ("liver Dice", "tumour Dice", "lesion recall", "specificity")
DIGITS = 3


@dataclass(frozen=True)
class ArmFigure:
    """One metric of an arm in one modality, over all its scans, and against the first arm where both have scans."""

    arm: str
    modality: str
    value: Estimate
    versus_first: ComparedMetric | None
    seeds: int


@dataclass(frozen=True)
class StudyFigure:
    """A metric of all arms. `comparison` is None if no arm can be compared with the first.

    `incomparable` are the reasons why arms that share scans with the first are not compared, by arm.
    """

    metric: Metric
    arms: tuple[ArmFigure, ...]
    comparison: Comparison | None
    incomparable: Mapping[str, str]

    @property
    def plot(self) -> str:
        """The file name of the forest plot."""
        return f"forest-{self.metric.name.lower().replace(' ', '-')}.svg"


def write_study_report(study: Study, cells: Sequence[StudyCell], missing: Sequence[Missing], folder: Path) -> Path:
    """Write `reports/NAME` in the folder of all studies; returns the page.

    Raises ArtifactError if a report of a cell is damaged.
    """
    arms = read_arm_scores(cells, missing, folder)
    evaluate = study.base.evaluate
    bootstrap = Bootstrap(evaluate.bootstrap_seed, evaluate.bootstrap_resamples)
    figures = [figure_of(metric, arms, bootstrap) for metric in choose_metrics(METRICS)]
    by_name = {arm.name: arm for arm in arms}
    claims = [judged for claim in study.file.claims for judged in judge_claim(claim, by_name, bootstrap)]
    place = folder / REPORTS / study.name
    for figure in figures:
        if figure.comparison is not None:
            write_forest_plot(figure.comparison, place / figure.plot)
    facts = _facts(study, cells, missing, folder)
    write_json(place / FIGURES, {**facts, "figures": [_as_json(f) for f in figures], "claims": _claims_json(claims)})
    write_text(place / PAGE, _page(study, facts, figures, claims, missing))
    return place / PAGE


def print_study_report(study: Study, cells: Sequence[StudyCell], missing: Sequence[Missing], folder: Path) -> None:
    """`write_study_report`, and print the page and where it lies."""
    page = write_study_report(study, cells, missing, folder)
    print(page.read_text())
    print(page)


def figure_of(metric: Metric, arms: Sequence[ArmScores], bootstrap: Bootstrap) -> StudyFigure:
    """A metric of all arms; the first is compared with each of the others by the seeds that both have."""
    first, *others = arms
    rows: dict[tuple[str, str], ComparedMetric] = {}
    comparable: list[ScoreTable] = []
    incomparable: dict[str, str] = {}
    own = first.pooled(first.seeds)
    for arm in others if own is not None else ():
        table, matched = arm.pooled(first.seeds), first.pooled(arm.seeds)
        if table is None or matched is None or not share_cases(matched, table):
            continue
        try:
            found = compare_tables([matched, table], [metric.name], (), bootstrap)
        except DataError as error:  # hours of training deserve a report of the other arms
            incomparable[arm.name] = str(error)
            continue
        comparable.append(table)
        rows.update({(arm.name, row.modality): row for row in found.rows})
    together = compare_tables([own, *comparable], [metric.name], (), bootstrap) if own and comparable else None
    values = [
        ArmFigure(arm.name, modality, value, rows.get((arm.name, modality)), len(arm.seeds))
        for modality in Modality
        for arm in arms
        if (value := _value(metric, arm, modality, bootstrap)).value is not None
    ]
    return StudyFigure(metric, tuple(values), together, incomparable)


def _value(metric: Metric, arm: ArmScores, modality: Modality, bootstrap: Bootstrap) -> Estimate:
    """A metric of an arm over all its seeds and the scans of a modality that have a share in it."""
    table = arm.pooled(arm.seeds)
    members = [row for row in table.rows.values() if row.identity.modality == modality] if table else []
    defined = [(row.identity.patient_id, terms) for row in members if (terms := metric.terms(row.values)) is not None]
    shares = [(patient, terms) for patient, terms in defined if terms[1]]
    return bootstrap_ratio(
        [top for _, (top, _) in shares],
        [bottom for _, (_, bottom) in shares],
        [patient for patient, _ in shares],
        bootstrap.seed,
        bootstrap.resamples,
    )


def _facts(study: Study, cells: Sequence[StudyCell], missing: Sequence[Missing], folder: Path) -> dict[str, Any]:
    """What was run: the file, what each arm spends, commits, time, and the missing cells with their reasons.

    `commits` are those of the evaluations, `step_commits` the number of steps of each commit; a step that was resumed
    by another one counts for both.
    """
    gone = {item.title for item in missing}
    finished = [cell for cell in cells if cell.title not in gone]
    reports = [Report(result_of(cell.steps[-1], folder)) for cell in finished]
    made_by = Counter(commit for step in unique_steps(finished) for commit in commits_of(step, folder) or [UNKNOWN])
    seconds = sum(seconds_of(step, folder) for step in unique_steps(list(cells)))
    return {
        "study": study.name,
        "file": study.file.model_dump(mode="json"),
        "spending": {arm.name: asdict(spending(arm.params)) for arm in study.arms},
        "cells": len(cells),
        "missing": [asdict(item) for item in missing],
        "commits": sorted({report.facts()[Report.COMMIT] for report in reports}),
        "step_commits": dict(sorted(made_by.items())),
        "hours": round(seconds / 3600, 2) if seconds else None,  # None: of a cluster
    }


def _page(
    study: Study,
    facts: Mapping[str, Any],
    figures: Sequence[StudyFigure],
    claims: Sequence[JudgedClaim],
    missing: Sequence[Missing],
) -> str:
    """The report in Markdown."""
    file, cells = study.file, facts["cells"]
    spent = "" if facts["hours"] is None else f" {facts['hours']} h of computation,"
    parts = [
        f"# Study {study.name}",
        file.question,
        f"{len(file.arms)} arms, {len(file.seeds)} seeds, {_folds(file.folds)}; {cells - len(missing)} of {cells} cells"
        f" finished,{spent} commit {', '.join(facts['commits']) or UNDEFINED}.",
        *_mixed_commits(facts["step_commits"]),
        "## Claims",
        _claims_table(claims) if claims else "The study makes none.",
        RULE,
        *(part for figure in figures for part in _figure_parts(study, figure)),
        f"Intervals: 95 %, {study.base.evaluate.bootstrap_resamples} bootstrap resamples of patients, over the mean of"
        f" the seeds; they do not cover the spread between seeds. {TOO_FEW} marks a value or a difference of fewer than"
        f" {MIN_PATIENTS} patients, with which an interval means nothing.",
        "## Arms",
        _arms_table(study, facts),
        f"One budget in {file.budget.replace('_', '-')} of each modality.",
    ]
    if missing:
        lines = "\n".join(f"- {item.title}: {item.reason}" for item in missing)
        parts.append(f"## Missing\n\n{lines}")
    return "\n\n".join(parts) + "\n"


def _mixed_commits(step_commits: Mapping[str, int]) -> list[str]:
    """That not all steps are of one commit; nothing if they are."""
    if len(step_commits) < 2:
        return []
    each = ", ".join(f"{commit} ({count})" for commit, count in step_commits.items())
    return [f"**Not all steps are of one commit**, so arms may differ by the code too. Steps of each commit: {each}."]


def _folds(folds: int) -> str:
    return "the source's own split" if folds == 1 else f"{folds} folds"


def _claims_table(claims: Sequence[JudgedClaim]) -> str:
    head = ["claim", "metric", "modality", "gain", "95 % interval", "bound", "patients", "seeds", "verdict"]
    rows = [
        [
            f"{judged.claim.claim} ({judged.claim.arm} against {judged.claim.than})",
            judged.claim.metric,
            str(judged.modality),
            UNDEFINED if judged.gain is None else signed(judged.gain, DIGITS),
            interval(judged.ci95, DIGITS) or UNDEFINED,
            signed(judged.claim.by, DIGITS),
            str(judged.patients),
            str(len(judged.seed_gains)),
            f"**{judged.verdict}**{f': {judged.reason}' if judged.reason else ''}",
        ]
        for judged in claims
    ]
    return _table(head, rows)


def _figure_parts(study: Study, figure: StudyFigure) -> list[str]:
    title = f"## {metric_label(figure.metric)}"
    if not figure.arms:
        return [title, "No arm has a score."]
    first = study.first.name
    head = ["modality", "arm", "value", "95 % interval", f"minus {first}", "95 % interval", "patients", "seeds"]
    rows = [_figure_row(item) for item in figure.arms]
    plot = [f"![Differences from {first}]({figure.plot})"] if figure.comparison is not None else []
    apart = [f"{arm} is not compared with {first}: {reason}." for arm, reason in figure.incomparable.items()]
    return [title, _table(head, rows), *apart, *plot]


def _figure_row(item: ArmFigure) -> list[str]:
    difference, low_high = UNDEFINED, UNDEFINED
    if item.versus_first is not None and (found := item.versus_first.result.difference).value is not None:
        difference, low_high = signed(found.value, DIGITS), interval(found.ci95, DIGITS) or UNDEFINED
        difference += f" {TOO_FEW}" if item.versus_first.result.too_few else ""
    few = f" {TOO_FEW}" if item.value.patients < MIN_PATIENTS else ""
    return [
        item.modality,
        item.arm,
        number(item.value.value, DIGITS),
        interval(item.value.ci95, DIGITS) or UNDEFINED,
        difference,
        low_high,
        f"{item.value.patients}{few}",
        str(item.seeds),
    ]


def _arms_table(study: Study, facts: Mapping[str, Any]) -> str:
    head = ["arm", "changes", "steps", "patches a modality", "multiply-adds a modality", "parameters"]
    rows = []
    for arm in study.arms:
        spent = facts["spending"][arm.name]
        changes = "; ".join(f"{key}: {value}" for key, value in study.file.arms[arm.name].items()) or UNDEFINED
        figures = [f"{spent['steps']}", f"{spent['patches']:.0f}", f"{spent['multiply_adds']:.3g}"]
        rows.append([arm.name, f"`{changes}`" if changes != UNDEFINED else changes, *figures, f"{spent['parameters']}"])
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def _as_json(figure: StudyFigure) -> dict[str, Any]:
    return {
        "metric": figure.metric.name,
        "arms": [
            {"arm": item.arm, "modality": item.modality, "seeds": item.seeds, **asdict(item.value)}
            for item in figure.arms
        ],
        "incomparable": dict(figure.incomparable),
        "comparison": None if figure.comparison is None else figure.comparison.as_json(),
    }


def _claims_json(claims: Sequence[JudgedClaim]) -> list[dict[str, Any]]:
    return [{**asdict(judged), "claim": judged.claim.model_dump(mode="json")} for judged in claims]
