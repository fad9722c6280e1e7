"""Whether the claims of a study hold, by one rule over intervals and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from hepar.cases import Modality
from hepar.errors import DataError
from hepar.evaluation.comparison import ComparedMetric, compare_tables
from hepar.evaluation.paired import MIN_PATIENTS
from hepar.evaluation.score_table import ScoreTable, share_cases
from hepar.evaluation.summary import Bootstrap
from pipelines.studies.definition import Claim
from pipelines.studies.scores import ArmScores

MIN_SEEDS = 3
RULE = (
    f"A claim is about a gain: the difference of two arms in one metric, turned so that more is better. It holds if the"
    f" whole 95 % interval of the gain over patients (mean over seeds) lies above its bound and each seed's own gain"
    f" does; it does not hold if the whole interval and each seed's gain lie below the bound. Anything else, fewer than"
    f" {MIN_PATIENTS} patients or fewer than {MIN_SEEDS} seeds that both arms have, is not enough evidence. Arms are"
    " not comparable if they disagree on the patient, modality, source or reference volume of a scan."
)
Interval = tuple[float, float]
Gain = tuple[float, Interval | None, int]


class ClaimVerdict(StrEnum):
    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    NOT_ENOUGH = "not enough evidence"
    NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True)
class JudgedClaim:
    """A claim in one modality. `gain` and `ci95` are None if the two arms share no scored scan or are not comparable;
    then `reason` says why they are not."""

    claim: Claim
    modality: Modality
    gain: float | None
    ci95: Interval | None
    patients: int
    seed_gains: tuple[float, ...]
    verdict: ClaimVerdict
    reason: str = ""


def judge(ci95: Interval | None, seed_gains: Sequence[float], patients: int, by: float) -> ClaimVerdict:
    """The verdict on a gain by `RULE`; `by` is the bound."""
    if ci95 is None or patients < MIN_PATIENTS or len(seed_gains) < MIN_SEEDS:
        return ClaimVerdict.NOT_ENOUGH
    if ci95[0] > by and min(seed_gains) > by:
        return ClaimVerdict.HOLDS
    if ci95[1] < by and max(seed_gains) < by:
        return ClaimVerdict.DOES_NOT_HOLD
    return ClaimVerdict.NOT_ENOUGH


def judge_claim(claim: Claim, arms: Mapping[str, ArmScores], bootstrap: Bootstrap) -> list[JudgedClaim]:
    """The claim in each of its modalities, by the scans and seeds that both arms have."""
    than, arm = arms[claim.than], arms[claim.arm]
    seeds = sorted(set(than.seeds) & set(arm.seeds))
    try:
        pooled = _gains(claim, than.pooled(seeds), arm.pooled(seeds), bootstrap)
    except DataError as error:
        verdict, reason = ClaimVerdict.NOT_COMPARABLE, str(error)
        return [JudgedClaim(claim, modality, None, None, 0, (), verdict, reason) for modality in claim.modalities]
    single = [_gains(claim, than.pooled([seed]), arm.pooled([seed]), bootstrap) for seed in seeds]
    judged = []
    for modality in claim.modalities:
        gain, ci95, patients = pooled.get(modality, (None, None, 0))
        own = tuple(found[modality][0] for found in single if modality in found)
        verdict = judge(ci95, own, patients, claim.by)
        judged.append(JudgedClaim(claim, modality, gain, ci95, patients, own, verdict))
    return judged


def _gains(claim: Claim, than: ScoreTable | None, arm: ScoreTable | None, bootstrap: Bootstrap) -> dict[str, Gain]:
    """Gain, interval and number of patients by modality; nothing if the arms share no scan, as of two modalities.

    Raises DataError if a shared scan has another patient, modality, source or reference in one of the two.
    """
    if than is None or arm is None or not share_cases(than, arm):
        return {}
    return {row.modality: _gain(row) for row in compare_tables([than, arm], [claim.metric], (), bootstrap).rows}


def _gain(row: ComparedMetric) -> Gain:
    difference, sign = row.result.difference, 1 if row.metric.higher_is_better else -1
    assert difference.value is not None  # of every row
    low_high = None if difference.ci95 is None else sorted(sign * bound for bound in difference.ci95)
    return sign * difference.value, None if low_high is None else (low_high[0], low_high[1]), difference.patients
