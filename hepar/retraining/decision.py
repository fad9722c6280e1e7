"""Whether to train again: evidence in, decision with reasons out. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from hepar.evaluation.bootstrap import Estimate
from hepar.params import RetrainParams
from hepar.retraining.case_changes import CaseChanges, count_by_group
from hepar.retraining.drift import Drift
from hepar.retraining.suspicion import SuspectBatch

NO_CHAMPION, NEW_CASES, BECAME_KNOWN, DRIFT, PERFORMANCE = (
    *("no champion", "new cases", "unknowns that became known"),
    *("drift", "performance"),
)


@dataclass(frozen=True)
class FreshScores:
    """A metric of the champion on its own test cases, and on newly labelled cases that it was not compared on."""

    modality: str
    metric: str
    own: Estimate
    fresh: Estimate


@dataclass(frozen=True)
class RetrainingEvidence:
    """All that a decision depends on. `champion` is the number of its version, empty if there is none."""

    champion: str
    changes: CaseChanges = field(default_factory=CaseChanges)
    drifts: tuple[Drift, ...] = ()
    scores: tuple[FreshScores, ...] = ()
    suspects: SuspectBatch = field(default_factory=SuspectBatch)


@dataclass(frozen=True)
class RetrainingCheck:
    """One possible reason: whether it holds, its number with the bound, and a sentence that says so.

    `value` is None if it is undefined, `ci95` None where there is no interval; `counts` are by modality and source, or
    by kind of label; `subject` is what drifted or performs worse, such as `CT liver Dice`.
    """

    rule: str
    holds: bool
    value: float | None
    bound: float | None
    text: str
    ci95: tuple[float, float] | None = None
    counts: Mapping[str, int] | None = None
    subject: str = ""


@dataclass(frozen=True)
class RetrainingDecision:
    """`refused` says why nothing is trained although there is a reason; `checks` are all that were made.

    `uncounted` are the cases that count for no reason, since their masks are suspicious.
    """

    retrain: bool
    checks: tuple[RetrainingCheck, ...]
    refused: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """The sentences of the checks that hold."""
        return tuple(check.text for check in self.checks if check.holds)

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `as_json` has made values of. Raises KeyError or TypeError for anything else."""
        checks = []
        for check in values["checks"]:
            interval = check["ci95"]
            checks.append(RetrainingCheck(**{**check, "ci95": None if interval is None else tuple(interval)}))
        return cls(bool(values["retrain"]), tuple(checks), tuple(values["refused"]), tuple(values["uncounted"]))


def decide_retraining(evidence: RetrainingEvidence, params: RetrainParams) -> RetrainingDecision:
    """Train again if any reason holds and the new labels are not refused.

    A case whose mask is suspicious counts for no reason.
    """
    if not evidence.champion:
        check = RetrainingCheck(NO_CHAMPION, True, None, None, "there is no champion yet")
        return RetrainingDecision(True, (check,))
    checks = (
        _enough_new(evidence, params),
        _became_known(evidence, params),
        *(_drifted(drift, params) for drift in evidence.drifts),
        *(_performs_worse(scores, params) for scores in evidence.scores),
    )
    refused = tuple(_refusals(evidence.suspects, params))
    uncounted = tuple(sorted(evidence.suspects.case_ids))
    return RetrainingDecision(any(check.holds for check in checks) and not refused, checks, refused, uncounted)


def _enough_new(evidence: RetrainingEvidence, params: RetrainParams) -> RetrainingCheck:
    suspected = evidence.suspects.case_ids
    new = [case for case in evidence.changes.new if case.case_id not in suspected]
    counts, bound = count_by_group(new), params.min_new_cases
    text = f"{len(new)} new cases{_listed(counts)}, at least {bound} are enough"
    return RetrainingCheck(NEW_CASES, len(new) >= bound, len(new), bound, text, counts=counts)


def _became_known(evidence: RetrainingEvidence, params: RetrainParams) -> RetrainingCheck:
    suspected = evidence.suspects.case_ids
    found = [item for item in evidence.changes.became_known if item.case_id not in suspected]
    counts, bound = count_by_group(found), params.min_became_known
    kinds = ", ".join(f"{count} {what}" for what, count in sorted(Counter(item.what for item in found).items()))
    named = f"{_listed(counts)}: {kinds}" if found else ""
    text = f"{len(found)} unknowns became known{named}, at least {bound} are enough"
    return RetrainingCheck(BECAME_KNOWN, len(found) >= bound, len(found), bound, text, counts=counts)


def _drifted(drift: Drift, params: RetrainParams) -> RetrainingCheck:
    found, bound = drift.estimate, params.max_drift
    name = f"{drift.modality} {drift.measure}"
    enough = min(drift.new_patients, drift.known_patients) >= params.min_drift_patients
    if found.value is None or found.ci95 is None or not enough:
        text = (
            f"{name}: drift not judged, {drift.new_patients} new and {drift.known_patients} known patients, at least"
            f" {params.min_drift_patients} of each are needed"
        )
        return RetrainingCheck(DRIFT, False, found.value, bound, text, found.ci95, subject=name)
    low, high = found.ci95
    text = f"{name}: distance {found.value:.2f} [{low:.2f}, {high:.2f}] from the champion's cohort, bound {bound:g}"
    return RetrainingCheck(DRIFT, low > bound, found.value, bound, text, found.ci95, subject=name)


def _performs_worse(scores: FreshScores, params: RetrainParams) -> RetrainingCheck:
    """Worse if the mean on new cases lies below the champion's own interval, and even the upper end of its interval
    below the champion's own mean: the mean of a few cases leaves a narrow interval by chance."""
    own, fresh = scores.own, scores.fresh
    name = f"{scores.modality} {scores.metric}"
    enough = fresh.patients >= params.min_scored_patients
    if own.value is None or own.ci95 is None or fresh.value is None or fresh.ci95 is None or not enough:
        text = (
            f"{name} on newly labelled cases: not judged, {fresh.patients} patients, at least"
            f" {params.min_scored_patients} are needed, and the champion's own interval"
        )
        return RetrainingCheck(PERFORMANCE, False, fresh.value, None if own.ci95 is None else own.ci95[0], text)
    low, high = own.ci95
    worse = fresh.value < low and fresh.ci95[1] < own.value
    text = (
        f"{name} on newly labelled cases {fresh.value:.3f} [{fresh.ci95[0]:.3f}, {fresh.ci95[1]:.3f}]"
        f" (n = {fresh.patients} patients), the champion's own {own.value:.3f} [{low:.3f}, {high:.3f}]"
    )
    return RetrainingCheck(PERFORMANCE, worse, fresh.value, low, text, fresh.ci95, subject=name)


def _refusals(suspects: SuspectBatch, params: RetrainParams) -> Iterator[str]:
    if suspects.rejected:
        yield f"rejected in review, but still in the source: {', '.join(found.case_id for found in suspects.rejected)}"
    if suspects.share > params.max_suspect_share:
        named = "; ".join(f"{found.case_id} ({found.reason})" for found in suspects.suspects)
        yield (
            f"{len(suspects.suspects)} of {suspects.size} new cases are suspicious, more than"
            f" retrain.max_suspect_share ({params.max_suspect_share:g}) allows: {named}"
        )


def _listed(counts: Mapping[str, int]) -> str:
    """` (CT/LiTS 3, MR/CHAOS 1)`; empty for none."""
    return f" ({', '.join(f'{group} {count}' for group, count in counts.items())})" if counts else ""
