"""What a report does not score, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hepar.cases import STRUCTURES
from hepar.evaluation.report_folder import Report
from hepar.evaluation.scores import CaseScores

MAX_NAMED = 200


@dataclass(frozen=True)
class NotScored:
    """What is missing, the reason, and the cases by id: all of them if `cases` is empty."""

    what: str
    why: str
    cases: tuple[str, ...]

    @property
    def named(self) -> str:
        """The ids of the cases, at most `MAX_NAMED`."""
        more = f" and {len(self.cases) - MAX_NAMED} more" if len(self.cases) > MAX_NAMED else ""
        return ", ".join(self.cases[:MAX_NAMED]) + more


def list_not_scored(scores: Sequence[CaseScores], facts: Mapping[str, str]) -> list[NotScored]:
    """What was not scored for all cases, by the facts of the report, then for some; reasons without a case are left
    out."""
    names, _, reason = facts.get(Report.NOT_SCORED, "").partition(": ")
    left_out = [name for name in STRUCTURES if reason and name in names.split(" and ")]
    rows = [NotScored(_everything(structure), reason, ()) for structure in left_out]
    for structure in STRUCTURES:
        if structure not in left_out:
            rows += _row(scores, _everything(structure), f"the reference {structure} is unknown", _unknown(structure))
    rows += _row(
        scores,
        "Liver Dice",
        "neither reference nor prediction has a liver",
        lambda case: case.liver.both_empty,
    )
    rows += _row(
        scores,
        "Liver Dice above 0",
        "the reference has no liver, so that any predicted liver scores 0",
        lambda case: case.liver.known and not case.liver.present and not case.liver.both_empty,
    )
    rows += _row(
        scores,
        "Volumes, distances and lesion sizes",
        "the voxel size is nominal, so that lengths mean nothing",
        lambda case: not case.distances_known,
    )
    rows += _row(
        scores,
        "Tumour Dice",
        "an expert found no tumour; tumours predicted in these cases count as false positives",
        lambda case: case.tumour_free,
    )
    rows += _row(
        scores,
        "Tumour burden",
        "reference or prediction has no liver",
        lambda case: case.liver.known and case.tumour.known and case.burden_error is None,
    )
    return rows


def _everything(structure: str) -> str:
    return "Everything about the liver" if structure == "liver" else "Everything about tumours and lesions"


def _unknown(structure: str) -> Callable[[CaseScores], bool]:
    return lambda case: not getattr(case, structure).known


def _row(scores: Sequence[CaseScores], what: str, why: str, applies: Callable[[CaseScores], bool]) -> list[NotScored]:
    cases = tuple(sorted(case.identity.case_id for case in scores if applies(case)))
    return [NotScored(what, why, cases)] if cases else []
