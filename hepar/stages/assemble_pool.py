"""Stage 4: manual livers, pseudo-livers and tumour labels become one mixed-label pool of prepared arrays.

Writes `pool.parquet` (what is known of each case, how, and from where), `plan.json`, `cases/<case>/`, and the datasheet
`README.md` with `pictures/`. Test patients are left out. Where a pool lies at the same place already, the arrays of
cases that are made from the same files and settings are linked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from hepar.cases import Case, Cohort, LabelState, Split
from hepar.errors import ArtifactError, DataError
from hepar.imaging.preprocessing import make_preprocessing_plan
from hepar.imaging.volumes import Geometry, read_image
from hepar.ingest.sources.s3 import SCHEME, Buckets
from hepar.params import AssemblePoolParams, PreprocessingParams
from hepar.pool.building import Earlier, LiverLabel, Rules, write_entry
from hepar.pool.datasheet import write_datasheet
from hepar.pool.table import Pool
from hepar.pseudo_labels.gates import ACCEPT, REJECT, TABLE
from hepar.pseudo_labels.reviews import NO_REVIEWS, Decision, Review, Reviews, void
from hepar.runtime.artifacts import Manifest, read_manifest, writing
from hepar.runtime.progress import current, stage

KIND = "pool"


def run(
    cohort: Path,
    pseudo: Path,
    pool: Path,
    preprocessing: PreprocessingParams,
    params: AssemblePoolParams,
    publish: Callable[[Path], None] | None = None,
) -> None:
    """Assemble the pool of training and validation patients by the strategy in `params`.

    `publish`, if any, gets the finished pool while the stage still runs, so that its failure is the stage's.
    """
    with stage("assemble-pool"), _reviews(params.reviews) as reviews:
        manifest = read_manifest(pseudo, "pseudo-labels")
        parents = {"cohort": read_manifest(cohort, "cohort").hash, "pseudo-labels": manifest.hash}
        if manifest.parents["cohort"] != parents["cohort"]:
            raise ArtifactError(
                f"{pseudo} labels cohort {manifest.parents['cohort']}, but {cohort} is {parents['cohort']}"
            )
        if reviews.of_case:
            parents["reviews"] = reviews.hash
        cases = Cohort.load(cohort)
        rules = Rules(make_preprocessing_plan(cases.cases, preprocessing), params.unknown_tumour, params.margin_mm)
        chosen = [case for case in cases if case.split != Split.TEST and case.modality in params.modalities]
        livers = _livers(chosen, cases, pseudo, manifest, reviews) if params.labels != "tumour" else {}
        if params.labels == "manual":  # what a person has drawn anew is manual
            livers = {case_id: label for case_id, label in livers.items() if label.state == LabelState.MANUAL}
        earlier, known = Earlier.at(pool), dict[str, str]()
        with writing(pool, KIND, parents, known) as folder, current().counting(len(chosen), "cases") as count:
            entries = []
            for case in chosen:
                entry = write_entry(
                    folder,
                    case,
                    cases.folder,
                    rules,
                    liver=livers.get(case.case_id),
                    use_liver=_uses_liver(case, params),
                    earlier=earlier,
                    known=known,
                )
                entries.append(entry)
                count.advance(case=case.case_id, liver=str(entry.liver_state))
            assembled = Pool(folder, rules.plan, tuple(entries))
            if not assembled.select(Split.TRAIN):
                raise DataError(
                    f"the pool teaches nothing: no training case of {', '.join(params.modalities)} has a label"
                    f" under assemble_pool.labels {params.labels}"
                )
            assembled.save()
            write_datasheet(assembled, parents, params)
        if publish is not None:
            publish(pool)


def _uses_liver(case: Case, params: AssemblePoolParams) -> bool:
    """Manual livers are used unless the strategy is tumour labels only; validation patients keep theirs to score."""
    return params.labels != "tumour" or case.split == Split.VAL


@contextmanager
def _reviews(place: str) -> Iterator[Reviews]:
    """The decisions of people; none for an empty place."""
    if not place:
        yield NO_REVIEWS
    elif place.startswith(SCHEME):
        with tempfile.TemporaryDirectory(prefix="hepar-") as scratch:
            yield Reviews.load(Buckets(Path(scratch)).fetch(place))
    else:
        yield Reviews.load(Path(place))


def _livers(
    chosen: Sequence[Case], cohort: Cohort, pseudo: Path, manifest: Manifest, reviews: Reviews
) -> dict[str, LiverLabel]:
    """The pseudo-liver of each case by the gates, or what a person made of it."""
    rows: Sequence[Mapping[Any, Any]] = pd.read_parquet(pseudo / TABLE).to_dict(orient="records")
    labels = {row["case_id"]: _by_the_gates(row, pseudo, manifest) for row in rows}
    drawn = {case_id: label.sha256 for case_id, label in labels.items()}
    for stale in void(reviews, chosen, drawn):
        current().say(f"case {stale.case_id}: {stale.in_words}, is about another mask or image: it no longer counts")
    for case in chosen:
        if (review := reviews.of(case, drawn.get(case.case_id, ""))) is not None:
            labels[case.case_id] = _by_a_person(review, case, cohort, labels.get(case.case_id), reviews)
    return labels


def _by_the_gates(row: Mapping[Any, Any], pseudo: Path, manifest: Manifest) -> LiverLabel:
    place = f"masks/{row['case_id']}"
    return LiverLabel(
        state=LabelState.PSEUDO,
        mask=pseudo / place / "liver.nii.gz",
        sha256=row["mask_sha256"],
        weight=float(row["weight"]),
        uncertain=pseudo / place / "uncertain.nii.gz",
        uncertain_sha256=manifest.files[f"{place}/uncertain.nii.gz"],
        teacher=row["teacher"],
        gate=row["gate"],
        reasons=row["reasons"],
    )


def _by_a_person(review: Review, case: Case, cohort: Cohort, label: LiverLabel | None, reviews: Reviews) -> LiverLabel:
    """The label after a decision. Raises DataError where a corrected mask does not lie on the case's grid."""
    if review.decision == Decision.CORRECT:
        mask = reviews.corrected_mask(review)
        own, wanted = Geometry.of(read_image(mask)), Geometry.of(read_image(cohort.file(case.image)))
        if not own.agrees_with(wanted):
            raise DataError(
                f"case {case.case_id}: the corrected mask is {own.size_zyx} zyx, not on the grid of the image"
            )
        reasons = label.reasons if label is not None else ""  # what the gates said of the one that was corrected
        state, gate = LabelState.MANUAL, str(Decision.CORRECT)
        return LiverLabel(state, mask, review.mask_sha256, 1.0, gate=gate, reasons=reasons, review=review.in_words)
    assert label is not None  # a decision about a mask that is not there is void
    accepted = review.decision == Decision.ACCEPT
    return replace(label, weight=float(accepted), gate=ACCEPT if accepted else REJECT, review=review.in_words)
