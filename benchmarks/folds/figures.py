"""Figures pooled over scans, with 95 % intervals over patients, and the comparison of two sets of scans.

Every figure is a ratio of two sums over scans; a mean is one whose denominators are 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from folds.scoring import ScanScores
from hepar.cases import Modality
from hepar.evaluation.bootstrap import Terms, bootstrap_ratio, paired_ratio_difference, ratio_of_sums
from hepar.evaluation.lesions import LesionCounts
from hepar.imaging.masks import LESION_SIZES

SEED, RESAMPLES = 1, 5000
LOW_DICE = 0.80
LIVER_DICE = "liver Dice"
Interval = tuple[float, float]


@dataclass(frozen=True)
class Figure:
    """A figure by the terms of a scan, which are None if it has no share in the figure."""

    name: str
    terms: Callable[[ScanScores], Terms | None]


@dataclass(frozen=True)
class Pooled:
    """A figure of one modality: `scans` and `patients` are those with a share in it, `note` names scans."""

    name: str
    value: float  # an int if it is a number of scans
    ci95: Interval | None
    scans: int
    patients: int
    note: str = ""


@dataclass(frozen=True)
class Difference:
    """A figure of two sets of scans, of those that both have, and second - first with a paired interval."""

    name: str
    first: float
    second: float
    ci95: Interval | None
    scans: int


def _mean(value: float | None) -> Terms | None:
    return None if value is None else (value, 1.0)


def _global_dice(scan: ScanScores) -> Terms | None:
    return None if scan.tumour is None else scan.tumour.dice_terms


def _recall(scan: ScanScores, sizes: Sequence[str]) -> Terms | None:
    if scan.lesions is None:
        return None
    terms = [scan.lesions[size].sensitivity_terms for size in sizes]
    lesions = sum(total for _, total in terms)
    return (sum(found for found, _ in terms), lesions) if lesions else None


def _false_lesions(scan: ScanScores) -> Terms | None:
    counts: Sequence[LesionCounts] = () if scan.lesions is None else tuple(scan.lesions.values())
    return None if scan.lesions is None else (sum(count.false_positives for count in counts), 1.0)


def _specific(scan: ScanScores) -> Terms | None:
    return (float(scan.tumour_ml == 0), 1.0) if scan.tumour_free else None


FIGURES = (
    Figure(LIVER_DICE, lambda scan: _mean(scan.liver_dice)),
    Figure("tumour Dice per case", lambda scan: _mean(scan.tumour_dice)),
    Figure("tumour Dice, global", _global_dice),
    Figure("lesion recall", partial(_recall, sizes=LESION_SIZES)),
    *(Figure(f"lesion recall, {size}", partial(_recall, sizes=(size,))) for size in LESION_SIZES),
    Figure("false lesions per scan", _false_lesions),
    Figure("specificity on tumour-free scans", _specific),
    Figure("false tumour on tumour-free scans, ml", lambda scan: _mean(scan.tumour_ml if scan.tumour_free else None)),
)


def pool(scans: Sequence[ScanScores], label: str = "") -> list[Pooled]:
    """All figures of these scans, by modality; a figure in which no scan has a share is left out.

    `label` stands between the modality and the figure's name.
    """
    rows = []
    for modality in Modality:
        members = [scan for scan in scans if scan.modality == modality]
        prefix = f"{modality} {label}{': ' if label else ''}"
        for figure in FIGURES:
            shares = [(scan, terms) for scan in members if (terms := figure.terms(scan)) is not None]
            patients = [scan.patient_id for scan, _ in shares]
            tops, bottoms = [terms[0] for _, terms in shares], [terms[1] for _, terms in shares]
            found = bootstrap_ratio(tops, bottoms, patients, SEED, RESAMPLES)
            if found.value is None:
                continue
            cases = len({scan.case_id for scan, _ in shares})
            rows.append(Pooled(prefix + figure.name, found.value, found.ci95, cases, found.patients))
            if figure.name == LIVER_DICE:
                rows += _worst_livers(members, prefix)
    return rows


def _worst_livers(scans: Sequence[ScanScores], prefix: str) -> list[Pooled]:
    """The least Dice of a liver, and how many scans have one below `LOW_DICE` with any seed, each with their names."""
    known = sorted((dice, scan.case_id) for scan in scans if (dice := scan.liver_dice) is not None)
    low = list(dict.fromkeys(name for dice, name in known if dice < LOW_DICE))
    names = {name for _, name in known}
    patients = len({scan.patient_id for scan in scans if scan.case_id in names})
    return [
        Pooled(f"{prefix}{LIVER_DICE}, least", known[0][0], None, len(names), patients, known[0][1]),
        Pooled(f"{prefix}livers below {LOW_DICE:.2f}", len(low), None, len(names), patients, ", ".join(low)),
    ]


def compare(first: Sequence[ScanScores], second: Sequence[ScanScores]) -> list[Difference]:
    """The figures of the scans that both have, averaged over the seeds of each, and second - first.

    Whole patients are resampled, the same ones for both.
    """
    rows = []
    for modality in Modality:
        for figure in FIGURES:
            one, two = (_terms_by_case(scans, modality, figure) for scans in (first, second))
            cases = sorted(one.keys() & two.keys())
            firsts, seconds = [one[case] for case in cases], [two[case] for case in cases]
            patients = [patient for _, patient in cases]
            difference = paired_ratio_difference(firsts, seconds, patients, SEED, RESAMPLES)
            if difference.value is None:
                continue
            a, b = ratio_of_sums(firsts), ratio_of_sums(seconds)
            rows.append(Difference(f"{modality} {figure.name}", a, b, difference.ci95, len(cases)))
            if figure.name == LIVER_DICE:
                shared = {case_id for case_id, _ in cases}
                pairs = zip(
                    *(_worst_livers(_of(scans, modality, shared), f"{modality} ") for scans in (first, second)),
                    strict=True,
                )
                rows += [Difference(old.name, old.value, new.value, None, old.scans) for old, new in pairs]
    return rows


def _of(scans: Sequence[ScanScores], modality: Modality, case_ids: Container[str]) -> list[ScanScores]:
    return [scan for scan in scans if scan.modality == modality and scan.case_id in case_ids]


def _terms_by_case(scans: Sequence[ScanScores], modality: Modality, figure: Figure) -> dict[tuple[str, str], Terms]:
    """Mean terms over the seeds, by case and patient id, of the cases with a share in the figure."""
    grouped: dict[tuple[str, str], list[Terms]] = defaultdict(list)
    for scan in scans:
        if scan.modality == modality and (terms := figure.terms(scan)) is not None:
            grouped[scan.case_id, scan.patient_id].append(terms)
    return {
        case: (float(np.mean([top for top, _ in terms])), float(np.mean([bottom for _, bottom in terms])))
        for case, terms in grouped.items()
    }


def pooled_table(rows: Sequence[Pooled]) -> str:
    """The figures as a table in Markdown."""
    lines = [
        f"| {row.name} | {_number(row.value)} | {_interval(row.ci95)} | {row.scans} | {row.patients} | {row.note} |"
        for row in rows
    ]
    return "\n".join(["| | value | 95 % interval | scans | patients | |", "|---|---|---|---|---|---|", *lines])


def difference_table(rows: Sequence[Difference], first: str, second: str) -> str:
    """The comparison as a table in Markdown."""
    lines = [
        f"| {row.name} | {_number(row.first)} | {_number(row.second)} | {row.second - row.first:+.3g} |"
        f" {_interval(row.ci95)} | {row.scans} |"
        for row in rows
    ]
    head = f"| | {first} | {second} | difference | 95 % interval | scans |"
    return "\n".join([head, "|---|---|---|---|---|---|", *lines])


def case_table(scans: Sequence[ScanScores]) -> str:
    """One row per scan as a table in Markdown; a cell is empty where nothing is known."""
    head = "| scan | seed | fold | liver Dice | tumour Dice | lesions found | false lesions | predicted tumour, ml |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for scan in sorted(scans, key=lambda scan: (scan.modality, scan.case_id, scan.seed)):
        found, false = _recall(scan, LESION_SIZES), _false_lesions(scan)
        dices = " | ".join("" if dice is None else f"{dice:.3f}" for dice in (scan.liver_dice, scan.tumour_dice))
        lesions = "" if found is None else f"{found[0]:.0f} of {found[1]:.0f}"
        state = " (tumour-free)" if scan.tumour_free else ""
        wrong = "" if false is None else f"{false[0]:.0f}"
        lines.append(
            f"| {scan.modality} {scan.case_id}{state} | {scan.seed} | {scan.fold} | {dices} | {lesions} | {wrong}"
            f" | {scan.tumour_ml:.1f} |"
        )
    return "\n".join(lines)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _interval(ci95: Interval | None) -> str:
    return "" if ci95 is None else f"{ci95[0]:.3f} to {ci95[1]:.3f}"
