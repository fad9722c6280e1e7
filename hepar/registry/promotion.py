"""Whether a challenger replaces the champion: bounds that every version must keep, and margins against the champion.

A margin is a test of non-inferiority: the 95 % bootstrap interval over patients of the difference between the two
models, on the scans that both were scored on, must lie within the margin. Too few patients never promote. Where a
single patient is enough, there is no interval, and the difference itself must.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hepar.cases import LIVER, PHANTOM, STRUCTURES, TUMOUR
from hepar.evaluation.bootstrap import paired_difference
from hepar.params import CHAMPION, PromotionGates
from hepar.registry.case_results import CaseResult
from hepar.registry.model_registry import CHALLENGER

NOBODY: Mapping[str, str] = {}


@dataclass(frozen=True)
class Decision:
    """Promote or not. `reasons` say why not; empty for a promotion by the gates. `left_out` names patients."""

    promote: bool
    reasons: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def alias(self) -> str:
        """The alias of a version by this decision."""
        return CHAMPION if self.promote else CHALLENGER

    @property
    def summary(self) -> str:
        """The decision as one line of text."""
        return "; ".join(["promoted" if self.promote else "not promoted", *self.remarks])

    @property
    def remarks(self) -> tuple[str, ...]:
        """All that there is to say about it."""
        return (*self.reasons, *self.left_out)


@dataclass(frozen=True)
class Score:
    """A figure of one case by which versions are judged; it is None where the case has none."""

    name: str
    of: Callable[[CaseResult], float | None]
    higher_is_better: bool = True


LIVER_DICE = Score(f"{STRUCTURES[LIVER]} Dice", lambda result: result.liver_dice)
TUMOUR_DICE = Score(f"{STRUCTURES[TUMOUR]} Dice", lambda result: result.tumour_dice)
RECALL = Score("lesion recall", lambda result: result.recall)
FALSE_LESIONS = Score("false lesions", lambda result: result.false_lesions, higher_is_better=False)
SPECIFICITY = Score("specificity", lambda result: result.specificity)
FALSE_ML = Score("false tumour ml", lambda result: result.false_positive_ml, higher_is_better=False)


@dataclass(frozen=True)
class Bound:
    """The least mean of a score over the scans that have it, or where less is better, the largest."""

    score: Score
    limit: float

    def reason(self, group: str, results: Sequence[CaseResult]) -> str | None:
        """Why these scans, which go by `group`, fail; None if they pass or none of them has the score."""
        values = [value for result in results if (value := self.score.of(result)) is not None]
        if not values:
            return None
        mean = sum(values) / len(values)
        beyond, sign = (mean < self.limit, "<") if self.score.higher_is_better else (mean > self.limit, ">")
        return (
            f"{group} {self.score.name} {mean:.3f} {sign} {self.limit:.3f} (n = {len(values)} scans)"
            if beyond
            else None
        )


@dataclass(frozen=True)
class Margin:
    """How much worse than the champion's the mean of a score may be, and how many patients it takes to tell."""

    score: Score
    width: float
    min_patients: int

    def reason(self, group: str, pairs: Sequence[tuple[CaseResult, CaseResult]], gates: PromotionGates) -> str | None:
        """Why these pairs of champion and challenger, which go by `group`, fail; None if they pass.

        A single patient, where one is enough, has no interval: then the change itself must lie within the margin. No
        patient at all passes where none is needed.
        """
        before, after = ([self.score.of(pair[side]) for pair in pairs] for side in (0, 1))
        patients = [champion.patient_id for champion, _ in pairs]
        change = paired_difference(before, after, patients, gates.bootstrap_seed, gates.bootstrap_resamples)
        title = f"{group} {self.score.name}"
        if change.patients < self.min_patients:
            return f"{title}: not enough evidence, n = {change.patients} paired patients < {self.min_patients}"
        if change.value is None:
            return None
        low, high = change.ci95 or (change.value, change.value)
        if (low if self.score.higher_is_better else -high) > -self.width:
            return None
        if change.ci95 is None:
            within = f"above {-self.width:+.3f}" if self.score.higher_is_better else f"below {self.width:+.3f}"
            return f"{title}: change {change.value:+.3f} is not {within} (n = 1 patient)"
        bound = f"below {-self.width:+.3f}" if self.score.higher_is_better else f"above {self.width:+.3f}"
        interval = f"[{low:+.3f}, {high:+.3f}]"
        return f"{title}: change {change.value:+.3f} {interval} may lie {bound} (n = {change.patients} patients)"


