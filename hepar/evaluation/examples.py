"""The worst, the median and the best case of each modality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hepar.evaluation.scores import CaseScores

_FEW = 3  # cases that a ranking needs to have a median apart from worst and best


@dataclass(frozen=True)
class Example:
    """A case, its place among those of its modality, and the structure whose Dice they are ranked by."""

    place: str
    structure: str
    case: CaseScores


def pick_examples(scores: Sequence[CaseScores]) -> list[Example]:
    """Worst, median and best by tumour Dice, or by liver Dice if fewer than three cases have one; by modality.

    Of an even number of cases the lower median is taken, and of cases with equal Dice the first by id is the worse.
    Two cases are worst and best, one is the only case; a modality without any Dice has none.
    """
    examples = []
    for modality in sorted({case.identity.modality for case in scores}):
        cases = [case for case in scores if case.identity.modality == modality]
        by_tumour, by_liver = _ranked(cases, "tumour"), _ranked(cases, "liver")
        structure, ranked = ("tumour", by_tumour) if len(by_tumour) >= min(_FEW, len(by_liver)) else ("liver", by_liver)
        if len(ranked) == 1:
            places = {"only case": 0}
        elif len(ranked) < _FEW:
            places = {"worst": 0, "best": -1}
        else:
            places = {"worst": 0, "median": (len(ranked) - 1) // 2, "best": -1}
        examples += [Example(place, structure, ranked[position]) for place, position in places.items() if ranked]
    return examples


def _ranked(cases: Sequence[CaseScores], structure: str) -> list[CaseScores]:
    """The cases with a Dice of the structure, lowest first."""
    values = [(getattr(case, structure).dice, case.identity.case_id, case) for case in cases]
    return [case for _, _, case in sorted((v for v in values if v[0] is not None), key=lambda v: v[:2])]
