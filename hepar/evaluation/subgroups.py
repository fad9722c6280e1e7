"""The main metrics in groups of cases and lesions: modality, source, sequence, and lesion size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hepar.cases import STRUCTURES
from hepar.evaluation.bootstrap import Estimate, Terms
from hepar.evaluation.lesions import LesionDetection
from hepar.evaluation.paired import MIN_PATIENTS
from hepar.evaluation.scores import CaseScores
from hepar.evaluation.summary import Bootstrap
from hepar.imaging.masks import LESION_SIZES

_SIZES = tuple(name.replace("-", "\N{EN DASH}") for name in LESION_SIZES)
TermsOf = Callable[[CaseScores], Terms | None]


@dataclass(frozen=True)
class Subgroup:
    """A metric in one group. `name` is that of the group within the modality, empty for the whole modality."""

    modality: str
    name: str
    estimate: Estimate

    @property
    def label(self) -> str:
        return f"{self.modality} · {self.name}" if self.name else f"{self.modality}, all"

    @property
    def too_few(self) -> bool:
        """True if an interval over so few patients means nothing."""
        return self.estimate.patients < MIN_PATIENTS


@dataclass(frozen=True)
class MetricInGroups:
    """A metric, a fraction where more is better, in all groups where it is defined. `structure` is what it measures."""

    title: str
    structure: str
    is_dice: bool
    groups: tuple[Subgroup, ...]


def metrics_in_groups(scores: Sequence[CaseScores], bootstrap: Bootstrap) -> list[MetricInGroups]:
    """Liver Dice, tumour Dice and lesion recall (any overlap) by group, each with its interval over patients.

    Sources and sequences of a modality are groups if it has several; sizes are groups of the recall where lesions of
    that size are. A metric without any group is left out.
    """
    metrics = [
        MetricInGroups(
            f"{structure.capitalize()} Dice",
            structure,
            True,
            tuple(_by_case(scores, _dice_terms(structure), bootstrap)),
        )
        for structure in STRUCTURES
    ]
    recall = (*_by_case(scores, _recall_terms, bootstrap), *_by_size(scores, bootstrap))
    metrics.append(
        MetricInGroups("Lesion recall, any overlap", "tumour", False, tuple(sorted(recall, key=lambda g: g.modality)))
    )
    return [metric for metric in metrics if metric.groups]


def _dice_terms(structure: str) -> TermsOf:
    def terms(case: CaseScores) -> Terms | None:
        dice = getattr(case, structure).dice
        return None if dice is None else (dice, 1.0)

    return terms


def _detection(case: CaseScores) -> LesionDetection | None:
    return None if case.lesions is None else case.lesions[0]


def _recall_terms(case: CaseScores) -> Terms | None:
    detection = _detection(case)
    return None if detection is None else detection.counts.sensitivity_terms


def _size_terms(size: str) -> TermsOf:
    def terms(case: CaseScores) -> Terms | None:
        detection = _detection(case)
        return None if detection is None or detection.by_size is None else detection.by_size[size].sensitivity_terms

    return terms


def _by_case(scores: Sequence[CaseScores], terms_of: TermsOf, bootstrap: Bootstrap) -> Iterator[Subgroup]:
    """Each modality, then its sources and its sequences if it has several."""
    for modality in sorted({case.identity.modality for case in scores}):
        cases = [case for case in scores if case.identity.modality == modality]
        groups = [("", cases)]
        for key in ("source", "sequence"):
            names = sorted({getattr(case.identity, key) for case in cases})
            if len(names) > 1:
                groups += [
                    (name or f"no {key} given", [case for case in cases if getattr(case.identity, key) == name])
                    for name in names
                ]
        for name, members in groups:
            yield from _estimate(modality, name, members, terms_of, bootstrap)


def _by_size(scores: Sequence[CaseScores], bootstrap: Bootstrap) -> Iterator[Subgroup]:
    for modality in sorted({case.identity.modality for case in scores}):
        cases = [case for case in scores if case.identity.modality == modality]
        for size, shown in zip(LESION_SIZES, _SIZES, strict=True):
            yield from _estimate(modality, f"lesions {shown}", cases, _size_terms(size), bootstrap)


def _estimate(
    modality: str, name: str, cases: Sequence[CaseScores], terms_of: TermsOf, bootstrap: Bootstrap
) -> Iterator[Subgroup]:
    shares = [(case, terms) for case in cases if (terms := terms_of(case)) is not None and terms[1]]
    if shares:
        estimate = bootstrap.ratio(
            [case for case, _ in shares], [terms[0] for _, terms in shares], [terms[1] for _, terms in shares]
        )
        yield Subgroup(modality, name, estimate)