def decide(
    challenger: Sequence[CaseResult],
    champion: Sequence[CaseResult] | None,
    gates: PromotionGates,
    learned: Mapping[str, str] = NOBODY,
) -> Decision:
    """Judge a challenger by its scores, and by those of the champion on the same scans, which pair by case id.

    `learned` names for a patient the model that learned from him or her: such patients are left out and named. Bounds
    hold without a champion too, and so does that phantoms alone promote nothing, unless they may. Modalities are judged
    one by one: a gain in one does not offset a loss in another. A margin applies where the champion has the score, in
    whatever patients; that of specificity also where the champion has lesions scored but no tumour-free patient, which
    is too few unless `min_tumour_free_patients` is 0. A challenger without any Dice is not promoted.
    """
    met = sorted({result.patient_id for result in challenger if result.patient_id in learned})
    left_out = tuple(f"patient {patient} is left out: {learned[patient]} learned from this patient" for patient in met)
    unseen = [result for result in challenger if result.patient_id not in learned]
    if all(result.liver_dice is None and result.tumour_dice is None for result in unseen):
        return Decision(False, ("the challenger has no scores",), left_out)
    against = [
        *_on_phantoms_alone(unseen, gates),
        *_out_of_bounds(unseen, gates),
        *_beyond_margins(unseen, champion or (), gates),
    ]
    return Decision(not against, tuple(against), left_out)


def _on_phantoms_alone(results: Sequence[CaseResult], gates: PromotionGates) -> Iterator[str]:
    if not gates.allow_phantoms and all(result.source == PHANTOM for result in results):
        yield "scored on phantoms alone, which register.gates.allow_phantoms does not allow"


def _out_of_bounds(results: Sequence[CaseResult], gates: PromotionGates) -> Iterator[str]:
    of_modality = (
        Bound(LIVER_DICE, gates.min_liver_dice),
        Bound(TUMOUR_DICE, gates.min_tumour_dice),
        Bound(RECALL, gates.min_recall),
        Bound(FALSE_LESIONS, gates.max_false_lesions),
        Bound(SPECIFICITY, gates.min_specificity),
        Bound(FALSE_ML, gates.max_false_ml),
    )
    of_source = (
        Bound(LIVER_DICE, gates.min_source_liver_dice),
        Bound(TUMOUR_DICE, gates.min_source_tumour_dice),
    )
    for modality in sorted({result.modality for result in results}):
        scans = [result for result in results if result.modality == modality]
        yield from filter(None, (bound.reason(modality, scans) for bound in of_modality))
        for source in sorted({result.source for result in scans}):
            of_one = [result for result in scans if result.source == source]
            yield from filter(None, (bound.reason(f"{modality} {source}", of_one) for bound in of_source))


def _beyond_margins(
    challenger: Sequence[CaseResult], champion: Sequence[CaseResult], gates: PromotionGates
) -> Iterator[str]:
    own = {result.case_id: result for result in challenger}
    for modality in sorted({result.modality for result in champion}):
        scored = [result for result in champion if result.modality == modality]
        pairs = [(result, own[result.case_id]) for result in scored if result.case_id in own]
        for margin in _margins(gates):
            expected = FALSE_LESIONS if margin.score is SPECIFICITY else margin.score
            if any(expected.of(result) is not None for result in scored):
                yield from filter(None, [margin.reason(modality, pairs, gates)])


def _margins(gates: PromotionGates) -> tuple[Margin, ...]:
    return (
        Margin(LIVER_DICE, gates.max_liver_drop, gates.min_patients),
        Margin(TUMOUR_DICE, gates.max_tumour_drop, gates.min_patients),
        Margin(RECALL, gates.max_recall_drop, gates.min_patients),
        Margin(FALSE_LESIONS, gates.max_false_lesions_rise, gates.min_patients),
        Margin(SPECIFICITY, gates.max_specificity_drop, gates.min_tumour_free_patients),
        Margin(FALSE_ML, gates.max_false_ml_rise, gates.min_tumour_free_patients),
    )
