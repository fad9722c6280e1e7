"""What a training learns from, kept with its attempt: a few scans that came later are no reason for another one.

A champion does not change if a training was not promoted, and then the scans that were its reason stay new to the
champion. So the reasons must hold against the last training too, unless champion or params have changed since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pandas as pd

from hepar.cases import Case, LabelState, Split
from hepar.params import RetrainParams
from hepar.pseudo_labels.reviews import Review, Reviews
from hepar.registry.lineage_records import cohort_table
from hepar.retraining.case_changes import KnownCase, compare_cases, known_cases
from hepar.retraining.decision import DRIFT, PERFORMANCE, RetrainingDecision


@dataclass(frozen=True)
class Learned:
    """The record of a training: its cohort, the decisions of reviewers, and what drifted or performed worse."""

    cases: tuple[KnownCase, ...]
    reviewed: frozenset[str]
    worse: frozenset[str]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `Basis.as_json` has made values of. Raises KeyError, TypeError or DataError for anything else."""
        cases = known_cases(pd.DataFrame(values["cases"]))
        return cls(cases, frozenset(values["reviewed"]), frozenset(values["worse"]))


@dataclass(frozen=True)
class Basis:
    """What a training would learn from now. `settings` is the hash of champion, params and splits."""

    settings: str
    cases: Sequence[Case]
    reviews: Reviews
    decision: RetrainingDecision
    params: RetrainParams

    def as_json(self) -> dict[str, Any]:
        """The record of it as JSON values: neither voxels nor patients."""
        return {
            "cases": cohort_table(self.cases).to_dict(orient="records"),
            "reviewed": sorted(self._reviewed()),
            "worse": sorted(self._worse()),
        }

    def too_few_since(self, before: Learned) -> str:
        """Why what has come since another training is no reason for the next one; empty if it is."""
        changes, uncounted = compare_cases(before.cases, self.cases), self.decision.uncounted
        new = sum(case.case_id not in uncounted for case in changes.new)
        known = sum(found.case_id not in uncounted for found in changes.became_known)
        known += len(self._reviewed() - before.reviewed)
        enough = new >= self.params.min_new_cases or known >= self.params.min_became_known
        if enough or self._worse() - before.worse:
            return ""
        return (
            f"{new} new cases and {known} unknowns that became known have come since, at least"
            f" {self.params.min_new_cases} or {self.params.min_became_known} are enough"
        )

    def _reviewed(self) -> frozenset[str]:
        """The decisions on pseudo-livers of training and validation patients, as texts."""
        open_cases = {
            case.case_id: case.image_sha256
            for case in self.cases
            if case.liver_state == LabelState.UNKNOWN and case.split != Split.TEST
        }
        given = self.reviews.by_case.items()
        return frozenset(_text(review) for name, review in given if open_cases.get(name) == review.image_sha256)

    def _worse(self) -> frozenset[str]:
        checks = self.decision.checks
        return frozenset(
            f"{check.rule}: {check.subject}" for check in checks if check.holds and check.rule in (DRIFT, PERFORMANCE)
        )


def _text(review: Review) -> str:
    return f"{review.case_id}: {review.decision} {review.mask_sha256 or review.judged_sha256}"
