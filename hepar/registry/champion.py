"""Promotion and its undoing in the registry: decide on a version, make it the champion, return to the previous one.

A decision may take long, as the champion may have to be scored anew, so it is made without a lease. It is carried out
under the lease of the model, and only if the champion still is the one that was compared; else it is made again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hepar.errors import ArtifactError, DataError, StorageError, one_line
from hepar.inference.model_folder import hash_patient
from hepar.params import CHAMPION, PromotionGates, RegisterParams
from hepar.registry.case_results import CaseResult
from hepar.registry.lease import hold_lease
from hepar.registry.model_registry import ModelVersion, RegisteredModel
from hepar.registry.promotion import Decision, decide
from hepar.registry.registration import Registration
from hepar.registry.scored_cohort import open_scored_cohort, what_to_give
from hepar.registry.tracking import check_server, connect, mlflow_errors, server, tag_name
from hepar.runtime.commit import release

DECISION_TAG = tag_name("decision")  # of a version: the last decision on it, with its reasons
ROLLED_BACK = "rolled back"  # how a decision on a version begins that a rollback has replaced
ALREADY_CHAMPION = "it is already the champion"
MET_TAG = tag_name("met")  # of a version: the number of the champion of that decision, or `NOBODY_MET`
NOBODY_MET = "none"
RESULT_TAG = tag_name("registration")  # of a version: how its registration ended; missing if that was cut short


@dataclass(frozen=True)
class Rollback:
    """The version that is champion again, and the one that it replaced; empty if there was no champion."""

    restored: str
    replaced: str


@dataclass(frozen=True)
class Judge:
    """Decides on the versions of a model by its gates.

    `cohort` is the folder of the cohort that they were scored on, for scores that do not pair; without it the store has
    it, if there is one. With `force` every decision is a promotion, with its reasons against it, also where judging
    fails.
    """

    model: RegisteredModel
    gates: PromotionGates
    cohort: Path | None = None
    force: bool = False

    def decide(self, challenger: ModelVersion, champion: ModelVersion | None) -> Decision:
        """Decide on a version by the gates. Versions whose scores cannot be compared keep the champion.

        Raises DataError if the cohort is another one than that of the challenger.
        """
        if challenger.cases is None:
            return Decision(False, (f"version {challenger.number} was registered without its scores by case",))
        if champion is None:
            return decide(challenger.cases, None, self.gates, self._learned(challenger.cases, challenger))
        if champion.model_hash and champion.model_hash == challenger.model_hash:
            return Decision(False, (f"version {champion.number}, the champion, is the same model",))
        scores = self._scores(champion, challenger)
        if isinstance(scores, str):
            return Decision(False, (scores,))
        before, after = scores
        return decide(after, before, self.gates, self._learned(after, champion, challenger))

    def _scores(
        self, champion: ModelVersion, challenger: ModelVersion
    ) -> tuple[tuple[CaseResult, ...], tuple[CaseResult, ...]] | str:
        """The scores of champion and challenger, both by one release of hepar, or why there are none.

        The champion's are those on the cases of the challenger and on its own, which tell what it can do: a challenger
        that was not tested in all of it does not take its place.
        """
        name = f"version {champion.number}, the champion,"
        if champion.cases is None or challenger.cases is None:
            return f"not comparable: {name} was registered without its scores by case"
        same_cases = champion.test_set == challenger.test_set
        if same_cases and champion.release == challenger.release != "":
            return champion.cases, challenger.cases
        with open_scored_cohort(challenger, self.cohort) as cohort:
            if cohort is None:
                other = "by another release of hepar" if same_cases else "on another test set"
                return f"not comparable: {name} was scored {other}; {what_to_give(challenger)}"
            from hepar.registry.rescoring import HeldOut, rescore  # imports torch, which most promotions do not need

            held_out = HeldOut.of_version(challenger, cohort)
            anew = rescore(self.model.mlflow, champion, held_out)
            is_current = challenger.release == release()
            after = challenger.cases if is_current else rescore(self.model.mlflow, challenger, held_out)
        return (*anew, *self._of_other_patients(champion.cases, anew)), after

    @staticmethod
    def _of_other_patients(own: tuple[CaseResult, ...], anew: tuple[CaseResult, ...]) -> list[CaseResult]:
        replaced = {result.case_id for result in anew}
        return [result for result in own if result.case_id not in replaced]

    def _learned(self, tested: tuple[CaseResult, ...], *versions: ModelVersion) -> dict[str, str]:
        """The test patients whose labels a version has seen, with its name."""
        learned: dict[str, str] = {}
        for version in versions:
            seen = self.model.patients(version)
            for patient in {result.patient_id for result in tested}:
                if hash_patient(patient) in seen:
                    learned.setdefault(patient, f"version {version.number}")
        return learned

    def decide_on(self, number: str) -> tuple[Decision, str]:
        """Decide on a version against the champion of now; also returns its number, empty if there is none.

        Raises DataError if there is no such version; without `force` also what keeps it from being judged.
        """
        self.model.entry(number)
        champion = self.model.aliases().get(CHAMPION, "")
        if champion == number:
            return Decision(True, (ALREADY_CHAMPION,)), champion
        try:
            with mlflow_errors():
                against = self.model.version(champion) if champion else None
                decision = self.decide(self.model.version(number), against)
        except (ArtifactError, DataError, StorageError) as error:
            if not self.force:
                raise
            decision = Decision(False, (f"could not be judged: {one_line(error)}",))
        if self.force and not decision.promote:
            decision = replace(decision, promote=True, reasons=("by force", *decision.reasons))
        return decision, champion

    def decide_and_act(self, number: str, act: Callable[[Decision, RegisteredModel], Decision]) -> Decision:
        """Decide on a version and act on it while no other process can change the champion; returns what `act` does.

        `act` gets the model under the lease. If another process has been faster, there is a new champion to decide
        against.
        """
        while True:
            decision, champion = self.decide_on(number)
            with hold_lease(self.model.mlflow, self.model.name) as lease:
                if self.model.aliases().get(CHAMPION, "") == champion:
                    return act(decision, replace(self.model, lease=lease))


def settle(number: str, judge: Judge) -> Registration:
    """Decide on a version that was just registered, and give it its alias.

    Its last step is a tag with the result, so a registration without that tag was cut short and can be settled again.
    Raises DataError if there is no such version.
    """

    def act(decision: Decision, model: RegisteredModel) -> Decision:
        _note(number, decision, model)
        if decision.promote:
            model.make_champion(number)
        else:
            model.make_challenger(number)
        result = Registration.of(model.name, number, decision)
        model.tag_version(number, {RESULT_TAG: result.to_json()})
        return decision

    return Registration.of(judge.model.name, number, judge.decide_and_act(number, act))


def _note(number: str, decision: Decision, model: RegisteredModel) -> None:
    """Tag a version with a decision before it is carried out: no champion lacks the one that made it champion."""
    before = model.aliases().get(CHAMPION, NOBODY_MET)
    if before != number:
        model.tag_version(number, {MET_TAG: before, DECISION_TAG: decision.summary})


def promote(
    number: str, params: RegisterParams, force: bool = False, dry_run: bool = False, cohort: Path | None = None
) -> Decision:
    """Make a registered version the champion if the gates allow it, or regardless with `force`, judged or not.

    The version is tagged with the decision. `cohort` is that of its report, see `Judge`. With `dry_run` no alias and no
    tag changes. Raises DataError if there is no registry or no such version, StorageError if the registry fails.
    """
    check_server()
    with mlflow_errors():
        model = RegisteredModel(connect(), params.model_name)
        judge = Judge(model, params.gates, cohort, force)

        def act(decision: Decision, model: RegisteredModel) -> Decision:
            _note(number, decision, model)
            if decision.promote:
                model.make_champion(number)
            return decision

        return judge.decide_on(number)[0] if dry_run else judge.decide_and_act(number, act)


def rollback(params: RegisterParams) -> Rollback:
    """Make the previous champion the champion again; a second call without a promotion in between finds none.

    Both versions are tagged with what happened. A rollback that was cut short is completed by the next: then the
    previous champion is the champion already, and nothing is replaced. Raises DataError if there is no registry or no
    previous champion, StorageError if the registry fails.
    """
    check_server()
    with mlflow_errors():
        model = RegisteredModel(connect(), params.model_name)
        _previous(model)  # a model that does not exist gets no lease
        with hold_lease(model.mlflow, model.name) as lease:
            previous, champion = _previous(model), model.aliases().get(CHAMPION, "")
            replace(model, lease=lease).restore_previous()
            if champion in ("", previous):
                model.tag_version(previous, {DECISION_TAG: "champion again"})
                return Rollback(previous, "")
            model.tag_version(previous, {DECISION_TAG: f"champion again after version {champion}"})
            model.tag_version(champion, {DECISION_TAG: f"{ROLLED_BACK} to version {previous}"})
            return Rollback(previous, champion)


def _previous(model: RegisteredModel) -> str:
    if (number := model.previous()) is None:
        raise DataError(f"model {model.name} has no previous champion at {server()}")
    return number
