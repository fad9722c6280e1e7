"""Stage 4: manual livers, pseudo-livers and tumour labels become one pool of preprocessed arrays.

Writes a folder `Pool` without the patients of the test split. If there is a previous pool in its place, the arrays of
cases with the same files and settings are linked instead of preprocessed, or stay in the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hepar.cases import Case, Cohort, LabelState, Modality, Split
from hepar.errors import DataError
from hepar.imaging.preprocessing import make_preprocessing_plan
from hepar.params import AssemblePoolParams, PreprocessingParams
from hepar.pool.building import LiverLabel, PoolBuilder, PoolSettings, PreviousPool
from hepar.pool.datasheet import write_datasheet
from hepar.pool.table import Pool, PoolEntry
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.pseudo_labels.reviews import Review, ReviewDecision, Reviews
from hepar.pseudo_labels.stored_reviews import open_reviews
from hepar.runtime.artifacts import as_parents_of_parent, check_made_from, read_manifest, write_artifact
from hepar.runtime.progress import current_stage, stage
from hepar.runtime.stored_versions import Handover


def run(
    cohort: Path,
    pseudo: Path,
    pool: Path,
    modalities: Sequence[Modality],
    preprocessing: PreprocessingParams,
    params: AssemblePoolParams,
    handover: Handover | None = None,
) -> None:
    """Assembles the pool of the training and validation patients' scans of `modalities`, by the strategy in `params`.

    `handover`, if given, comes before and after inside the stage: if it fails, the stage fails.
    """
    with stage("assemble-pool"), open_reviews(params.reviews) as reviews:
        if handover is not None:
            handover.start(pool)
        pseudo_labels = PseudoLabels.load(pseudo)
        pseudo_labels.verify()
        parents = _parents(cohort, pseudo_labels, reviews)
        inherited = as_parents_of_parent(PseudoLabels.KIND, pseudo_labels.manifest.parents)
        cases = Cohort.load(cohort)
        plan = make_preprocessing_plan(cases.cases, preprocessing)
        settings = PoolSettings(plan, params.unknown_tumour, params.margin_mm)
        chosen = [case for case in cases if case.modality in modalities and _belongs(case, params)]
        cases.verify(chosen)
        livers = _liver_labels(chosen, cases, pseudo_labels, reviews) if params.labels != "tumour" else {}
        if params.labels == "manual":  # a corrected liver counts as manual
            livers = {case_id: label for case_id, label in livers.items() if label.state == LabelState.MANUAL}
        previous, hashes, stored = PreviousPool.load(pool), dict[str, str](), dict[str, str]()
        with write_artifact(pool, Pool.KIND, parents | inherited, hashes, stored) as folder:
            builder = PoolBuilder(folder, cases.folder, settings, previous, hashes, stored)
            assembled = Pool(folder, plan, _build(builder, chosen, livers, params))
            builder.save_carried()
            _check_trainable(assembled.entries, modalities, params)
            assembled.save()
            write_datasheet(assembled, parents, params)
        if handover is not None:
            handover.finish(pool)


def _belongs(case: Case, params: AssemblePoolParams) -> bool:
    """Whether a case is in the pool: test cases are not, nor with `left-out` training cases with an unknown tumour."""
    left_out = params.unknown_tumour == "left-out" and case.split == Split.TRAIN
    return case.split != Split.TEST and not (left_out and case.tumour_state == LabelState.UNKNOWN)


def _parents(cohort: Path, pseudo_labels: PseudoLabels, reviews: Reviews) -> dict[str, str]:
    """Hashes of the inputs. Raises ArtifactError if the pseudo-labels are of another cohort."""
    manifest = read_manifest(cohort, Cohort.KIND)
    check_made_from(pseudo_labels.folder, pseudo_labels.manifest, cohort, manifest, "pseudo-label")
    parents = {Cohort.KIND: manifest.hash, PseudoLabels.KIND: pseudo_labels.manifest.hash}
    return {**parents, Pool.REVIEWS: reviews.hash} if reviews.by_case else parents


def _build(
    builder: PoolBuilder, cases: Sequence[Case], livers: Mapping[str, LiverLabel], params: AssemblePoolParams
) -> tuple[PoolEntry, ...]:
    """Adds the cases to the pool."""
    entries = []
    with current_stage().counting(len(cases), "cases") as count:
        for case in cases:
            # validation patients keep their manual livers, so that every strategy is scored on the same livers
            use_liver = params.labels != "tumour" or case.split == Split.VAL
            entry = builder.add(case, livers.get(case.case_id), use_liver=use_liver)
            entries.append(entry)
            count.advance(case=case.case_id, liver=str(entry.liver.state))
    return tuple(entries)


def _check_trainable(entries: Sequence[PoolEntry], modalities: Sequence[Modality], params: AssemblePoolParams) -> None:
    """Raises DataError if no training case has a label."""
    if not any(entry.split == Split.TRAIN and entry.arrays.known_share > 0 for entry in entries):
        raise DataError(
            f"the pool has nothing to train on: no training case of {', '.join(modalities)} has a label"
            f" under assemble_pool.labels {params.labels}"
        )


def _liver_labels(
    cases: Sequence[Case], cohort: Cohort, pseudo_labels: PseudoLabels, reviews: Reviews
) -> dict[str, LiverLabel]:
    """The pseudo-liver of each case by the verdict of the gates, or by the review that overrides it."""
    labels = {row["case_id"]: _gated_label(row, pseudo_labels) for row in pseudo_labels.rows()}
    masks_sha256 = {case_id: label.mask_sha256 for case_id, label in labels.items()}
    for void in reviews.find_void(cases, masks_sha256):
        current_stage().log(f"case {void.case_id}: review ignored, its mask or image has changed: {void.summary}")
    for case in cases:
        if (review := reviews.find(case, masks_sha256.get(case.case_id, ""))) is None:
            continue
        label = labels.get(case.case_id)
        if review.decision == ReviewDecision.CORRECT:
            label = _corrected_label(review, reviews.corrected_mask(review), label)
            label.check_grid(case, cohort.file(case.image))
        else:
            assert label is not None  # a review of a mask that does not exist is void
            accepted = review.decision == ReviewDecision.ACCEPT
            label = label.reviewed(accepted, gate=str(review.decision), review=review.summary)
        labels[case.case_id] = label
    return labels


def _gated_label(row: Mapping[str, Any], pseudo_labels: PseudoLabels) -> LiverLabel:
    """The pseudo-liver in a row of the table of pseudo-labels."""
    uncertain = pseudo_labels.uncertain(row["case_id"])
    return LiverLabel(
        state=LabelState.PSEUDO,
        mask=pseudo_labels.liver(row["case_id"]),
        mask_sha256=row["mask_sha256"],
        weight=float(row["weight"]),
        uncertain=uncertain,
        uncertain_sha256=pseudo_labels.sha256(uncertain),
        teacher=row["teacher"],
        gate=row["gate"],
        reasons=row["reasons"],
    )


def _corrected_label(review: Review, mask: Path, pseudo_liver: LiverLabel | None) -> LiverLabel:
    """A corrected mask as a manual label; it keeps the reasons that the gates gave for the pseudo-liver."""
    return LiverLabel(
        state=LabelState.MANUAL,
        mask=mask,
        mask_sha256=review.mask_sha256,
        weight=1.0,
        gate=str(review.decision),
        reasons="" if pseudo_liver is None else pseudo_liver.reasons,
        review=review.summary,
    )
