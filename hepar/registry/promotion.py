"""Whether a challenger replaces the champion: bounds that every version must keep, and margins against the champion.

A margin is a test of non-inferiority: the 95 % interval over patients of the difference between the two models, on the
scans that both were scored on, must lie within the margin. A loss within it that is certain must be paid for by a gain
that is, or one champion after the other would be a little worse. Too few patients never promote. Where a single patient
is enough, there is no interval, and the difference itself must lie within the margin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hepar.cases import LIVER, PHANTOM, STRUCTURES, TUMOUR
from hepar.evaluation.bootstrap import Estimate, differences, paired_difference, widened_by_t
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

    def measure(self, group: str, pairs: Sequence[tuple[CaseResult, CaseResult]], gates: PromotionGates) -> Change:
        """The change of the score over these pairs of champion and challenger, which go by `group`."""
        before, after = ([self.score.of(pair[side]) for pair in pairs] for side in (0, 1))
        patients = [champion.patient_id for champion, _ in pairs]
        change = paired_difference(before, after, patients, gates.bootstrap_seed, gates.bootstrap_resamples)
        return Change(self, f"{group} {self.score.name}", widened_by_t(change, differences(before, after), patients))


@dataclass(frozen=True)
class Change:
    """What became of a score from champion to challenger, over the patients of both."""

    margin: Margin
    title: str
    difference: Estimate

    def reason(self) -> str | None:
        """Why it fails; None if it passes, as no patient at all does where none is needed."""
        change, margin = self.difference, self.margin
        if change.patients < margin.min_patients:
            return f"{self.title}: not enough evidence, n = {change.patients} paired patients < {margin.min_patients}"
        if change.value is None or self._gain_at_least() > -margin.width:
            return None
        higher = margin.score.higher_is_better
        if change.ci95 is None:
            within = f"above {-margin.width:+.3f}" if higher else f"below {margin.width:+.3f}"
            return f"{self.title}: change {change.value:+.3f} is not {within} (n = 1 patient)"
        bound = f"below {-margin.width:+.3f}" if higher else f"above {margin.width:+.3f}"
        return f"{self.title}: {self._words()} may lie {bound} (n = {change.patients} patients)"

    def loss(self) -> str | None:
        """A loss that is certain, since the whole interval is one; None if there is none."""
        if self.difference.ci95 is None or -self._with_sign(self.difference.ci95)[1] <= 0:
            return None
        return f"{self.title}: {self._words()} is a loss, and no score gains (n = {self.difference.patients} patients)"

    def is_gain(self) -> bool:
        """Whether the whole interval is a gain."""
        return self.difference.ci95 is not None and self._gain_at_least() > 0

    def _gain_at_least(self) -> float:
        """The lower end of the gain, which is the change itself of a single patient."""
        assert self.difference.value is not None
        return self._with_sign(self.difference.ci95 or (self.difference.value, self.difference.value))[0]

    def _with_sign(self, ends: tuple[float, float]) -> tuple[float, float]:
        """An interval of changes as one of gains."""
        low, high = ends
        return (low, high) if self.margin.score.higher_is_better else (-high, -low)

    def _words(self) -> str:
        assert self.difference.value is not None
        assert self.difference.ci95 is not None
        low, high = self.difference.ci95
        return f"change {self.difference.value:+.3f} [{low:+.3f}, {high:+.3f}]"


def decide(
    challenger: Sequence[CaseResult],
    champion: Sequence[CaseResult] | None,
    gates: PromotionGates,
    learned: Mapping[str, str] = NOBODY,
) -> Decision:
    """Judge a challenger by its scores, and by those of the champion on the same scans, which pair by case id.

    `learned` names for a patient the model that learned from him or her: such patients are left out and named.
    Phantoms are left out too, unless they may count. Bounds hold without a champion too. Modalities are judged one by
    one: a gain in one does not offset a loss beyond a margin in another. A margin applies where the champion has the
    score, in whatever patients; that of specificity also where the champion has lesions scored but no tumour-free
    patient, which is too few unless `min_tumour_free_patients` is 0. A challenger without any Dice is not promoted.
    """
    met = sorted({result.patient_id for result in challenger if result.patient_id in learned})
    left_out = tuple(f"patient {patient} is left out: {learned[patient]} learned from this patient" for patient in met)
    unseen = [result for result in challenger if result.patient_id not in learned]
    counted = _counted(unseen, gates)
    if unseen and not counted:
        return Decision(
            False, ("scored on phantoms alone, which register.gates.allow_phantoms does not allow",), left_out
        )
    if all(result.liver_dice is None and result.tumour_dice is None for result in counted):
        return Decision(False, ("the challenger has no scores",), left_out)
    before = _counted(champion or (), gates)
    against = [*_out_of_bounds(counted, gates), *_beyond_margins(counted, before, gates)]
    return Decision(not against, tuple(against), left_out)


def _counted(results: Sequence[CaseResult], gates: PromotionGates) -> list[CaseResult]:
    """The scans that count: phantoms only if they may."""
    return [result for result in results if gates.allow_phantoms or result.source != PHANTOM]


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
    changes = list(_changes(challenger, champion, gates))
    beyond = [reason for change in changes if (reason := change.reason())]
    if beyond or any(change.is_gain() for change in changes):
        yield from beyond
    else:
        yield from filter(None, (change.loss() for change in changes))


def _changes(
    challenger: Sequence[CaseResult], champion: Sequence[CaseResult], gates: PromotionGates
) -> Iterator[Change]:
    own = {result.case_id: result for result in challenger}
    for modality in sorted({result.modality for result in champion}):
        scored = [result for result in champion if result.modality == modality]
        pairs = [(result, own[result.case_id]) for result in scored if result.case_id in own]
        for margin in _margins(gates):
            expected = FALSE_LESIONS if margin.score is SPECIFICITY else margin.score
            if any(expected.of(result) is not None for result in scored):
                yield margin.measure(modality, pairs, gates)


def _margins(gates: PromotionGates) -> tuple[Margin, ...]:
    return (
        Margin(LIVER_DICE, gates.max_liver_drop, gates.min_patients),
        Margin(TUMOUR_DICE, gates.max_tumour_drop, gates.min_patients),
        Margin(RECALL, gates.max_recall_drop, gates.min_patients),
        Margin(FALSE_LESIONS, gates.max_false_lesions_rise, gates.min_patients),
        Margin(SPECIFICITY, gates.max_specificity_drop, gates.min_tumour_free_patients),
        Margin(FALSE_ML, gates.max_false_ml_rise, gates.min_tumour_free_patients),
    )
