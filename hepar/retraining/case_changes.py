"""What is different in a cohort from the one that the champion learned from. Pure.

A scan is known by the hash of its canonical image, so a renamed one is not new. Scans of the test split are neither
counted as new nor as better labelled: no training learns from them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from hepar.cases import STRUCTURES, Case, LabelState, Split, parse_enum
from hepar.pseudo_labels.reviews import ReviewDecision, Reviews

DRAWN, CONFIRMED_ABSENT, REVIEWED = "drawn", "confirmed absent", "liver reviewed"
_LEARNED = (LabelState.MANUAL, LabelState.ABSENT)  # what an expert says, and not a model


@dataclass(frozen=True)
class KnownCase:
    """A case of the champion's cohort: the states and the hashes of the masks of `STRUCTURES`, empty without one."""

    case_id: str
    image_sha256: str
    states: tuple[LabelState, ...]
    masks_sha256: tuple[str, ...]


@dataclass(frozen=True)
class BecameKnown:
    """A label that the champion did not have: `what` is such as `tumour drawn` or `liver reviewed`."""

    case_id: str
    modality: str
    source: str
    what: str


@dataclass(frozen=True)
class CaseChanges:
    """The cases of a cohort by whether the champion's cohort had them, and the labels that are new.

    `new` are of training and validation patients, `new_test` of test patients. `labelled` are all cases with a mask or
    a confirmed absence that the champion's cohort did not have, redrawn masks included. `gone` counts those it had that
    the cohort has not.
    """

    new: tuple[Case, ...] = ()
    new_test: tuple[Case, ...] = ()
    known: tuple[Case, ...] = ()
    became_known: tuple[BecameKnown, ...] = ()
    labelled: tuple[Case, ...] = ()
    gone: int = 0


def known_cases(table: pd.DataFrame) -> tuple[KnownCase, ...]:
    """The cases in the record of a cohort, with the columns of `lineage_records.TABLES`.

    Raises DataError if a state is none.
    """
    return tuple(
        KnownCase(
            case_id=row["case_id"],
            image_sha256=row["image_sha256"],
            states=tuple(
                parse_enum(LabelState, row[f"{name}_state"], row["case_id"], f"{name}_state") for name in STRUCTURES
            ),
            masks_sha256=tuple(row[f"{name}_sha256"] for name in STRUCTURES),
        )
        for row in table.to_dict(orient="records")
    )


def compare_cases(before: Iterable[KnownCase], cases: Sequence[Case]) -> CaseChanges:
    """The changes of a cohort's cases against those that the champion's cohort had."""
    by_image = {case.image_sha256: case for case in before}
    known = tuple(case for case in cases if case.image_sha256 in by_image)
    unknown = [case for case in cases if case.image_sha256 not in by_image]
    became = [
        found
        for case in known
        if case.split != Split.TEST
        for found in _became_known(by_image[case.image_sha256], case)
    ]
    return CaseChanges(
        new=tuple(case for case in unknown if case.split != Split.TEST),
        new_test=tuple(case for case in unknown if case.split == Split.TEST),
        known=known,
        became_known=tuple(became),
        labelled=tuple(case for case in cases if has_new_label(by_image.get(case.image_sha256), case)),
        gone=len(by_image.keys() - {case.image_sha256 for case in cases}),
    )


def _became_known(before: KnownCase, case: Case) -> Iterable[BecameKnown]:
    for name, old, new in zip(STRUCTURES, before.states, (case.liver_state, case.tumour_state), strict=True):
        if old == LabelState.UNKNOWN and new in _LEARNED:
            what = f"{name} {DRAWN if new == LabelState.MANUAL else CONFIRMED_ABSENT}"
            yield BecameKnown(case.case_id, str(case.modality), case.source, what)


def has_new_label(before: KnownCase | None, case: Case) -> bool:
    """Whether an expert's label of a case is not the one that was known before, if any was."""
    now = zip((case.liver_state, case.tumour_state), (case.liver_sha256, case.tumour_sha256), strict=True)
    if before is None:
        return any(state in _LEARNED for state, _ in now)
    old = zip(before.states, before.masks_sha256, strict=True)
    return any(state in _LEARNED and (state, mask) != was for (state, mask), was in zip(now, old, strict=True))


def decided_reviews(reviews: Reviews, pool: pd.DataFrame, taken: str, cases: Sequence[Case]) -> tuple[BecameKnown, ...]:
    """The decisions on pseudo-livers that the champion's pool did not apply; `pool` is its record.

    A decision on another image than the cohort now has is void. Whether a teacher predicts the judged mask again cannot
    be known before it is trained, so a decision may turn out void in the pool. `taken` is the hash of the reviews that
    the pool was made with: if none was added since, those that it could not apply are no reason to try again.
    """
    if reviews.hash == taken:
        return ()
    by_id = {case.case_id: case for case in cases}
    found = []
    for row in pool.to_dict(orient="records"):
        case, review = by_id.get(row["case_id"]), reviews.by_case.get(row["case_id"])
        if case is None or review is None or review.image_sha256 != case.image_sha256:
            continue
        corrected = review.decision == ReviewDecision.CORRECT
        applied = row["gate"] == review.decision and (not corrected or row["liver_sha256"] == review.mask_sha256)
        if case.liver_state == LabelState.UNKNOWN and case.split != Split.TEST and not applied:
            found.append(BecameKnown(case.case_id, str(case.modality), case.source, REVIEWED))
    return tuple(found)


def count_by_group(found: Iterable[BecameKnown | Case]) -> dict[str, int]:
    """How many there are of each modality and source, such as `CT/LiTS`."""
    return dict(sorted(Counter(f"{item.modality}/{item.source}" for item in found).items()))
