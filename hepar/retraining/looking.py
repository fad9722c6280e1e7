"""One look at the source: what has changed since the champion learned, and whether that is a reason to train again.

The listing of the source is cheap. Only if it, the champion, the reviews or the params differ from those of the last
look is the source ingested, into a cohort of its own that links unchanged cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import hepar.stages.ingest
from hepar.cases import Cohort, LabelState
from hepar.errors import DataError, one_line
from hepar.evaluation.bootstrap import bootstrap_mean
from hepar.evaluation.held_out import given_settings
from hepar.inference.settings import PredictionSettings
from hepar.ingest.listing import list_source
from hepar.ingest.quarantine import Refused, read_quarantine
from hepar.params import Params, RetrainParams, dump_params
from hepar.pool.table import Pool
from hepar.pseudo_labels.reviews import Reviews
from hepar.pseudo_labels.stored_reviews import open_reviews
from hepar.registry.case_results import CaseResult
from hepar.registry.lineage import Lineage, Node
from hepar.registry.model_registry import ModelVersion
from hepar.registry.rescoring import HeldOut, rescore
from hepar.registry.tracking import connect, mlflow_errors
from hepar.retraining.basis import Basis
from hepar.retraining.case_changes import CaseChanges, compare_cases, decided_reviews, known_cases
from hepar.retraining.decision import FreshScores, RetrainingDecision, RetrainingEvidence, decide_retraining
from hepar.retraining.folder import RetrainingFolder
from hepar.retraining.identity import find_champion, training_identity
from hepar.retraining.measuring import DriftMeter
from hepar.retraining.suspect_queue import SuspectQueue
from hepar.retraining.suspicion import SuspectBatch, judge_batch
from hepar.runtime.artifacts import read_manifest, sha256_json
from hepar.runtime.progress import stage

METRICS: dict[str, Callable[[CaseResult], float | None]] = {
    "liver Dice": lambda result: result.liver_dice,
    "tumour Dice": lambda result: result.tumour_dice,
    "specificity": lambda result: result.specificity,
}
Tracer = Callable[[str], Lineage]  # from the address of a version to its lineage


@dataclass(frozen=True)
class Look:
    """What a look found. `state` is the hash of all that the training of it would depend on, and of the champion.

    `basis` is what the training would learn from; without it, the state is held against no other training.
    """

    state: str
    champion: str
    decision: RetrainingDecision
    basis: Basis | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {"state": self.state, "champion": self.champion, **self.decision.as_json()}


def look(params: Params, folder: RetrainingFolder, trace: Tracer, keep: bool = True) -> Look:
    """Look at the source of the params; the caller holds the folder. Unless `keep`, it does not count as the last look.

    Raises DataError if what the champion learned from is no longer known, or the source cannot be ingested.
    """
    champion = find_champion(params.register_model.model_name)
    suspect_reviews = folder.reviews()
    with open_reviews(params.assemble_pool.reviews) as pool_reviews:
        pass  # the decisions stay; the masks are not needed here
    identity = training_identity(params, champion, pool_reviews.hash)
    settings = sha256_json({**identity, "reviews": "", "params": _trained(params)})

    def with_basis(found: Look) -> Look:
        cases = Cohort.load(folder.cohort).cases
        return replace(found, basis=Basis(settings, cases, pool_reviews, found.decision, params.retrain))

    seen = sha256_json([identity, list_source(params.source), suspect_reviews.hash])
    if (known := _kept(folder, seen)) is not None:
        return with_basis(known)
    hepar.stages.ingest.run(params.source, folder.cohort, params.ingest, params.modalities)
    state = sha256_json([{**identity, "params": _trained(params)}, read_manifest(folder.cohort, Cohort.KIND).hash])
    with stage("retrain"):
        if champion is None:
            evidence = RetrainingEvidence("")
        else:
            with mlflow_errors():
                evidence = _Inspection(params, folder, champion, trace(champion.uri)).evidence(
                    pool_reviews, suspect_reviews
                )
    found = Look(state, identity["champion"], decide_retraining(evidence, params.retrain))
    if keep:
        folder.save_look({"seen": seen, **found.as_json()})
    return with_basis(found)


def _trained(params: Params) -> dict[str, Any]:
    """The params that a training depends on, but for where the source lies: the cohort's hash tells its content."""
    left_out = ("source", "retrain", "cluster")
    return {name: values for name, values in dump_params(params).items() if name not in left_out}


