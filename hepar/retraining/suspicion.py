"""Suspicious new labels: masks that a champion disagrees with, and scans that ingest refused. Pure.

A tumour mask is not judged by Dice: a tumour that the champion misses is what it has to learn. The liver is easy
enough that a champion which finds little of a mask speaks against the mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hepar.cases import Case
from hepar.ingest.quarantine import Refused
from hepar.pseudo_labels.reviews import Review, ReviewDecision, Reviews


@dataclass(frozen=True)
class Suspect:
    """A new case, and what speaks against it. `dice` is that of its liver mask; None if ingest refused the scan."""

    case_id: str
    reason: str
    dice: float | None = None


@dataclass(frozen=True)
class SuspectBatch:
    """The suspicious cases among `size` new or newly labelled ones.

    `rejected` are those whose masks a reviewer did not accept; they are in the source still, and in the queue, so that
    the decision can be changed.
    """

    size: int = 0
    suspects: tuple[Suspect, ...] = ()
    rejected: tuple[Suspect, ...] = ()

    @property
    def share(self) -> float:
        """The suspicious share; 0 of nothing."""
        return len(self.suspects) / self.size if self.size else 0.0

    @property
    def case_ids(self) -> frozenset[str]:
        """The cases that count for no reason: suspicious or rejected."""
        return frozenset(found.case_id for found in (*self.suspects, *self.rejected))


def judge_batch(
    cases: Sequence[Case],
    dices: Mapping[str, float | None],
    refused: Iterable[Refused],
    suspect_dice: float,
    reviews: Reviews,
) -> SuspectBatch:
    """Judge new and newly labelled cases, and those of the same batch that ingest refused.

    `dices` are of liver masks and the champion's predictions, by case; None or missing where there is nothing to
    compare. `reviews` are decisions on suspicious masks: an accepted one is not suspicious any more.
    """
    suspects, rejected = [], []
    for case in cases:
        value = dices.get(case.case_id)
        review = find_review(reviews, case)
        if review is not None:
            if review.decision != ReviewDecision.ACCEPT:
                rejected.append(Suspect(case.case_id, f"liver mask {review.summary}", value))
        elif value is not None and value < suspect_dice:
            reason = f"liver Dice with the champion's prediction {value:.2f} < {suspect_dice:g}"
            suspects.append(Suspect(case.case_id, reason, value))
    quarantined = [Suspect(line.case_id, f"refused by ingest: {line.rule}: {line.value}") for line in refused]
    return SuspectBatch(len(cases) + len(quarantined), (*suspects, *quarantined), tuple(rejected))


def find_review(reviews: Reviews, case: Case) -> Review | None:
    """The decision on the liver mask that a case has now; None without one."""
    review = reviews.by_case.get(case.case_id)
    if review is None or (review.image_sha256, review.judged_sha256) != (case.image_sha256, case.liver_sha256):
        return None
    return review
