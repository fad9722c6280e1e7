"""Evaluation: score predicted masks, summarise the scores with intervals, and report them."""

from hepar.evaluation.report import write_report
from hepar.evaluation.scores import CaseScores, StructureScores, score_case, scores_table
from hepar.evaluation.slices import CaseSlice, pick_slice
from hepar.evaluation.statistics import Estimate, paired_difference
from hepar.evaluation.summary import summarise

__all__ = [
    "CaseScores",
    "CaseSlice",
    "Estimate",
    "StructureScores",
    "paired_difference",
    "pick_slice",
    "score_case",
    "scores_table",
    "summarise",
    "write_report",
]