def _kept(folder: RetrainingFolder, seen: str) -> Look | None:
    """The last look, if it saw the same and its cohort is there."""
    kept = folder.last_look()
    if kept.get("seen") != seen or not folder.cohort.is_dir():
        return None
    try:
        return Look(kept["state"], kept["champion"], RetrainingDecision.from_json(kept))
    except (KeyError, TypeError):  # of another version
        return None


@dataclass(frozen=True)
class _Inspection:
    """The freshly ingested cohort beside what is known about the champion."""

    params: Params
    folder: RetrainingFolder
    champion: ModelVersion
    lineage: Lineage

    def evidence(self, pool_reviews: Reviews, suspect_reviews: Reviews) -> RetrainingEvidence:
        """All that the decision depends on. Writes the queue of suspicious masks."""
        cohort = Cohort.load(self.folder.cohort)
        learned = self._learned_cohort()
        assert learned.cases is not None
        changes = compare_cases(known_cases(learned.cases), cohort.cases)
        if (pool := self._node(Pool.KIND)) is not None and pool.cases is not None:
            taken = pool.parents.get(Pool.REVIEWS, "")
            reviewed = decided_reviews(pool_reviews, pool.cases, taken, cohort.cases)
            changes = replace(changes, became_known=(*changes.became_known, *reviewed))
        settings = self._settings()
        results = self._rescored(HeldOut(cohort, changes.labelled, settings))
        suspects = self._suspects(changes, results, self._refused(learned), suspect_reviews)
        SuspectQueue(cohort, self.champion, settings).write((*suspects.suspects, *suspects.rejected), self.folder)
        drifts = DriftMeter(cohort, self.params.preprocessing, self.folder).drifts(changes, self.params.retrain)
        trusted = [result for result in results if result.case_id not in suspects.case_ids]
        scores = compare_scores(self.champion.cases or (), trusted, self.params.retrain)
        return RetrainingEvidence(self.champion.number, changes, drifts, scores, suspects)

    def _rescored(self, held_out: HeldOut) -> tuple[CaseResult, ...]:
        return rescore(connect(), self.champion, held_out) if held_out.cases else ()

    def _learned_cohort(self) -> Node:
        """The cohort that the champion's pool was made from. Raises DataError if its cases are not known any more."""
        pool = self._node(Pool.KIND)
        found = None if pool is None else self.lineage.nodes.get(pool.parents.get(Cohort.KIND, ""))
        if found is None or found.cases is None:
            raise DataError(
                f"{self.champion.uri}: which cases it learned from is not known any more, so nothing can be compared;"
                " train once by `hepar run`"
            )
        return found

    def _node(self, kind: str) -> Node | None:
        return next((node for node in self.lineage.nodes.values() if node.kind == kind), None)

    def _settings(self) -> PredictionSettings:
        try:
            return given_settings(self.champion.facts)
        except ValueError as error:
            raise DataError(f"{self.champion.uri}: its evaluation cannot be repeated: {one_line(error)}") from None

    def _refused(self, learned: Node) -> list[Refused]:
        """The cases that ingest refuses but did not when the champion learned; none if that is not known."""
        if learned.refused is None:
            return []
        now = read_quarantine(self.folder.cohort / Cohort.QUARANTINE)
        return [line for line in now if line.case_id not in learned.refused]

    def _suspects(
        self, changes: CaseChanges, results: Sequence[CaseResult], refused: Sequence[Refused], reviews: Reviews
    ) -> SuspectBatch:
        masks = {case.case_id for case in changes.labelled if case.liver_state == LabelState.MANUAL}
        dices = {result.case_id: result.liver_dice for result in results if result.case_id in masks}
        batch = {case.case_id: case for case in (*changes.new, *changes.new_test, *changes.labelled)}
        return judge_batch(tuple(batch.values()), dices, refused, self.params.retrain.suspect_dice, reviews)


def compare_scores(
    own: Sequence[CaseResult], fresh: Sequence[CaseResult], params: RetrainParams
) -> tuple[FreshScores, ...]:
    """Each metric of `METRICS` by modality where newly labelled cases have it, with intervals over patients."""

    def estimate(results: Sequence[CaseResult], modality: str, metric: str) -> Any:
        chosen = [result for result in results if result.modality == modality]
        values = [METRICS[metric](result) for result in chosen]
        patients = [result.patient_id for result in chosen]
        return bootstrap_mean(values, patients, params.bootstrap_seed, params.bootstrap_resamples)

    found = []
    for modality in sorted({result.modality for result in fresh}):
        for metric in METRICS:
            new = estimate(fresh, modality, metric)
            if new.n:
                found.append(FreshScores(modality, metric, estimate(own, modality, metric), new))
    return tuple(found)
