"""Comparison of tables of scores: the first with each of the others, metric by metric and group by group."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from hepar.errors import DataError, ParamsError
from hepar.evaluation.bootstrap import Terms
from hepar.evaluation.breakdown import Breakdown
from hepar.evaluation.lesions import LesionCounts, threshold_name
from hepar.evaluation.paired import EFFECT, MIN_PATIENTS, PairedResult, compare_paired, holm
from hepar.evaluation.score_table import PairedCases, ScoreTable, pair_cases
from hepar.evaluation.summary import Bootstrap
from hepar.imaging.masks import LESION_SIZES
from hepar.params import REGISTERED

IOU_ABOVE = 0.0  # a lesion counts as detected at any overlap, as in promotion
_LESIONS = f"lesion_{threshold_name(IOU_ABOVE)}"
_COUNTS = ("true_positives", "false_negatives", "false_positives")
RECALL = "lesion recall"
Values = Mapping[str, float]


@dataclass(frozen=True)
class Metric:
    """A metric by the terms of a case, which are None if it has no share in it; `unit` is empty for a fraction.

    `columns` are those of the table that it needs.
    """

    name: str
    columns: tuple[str, ...]
    terms: Callable[[Values], Terms | None]
    unit: str = ""
    higher_is_better: bool = True


@dataclass(frozen=True)
class ComparedMetric:
    """One metric in one group of cases: a modality, or a source of it.

    `p_holm` is None where `result.p` is, and where `result.too_few` patients keep the test out of the family.
    """

    versus: str
    modality: str
    source: str  # empty for all sources
    metric: Metric
    result: PairedResult
    p_holm: float | None = None

    @property
    def group(self) -> str:
        return " · ".join(filter(None, (self.modality, self.source)))


@dataclass(frozen=True)
class Comparison:
    """The first table against the others. The `rows` of enough patients are the family of Holm's correction.

    `cases` and `lacking` are by the name of the other table; `lacking` holds the metrics that one of the two tables
    has no columns for.
    """

    first: str
    cases: Mapping[str, PairedCases]
    rows: tuple[ComparedMetric, ...]
    lacking: Mapping[str, tuple[str, ...]]
    bootstrap: Bootstrap

    @property
    def labels(self) -> Mapping[str, str]:
        """What a column or a title calls each table: its name without the folders that all paths begin or end with."""
        return _distinguishing_parts([self.first, *self.cases])

    @property
    def family(self) -> int:
        """The number of tests that Holm's correction takes into account."""
        return sum(row.p_holm is not None for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """Everything, without rounding, as a JSON-compatible dict."""
        return {
            "first": self.first,
            "effect": EFFECT,
            "min_patients": MIN_PATIENTS,
            "bootstrap": {"seed": self.bootstrap.seed, "resamples": self.bootstrap.resamples},
            "holm_family": self.family,
            "comparisons": [
                {
                    "second": versus,
                    "paired_cases": [one.identity.case_id for one, _ in paired.pairs],
                    "only_first": list(paired.only_first),
                    "only_second": list(paired.only_second),
                    "lacking": list(self.lacking[versus]),
                    "metrics": [_row_json(row) for row in self.rows if row.versus == versus],
                }
                for versus, paired in self.cases.items()
            ],
        }


def _distinguishing_parts(names: Sequence[str]) -> dict[str, str]:
    """Each name without the leading and trailing parts that all paths share; registered versions stay whole."""
    paths = [PurePosixPath(name).parts for name in names if not name.startswith(REGISTERED)]
    spare = max(0, min(map(len, paths), default=0) - 1)  # at least one part of each stays
    start = _shared(paths, spare)
    end = _shared([parts[::-1] for parts in paths], spare - start)

    def label(name: str) -> str:
        parts = PurePosixPath(name).parts
        shortened = len(paths) > 1 and not name.startswith(REGISTERED)
        return str(PurePosixPath(*parts[start : len(parts) - end])) if shortened else name

    return {name: label(name) for name in names}


def _shared(paths: Sequence[tuple[str, ...]], at_most: int) -> int:
    """The number of first parts that all paths share."""
    columns = list(zip(*paths, strict=False))[:at_most]
    return next((place for place, parts in enumerate(columns) if len(set(parts)) > 1), len(columns))


def _mean(name: str, column: str, unit: str = "", higher_is_better: bool = True) -> Metric:
    def terms(values: Values) -> Terms | None:
        return (values[column], 1.0) if column in values else None

    return Metric(name, (column,), terms, unit, higher_is_better)


def _lesion_metric(
    name: str, prefix: str, terms_of: Callable[[LesionCounts], Terms], unit: str = "", higher_is_better: bool = True
) -> Metric:
    """A ratio of lesion counts."""
    columns = tuple(f"{prefix}_{count}" for count in _COUNTS)

    def terms(values: Values) -> Terms | None:
        if any(column not in values for column in columns):
            return None
        return terms_of(LesionCounts(*(int(values[column]) for column in columns)))

    return Metric(name, columns, terms, unit, higher_is_better)


def _burden_terms(values: Values) -> Terms | None:
    return (abs(values["burden_error"]), 1.0) if "burden_error" in values else None


_RECALL = _lesion_metric(RECALL, _LESIONS, lambda counts: counts.sensitivity_terms)
METRICS = (
    _mean("liver Dice", "liver_dice"),
    _mean("liver NSD", "liver_nsd_2mm"),
    _mean("liver HD95", "liver_hd95_mm", "mm", higher_is_better=False),
    _mean("liver ASSD", "liver_assd_mm", "mm", higher_is_better=False),
    _mean("tumour Dice", "tumour_dice"),
    _mean("tumour NSD", "tumour_nsd_2mm"),
    _mean("tumour HD95", "tumour_hd95_mm", "mm", higher_is_better=False),
    Metric("tumour burden error", ("burden_error",), _burden_terms, higher_is_better=False),
    _RECALL,
    _lesion_metric("lesion F1", _LESIONS, lambda counts: counts.f1_terms),
    _lesion_metric(
        "false lesions", _LESIONS, lambda counts: (counts.false_positives, 1), "per case", higher_is_better=False
    ),
    _mean("specificity", "specific"),
    _mean("false-positive volume", "false_positive_volume_ml", "ml", higher_is_better=False),
)
DEFAULT_METRICS = (
    *("liver Dice", "liver HD95", "tumour Dice", RECALL, "false lesions"),
    *("specificity", "false-positive volume"),
)
_RECALL_BY_SIZE = tuple(
    _lesion_metric(f"{RECALL}, {size}", f"{_LESIONS}_{size}", lambda counts: counts.sensitivity_terms)
    for size in LESION_SIZES
)


def compare_tables(
    tables: Sequence[ScoreTable],
    metrics: Sequence[str],
    breakdowns: Collection[Breakdown],
    bootstrap: Bootstrap,
) -> Comparison:
    """Compare the first table with each of the others, over the cases that both have.

    There is a row for each metric in each modality; also in each source of a modality that has several, and lesion
    recall by lesion size, if `breakdowns` have them. A row without a defined value in either table is left out, and so
    is a size that all lesions of the modality have.

    Raises ParamsError if a metric is unknown, DataError if two tables have the same name or cannot be paired.
    """
    chosen = choose_metrics(metrics)
    first, *others = tables
    names = [table.name for table in tables]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{twice[0]} is given twice; a table is compared with others")
    cases: dict[str, PairedCases] = {}
    lacking: dict[str, tuple[str, ...]] = {}
    rows: list[ComparedMetric] = []
    for other in others:
        sized = _RECALL_BY_SIZE if Breakdown.SIZE in breakdowns and RECALL in metrics else ()
        columns = first.columns & other.columns
        usable = [metric for metric in (*chosen, *sized) if columns.issuperset(metric.columns)]
        cases[other.name] = pair_cases(first, other)
        lacking[other.name] = tuple(metric.name for metric in (*chosen, *sized) if metric not in usable)
        for group in _groups(cases[other.name], by_source=Breakdown.SOURCE in breakdowns):
            rows += _compare_group(group, other.name, usable, bootstrap)
    return Comparison(first.name, cases, _with_holm(rows), lacking, bootstrap)


def choose_metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """Metrics by name, in the order of `METRICS`. Raises ParamsError naming one that is unknown."""
    known = [metric.name for metric in METRICS]
    if unknown := [name for name in names if name not in known]:
        raise ParamsError(f"metric {unknown[0]!r} is unknown: choose from {', '.join(known)}")
    return tuple(metric for metric in METRICS if metric.name in names)


def _groups(cases: PairedCases, by_source: bool) -> Iterator[tuple[str, str, PairedCases]]:
    """Modality, source and cases of each group: a modality, then its sources if it has several."""
    for modality in sorted({one.identity.modality for one, _ in cases.pairs}):
        members = tuple(pair for pair in cases.pairs if pair[0].identity.modality == modality)
        yield modality, "", replace(cases, pairs=members)
        sources = sorted({one.identity.source for one, _ in members})
        for source in sources if by_source and len(sources) > 1 else ():
            yield modality, source, replace(cases, pairs=tuple(p for p in members if p[0].identity.source == source))


def _compare_group(
    group: tuple[str, str, PairedCases], versus: str, metrics: Sequence[Metric], bootstrap: Bootstrap
) -> Iterator[ComparedMetric]:
    modality, source, cases = group
    for metric in metrics:
        if metric in _RECALL_BY_SIZE and (
            source or _reference_lesions(metric, cases) == _reference_lesions(_RECALL, cases)
        ):
            continue  # too few lesions a source, or the row of all lesions again; each row costs all others power
        patients, firsts, seconds = [], [], []
        for one, other in cases.pairs:
            terms, other_terms = metric.terms(one.values), metric.terms(other.values)
            # a false lesion of one model counts in its F1, also if the other has neither lesion nor mistake
            if terms is not None and other_terms is not None and (terms[1] or other_terms[1]):
                patients.append(one.identity.patient_id)
                firsts.append(terms)
                seconds.append(other_terms)
        result = compare_paired(firsts, seconds, patients, bootstrap.seed, bootstrap.resamples)
        if result is not None:
            yield ComparedMetric(versus, modality, source, metric, result)


def _reference_lesions(recall: Metric, cases: PairedCases) -> list[float]:
    """The number of reference lesions that a recall is about, in each row of each pair."""
    terms = [recall.terms(row.values) for pair in cases.pairs for row in pair]
    return [0.0 if found is None else found[1] for found in terms]


def _with_holm(rows: Sequence[ComparedMetric]) -> tuple[ComparedMetric, ...]:
    """The rows with their corrected p; those that cannot reach p < 0.05, whatever they show, cost others no power."""
    p_values = [None if row.result.too_few else row.result.p for row in rows]
    adjusted = iter(holm([p for p in p_values if p is not None]))
    return tuple(
        row if p is None else replace(row, p_holm=next(adjusted)) for row, p in zip(rows, p_values, strict=True)
    )


def _row_json(row: ComparedMetric) -> dict[str, Any]:
    result, difference = row.result, row.result.difference
    return {
        "modality": row.modality,
        "source": row.source or None,
        "metric": row.metric.name,
        "unit": row.metric.unit or None,
        "higher_is_better": row.metric.higher_is_better,
        "first": result.first,
        "second": result.second,
        "difference": difference.value,
        "ci95": None if difference.ci95 is None else list(difference.ci95),
        "cases": difference.n,
        "patients": difference.patients,
        "tested_patients": result.tested,
        "p_wilcoxon": result.p,
        "p_holm": row.p_holm,
        "effect": result.effect,
        "too_few_patients": result.too_few,
    }
