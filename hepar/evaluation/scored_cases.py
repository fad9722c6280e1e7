"""Scored cases, and the report that is written of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from hepar.evaluation.lesion_table import lesions_table
from hepar.evaluation.report import write_report
from hepar.evaluation.report_folder import Report
from hepar.evaluation.scores import CaseScores, scores_table
from hepar.evaluation.slices import CaseSlice
from hepar.evaluation.summary import Bootstrap, summarise


@dataclass(frozen=True)
class ScoredCase:
    """Scores of one case, and the slice that the report shows."""

    scores: CaseScores
    shown: CaseSlice


def save_report(
    report: Report,
    scored: Sequence[ScoredCase],
    history: pd.DataFrame,
    facts: Mapping[str, str],
    bootstrap: Bootstrap,
) -> None:
    """Write metrics, facts, tables and page of scored cases into the folder of a report.

    `history` is that of the training, without rows if none is known.
    """
    scores = [case.scores for case in scored]
    metrics = summarise(scores, seed=bootstrap.seed, resamples=bootstrap.resamples)
    lesions = lesions_table(row for case in scores for row in case.lesion_rows)
    report.save(metrics, facts, scores_table(scores), lesions)
    write_report(report.page, metrics, scores, [case.shown for case in scored], history, facts, bootstrap)
