"""Comparison of two predictions of one patient: matched lesions, their change, and a response category as an aid.

Lesions are matched after a rigid registration of the livers. The category follows RECIST 1.1 (Eisenhauer et al., Eur J
Cancer 2009) for the liver alone, as far as two scans can tell: it knows no other organ, no clinical finding and no scan
in between, and a reader has to confirm it. What became of a lesion that the other scan does not cover is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from hepar.cases import LIVER, TUMOUR
from hepar.errors import DataError
from hepar.evaluation.research_use import RESEARCH_USE
from hepar.imaging.masks import Mask, dilate, enlarged, label_components
from hepar.imaging.volumes import Geometry, to_array, to_image
from hepar.prediction.alignment import Alignment, align_livers
from hepar.prediction.folder import PredictionFolder
from hepar.prediction.out_of_distribution import FIELD_OF_VIEW

if TYPE_CHECKING:
    import pandas as pd

MATCHED_WITHIN_MM = 10.0  # between the surfaces of two lesions after registration, which breathing leaves
MIN_TARGET_MM = 10.0  # longest diameter of a measurable lesion
MAX_TARGETS = 2  # of an organ
SHRINKAGE, GROWTH, MIN_GROWTH_MM = 0.30, 0.20, 5.0  # partial response, progression
SCHEMA = 2
Labels = npt.NDArray[np.int32]


class Fate(StrEnum):
    """What became of a lesion."""

    MATCHED = "matched"
    NEW = "new"
    VANISHED = "vanished"
    MERGED = "merged"  # with a lesion that another one became too
    SPLIT = "split"  # from a lesion that became another one too
    OUTSIDE = "outside"  # wholly or partly outside the other scan's field of view, so nobody knows


@dataclass(frozen=True)
class Outside:
    """How far a lesion lies outside the other scan.

    `may_be` also holds for a lesion near the edge of a scan that cuts the liver, beyond which a counterpart may lie.
    """

    percent: float
    may_be: bool


@dataclass(frozen=True)
class OutsideEach:
    """The lesions of the baseline outside the follow-up's scan, and the reverse, by number; all others lie inside."""

    baseline: Mapping[int, Outside] = field(default_factory=dict)
    follow_up: Mapping[int, Outside] = field(default_factory=dict)


INSIDE, EVERYTHING_INSIDE = Outside(0.0, False), OutsideEach()


@dataclass(frozen=True)
class FollowedLesion:
    """A lesion in both scans or in one: its number and longest diameter there, None where it is not.

    `merged_into` is the number of the lesion at follow-up that a merged one became, `split_from` that of the lesion at
    baseline that a split one came from; the nearest by centroids if there are several. `baseline_outside_percent` is
    how much of the lesion of the baseline lies outside the follow-up's scan, `follow_up_outside_percent` the reverse.
    """

    fate: Fate
    baseline: int | None
    follow_up: int | None
    baseline_mm: float | None
    follow_up_mm: float | None
    is_target: bool
    merged_into: int | None = None
    split_from: int | None = None
    baseline_outside_percent: float | None = None
    follow_up_outside_percent: float | None = None

    @property
    def change_percent(self) -> float | None:
        """Change of the longest diameter; None unless it is whole in both scans."""
        if self.fate == Fate.OUTSIDE or self.baseline_mm is None or self.follow_up_mm is None:
            return None
        return 100 * (self.follow_up_mm / self.baseline_mm - 1)


@dataclass(frozen=True)
class Response:
    """The category, CR, PR, SD, PD, or NE if it cannot be evaluated, and its reasons.

    Sums are those of the longest diameters of the target lesions; a vanished one counts 0. The sum at follow-up is
    None if a target lies wholly or partly outside either scan.
    """

    category: str
    reasons: tuple[str, ...]
    baseline_sum_mm: float
    follow_up_sum_mm: float | None

    @property
    def change_percent(self) -> float | None:
        """Change of the sum; None without a target lesion or without both sums."""
        if self.follow_up_sum_mm is None or not self.baseline_sum_mm:
            return None
        return 100 * (self.follow_up_sum_mm / self.baseline_sum_mm - 1)


@dataclass(frozen=True)
class FollowUp:
    """Two scans of a patient compared."""

    lesions: tuple[FollowedLesion, ...]
    response: Response
    alignment: Alignment
    volumes_ml: Mapping[str, tuple[float | None, float | None]]
    warnings: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """A row a lesion."""
        return [
            {
                **asdict(lesion),
                "fate": str(lesion.fate),
                "baseline_outside_percent": _round(lesion.baseline_outside_percent),
                "follow_up_outside_percent": _round(lesion.follow_up_outside_percent),
                "change_percent": _round(lesion.change_percent),
            }
            for lesion in self.lesions
        ]

    def table(self) -> pd.DataFrame:
        """The rows as a table that says what it is for; all columns also without a lesion, lesion numbers as Int64."""
        import pandas as pd

        columns = [*(field.name for field in fields(FollowedLesion)), "change_percent", "use"]
        table = pd.DataFrame([{**row, "use": RESEARCH_USE} for row in self.rows()], columns=columns)
        return table.astype(dict.fromkeys(("baseline", "follow_up", "merged_into", "split_from"), "Int64"))

    def as_json(self) -> dict[str, Any]:
        """Everything by name."""
        response = self.response
        return {
            "schema": SCHEMA,
            "use": RESEARCH_USE,
            "response": {
                "category": response.category,
                "aid_only": "RECIST 1.1 for the liver alone, from two scans: a reader has to confirm it",
                "reasons": list(response.reasons),
                "baseline_sum_mm": round(response.baseline_sum_mm, 1),
                "follow_up_sum_mm": _round(response.follow_up_sum_mm),
                "change_percent": _round(response.change_percent),
            },
            "volumes_ml": {name: list(pair) for name, pair in self.volumes_ml.items()},
            "lesions": self.rows(),
            "alignment": {
                "liver_dice": round(self.alignment.liver_dice, 3),
                "baseline_covered": round(self.alignment.baseline_covered, 3),
                "follow_up_covered": round(self.alignment.follow_up_covered, 3),
                "rotation_degrees": round(self.alignment.rotation_degrees, 1),
                "shift_mm": round(self.alignment.shift_mm, 1),
            },
            "warnings": list(self.warnings),
        }


def follow(baseline: PredictionFolder, follow_up: PredictionFolder, nadir_mm: float | None = None) -> FollowUp:
    """Compare two predictions of one patient. Where the livers align badly the category is NE.

    `nadir_mm` is the smallest sum of diameters so far, by default that of the baseline. Raises ArtifactError if a
    folder lacks masks or measurements, DataError if a liver is missing, the modalities differ or the nadir is above the
    sum of the baseline.
    """
    before, after = baseline.load_measurements(), follow_up.load_measurements()
    modalities = before["scan"]["modality"], after["scan"]["modality"]
    if modalities[0] != modalities[1]:
        raise DataError(f"the baseline is {modalities[0]}, but the follow-up is {modalities[1]}")
    baseline_mm = _diameters_mm(before)
    if nadir_mm is not None:
        _check_nadir(nadir_mm, sum(baseline_mm[number] for number in choose_targets(baseline_mm)))
    alignment = align_livers(baseline.load_mask(LIVER), follow_up.load_mask(LIVER))
    tumours = baseline.load_mask(TUMOUR), follow_up.load_mask(TUMOUR)
    lesions = match_lesions(
        _near_pairs_of(*tumours, alignment),
        baseline_mm,
        _diameters_mm(after),
        _outside_each(*tumours, alignment, cut=(_cuts_liver(before), _cuts_liver(after))),
    )
    volumes = {name: (before["measurements"][name], after["measurements"][name]) for name in ("liver_ml", "tumour_ml")}
    response = respond(lesions, nadir_mm)
    if alignment.doubt:
        response = replace(response, category="NE", reasons=(alignment.doubt, *response.reasons))
    return FollowUp(lesions, response, alignment, volumes, _warnings(before, after, alignment, lesions))


def _warnings(
    before: Mapping[str, Any], after: Mapping[str, Any], alignment: Alignment, lesions: Sequence[FollowedLesion]
) -> tuple[str, ...]:
    """The warnings of both scans, those that they share once, and those of the alignment and of lesions outside."""
    first, second = ([warning["message"] for warning in measured["warnings"]] for measured in (before, after))
    warnings = [f"both scans: {message}" for message in first if message in second]
    warnings += [f"baseline: {message}" for message in first if message not in second]
    warnings += [f"follow-up: {message}" for message in second if message not in first]
    if alignment.doubt:
        warnings.append(f"{alignment.doubt}; lesions may be matched wrongly")
    if outside := sum(lesion.fate == Fate.OUTSIDE for lesion in lesions):
        warnings.append(f"outside the field of view of the other scan, wholly or partly: {_lesions(outside)}")
    return tuple(warnings)


def _lesions(count: int) -> str:
    return "1 lesion" if count == 1 else f"{count} lesions"


def _cuts_liver(measured: Mapping[str, Any]) -> bool:
    """Whether the prediction warns that the liver goes on beyond the scan."""
    return any(warning["rule"] == FIELD_OF_VIEW for warning in measured["warnings"])


def _near_pairs_of(baseline: sitk.Image, follow_up: sitk.Image, alignment: Alignment) -> dict[tuple[int, int], float]:
    """The near pairs of two tumour masks, also where the lesion of the baseline lies just outside the follow-up."""
    margin = [math.ceil(MATCHED_WITHIN_MM / mm) + 1 for mm in follow_up.GetSpacing()]
    tumour = sitk.ConstantPad(follow_up, margin, margin, 0)
    labels_zyx, _ = label_components(to_array(tumour) > 0)
    moved = alignment.to_follow_up(_labelled(baseline), tumour)
    return near_pairs(to_array(moved), labels_zyx, Geometry.of(tumour).spacing_zyx_mm)


def _outside_each(
    baseline: sitk.Image, follow_up: sitk.Image, alignment: Alignment, cut: tuple[bool, bool]
) -> OutsideEach:
    """The lesions of two tumour masks outside the other scan; `cut` says which scans cut the liver, baseline first."""
    in_follow_up_zyx, in_baseline_zyx = alignment.covered(baseline, follow_up)
    return OutsideEach(
        _outside(baseline, in_follow_up_zyx, near_edge=cut[1]), _outside(follow_up, in_baseline_zyx, near_edge=cut[0])
    )


def _outside(tumour: sitk.Image, covered_zyx: Mask, near_edge: bool) -> dict[int, Outside]:
    spacing_zyx_mm = Geometry.of(tumour).spacing_zyx_mm
    labels_zyx, _ = label_components(to_array(tumour) > 0)
    return outside_lesions(labels_zyx, covered_zyx, spacing_zyx_mm, near_edge)


def outside_lesions(
    labels_zyx: Labels, covered_zyx: Mask, spacing_zyx_mm: tuple[float, float, float], near_edge: bool
) -> dict[int, Outside]:
    """How far each lesion lies outside the voxels that the other scan covers, by label; {} without a lesion.

    With `near_edge` a lesion may be outside unless all within `MATCHED_WITHIN_MM` of it is covered.
    """
    found = {}
    for number, box in enumerate(ndimage.find_objects(labels_zyx), start=1):
        around = enlarged(box, spacing_zyx_mm, MATCHED_WITHIN_MM)
        lesion_zyx, inside_zyx = labels_zyx[around] == number, covered_zyx[around]
        percent = 100 * (1 - float(inside_zyx[lesion_zyx].mean()))
        near_zyx = dilate(lesion_zyx, spacing_zyx_mm, MATCHED_WITHIN_MM) if near_edge else lesion_zyx
        found[number] = Outside(percent, not inside_zyx[near_zyx].all())
    return found


def _diameters_mm(measured: Mapping[str, Any]) -> dict[int, float]:
    return {lesion["number"]: lesion["longest_diameter_mm"] for lesion in measured["lesions"]}


def _labelled(mask: sitk.Image) -> sitk.Image:
    labels_zyx, _ = label_components(to_array(mask) > 0)
    return to_image(labels_zyx, Geometry.of(mask))


def near_pairs(
    baseline_zyx: Labels, follow_up_zyx: Labels, spacing_zyx_mm: tuple[float, float, float]
) -> dict[tuple[int, int], float]:
    """The pairs of lesions, by their labels on one grid, at most `MATCHED_WITHIN_MM` apart, with the distance between
    their centroids in mm."""
    numbers = np.unique(baseline_zyx[baseline_zyx > 0]).tolist()
    centres_n3 = ndimage.center_of_mass(baseline_zyx > 0, baseline_zyx, numbers)
    centre_of = dict(zip(numbers, np.array(centres_n3), strict=True))
    pairs: dict[tuple[int, int], float] = {}
    for number, box in enumerate(ndimage.find_objects(follow_up_zyx), start=1):
        around = enlarged(box, spacing_zyx_mm, MATCHED_WITHIN_MM)
        lesion_zyx = follow_up_zyx[around] == number
        near_zyx = dilate(lesion_zyx, spacing_zyx_mm, MATCHED_WITHIN_MM)
        centre_zyx = np.array(ndimage.center_of_mass(lesion_zyx)) + [part.start for part in around]
        for other in np.unique(baseline_zyx[around][near_zyx]).tolist():
            if other:
                apart_mm = (centre_zyx - centre_of[other]) * spacing_zyx_mm
                pairs[other, number] = float(np.linalg.norm(apart_mm))
    return pairs


def match_lesions(
    near: Mapping[tuple[int, int], float],
    baseline_mm: Mapping[int, float],
    follow_up_mm: Mapping[int, float],
    outside: OutsideEach = EVERYTHING_INSIDE,
) -> tuple[FollowedLesion, ...]:
    """Pair near lesions one to one, as many as possible and then by the smallest sum of distances.

    A lesion left over beside one that is paired was merged into it or split from it; any other is vanished or new. A
    lesion outside the other scan, or whose partner is, has that fate, whichever it would have had.
    """
    paired = _assign(near)
    targets = choose_targets(baseline_mm)
    lesions = []
    for number, size_mm in baseline_mm.items():
        other = paired.get(number)
        into = None if other else _nearest({second: mm for (first, second), mm in near.items() if first == number})
        fate = Fate.MATCHED if other else Fate.MERGED if into else Fate.VANISHED
        after_mm = follow_up_mm[other] if other else None
        beyond = outside.baseline.get(number, INSIDE)
        beyond_after = outside.follow_up.get(other, INSIDE) if other else None
        lesions.append(
            FollowedLesion(
                _fate_if(fate, beyond, beyond_after),
                number,
                other,
                size_mm,
                after_mm,
                number in targets,
                merged_into=into,
                baseline_outside_percent=beyond.percent,
                follow_up_outside_percent=beyond_after.percent if beyond_after else None,
            )
        )
    for number, size_mm in follow_up_mm.items():
        if number not in paired.values():
            origin = _nearest({first: mm for (first, second), mm in near.items() if second == number})
            beyond = outside.follow_up.get(number, INSIDE)
            fate = _fate_if(Fate.SPLIT if origin else Fate.NEW, beyond)
            lesions.append(
                FollowedLesion(
                    fate,
                    None,
                    number,
                    None,
                    size_mm,
                    False,
                    split_from=origin,
                    follow_up_outside_percent=beyond.percent,
                )
            )
    return tuple(lesions)


def _fate_if(fate: Fate, beyond: Outside, partner: Outside | None = None) -> Fate:
    """The fate of a lesion, given how far it and its partner lie outside the other scan."""
    if beyond.percent > 0 or (partner and partner.percent > 0):
        return Fate.OUTSIDE
    return Fate.OUTSIDE if beyond.may_be and fate in (Fate.NEW, Fate.VANISHED) else fate


def _nearest(distances_mm: Mapping[int, float]) -> int | None:
    """The lesion at the smallest distance, the first of equal ones; None if there is none."""
    return min(distances_mm, key=lambda number: (distances_mm[number], number), default=None)


def _assign(near: Mapping[tuple[int, int], float]) -> dict[int, int]:
    if not near:
        return {}
    firsts, seconds = sorted({a for a, _ in near}), sorted({b for _, b in near})
    far_mm = 1e6  # more than all distances together, so that a pair that is not near is taken only for want of another
    costs = np.array([[near.get((a, b), far_mm) for b in seconds] for a in firsts])
    rows, columns = linear_sum_assignment(costs)
    chosen = ((firsts[row], seconds[column]) for row, column in zip(rows.tolist(), columns.tolist(), strict=True))
    return {first: second for first, second in chosen if (first, second) in near}


def choose_targets(baseline_mm: Mapping[int, float]) -> tuple[int, ...]:
    """The largest measurable lesions of the baseline, at most `MAX_TARGETS`; the first of equal ones."""
    measurable = [number for number, size_mm in baseline_mm.items() if size_mm >= MIN_TARGET_MM]
    return tuple(sorted(measurable, key=lambda number: -baseline_mm[number])[:MAX_TARGETS])


def _check_nadir(nadir_mm: float, baseline_mm: float) -> None:
    """Raise DataError if the nadir is above the sum of diameters of the baseline, at the tenths that pages show."""
    if round(nadir_mm, 1) > round(baseline_mm, 1):
        raise DataError(
            f"the smallest sum of diameters so far is given as {nadir_mm:g} mm but must be at most"
            f" {baseline_mm:.1f} mm, that of the baseline"
        )


def respond(lesions: Sequence[FollowedLesion], nadir_mm: float | None = None) -> Response:
    """The category of RECIST 1.1 for the lesions of the liver; progression counts from the nadir.

    A target that was merged into another lesion has no diameter of its own, so the category is NE. Not evaluable, too,
    is a baseline without a measurable lesion, unless a lesion is new: that is progression. So is what a lesion outside
    one of the scans could change; what is seen of a target there is the least that it may have.
    """
    targets = [lesion for lesion in lesions if lesion.is_target]
    before_mm = float(sum(lesion.baseline_mm or 0.0 for lesion in targets))
    least_mm = float(sum(lesion.follow_up_mm or 0.0 for lesion in targets))
    category, reasons = _category(lesions, targets, before_mm, least_mm, before_mm if nadir_mm is None else nadir_mm)
    is_known = all(lesion.fate != Fate.OUTSIDE for lesion in targets)
    return Response(category, reasons, before_mm, least_mm if is_known else None)


def _category(
    lesions: Sequence[FollowedLesion],
    targets: Sequence[FollowedLesion],
    before_mm: float,
    after_mm: float,
    nadir_mm: float,
) -> tuple[str, tuple[str, ...]]:
    new = sum(lesion.fate == Fate.NEW for lesion in lesions)
    if new:
        return "PD", (f"{new} new lesion{'s' if new > 1 else ''}, which a reader has to confirm",)
    if not targets:
        return "NE", (f"no lesion of the baseline has {MIN_TARGET_MM:g} mm or more",)
    if any(lesion.merged_into is not None for lesion in targets):
        return "NE", ("a target lesion has merged with another one",)
    if any(lesion.follow_up_outside_percent for lesion in targets):
        return "NE", ("a target lesion lies partly outside the field of view of the baseline",)
    growth_mm = after_mm - nadir_mm
    if growth_mm >= max(GROWTH * nadir_mm, MIN_GROWTH_MM):
        least = "at least " if any(lesion.fate == Fate.OUTSIDE for lesion in targets) else ""
        return "PD", (f"the sum of diameters grew by {least}{growth_mm:.1f} mm from {nadir_mm:.1f} mm",)
    if unknown := _why_unknown(lesions):
        return "NE", (unknown,)
    if all(lesion.fate == Fate.VANISHED for lesion in lesions):
        return "CR", ("all lesions have vanished",)
    if after_mm <= (1 - SHRINKAGE) * before_mm:
        return "PR", (f"the sum of diameters fell from {before_mm:.1f} to {after_mm:.1f} mm",)
    return "SD", (f"the sum of diameters went from {before_mm:.1f} to {after_mm:.1f} mm",)


def _why_unknown(lesions: Sequence[FollowedLesion]) -> str:
    """Which lesion outside one of the scans could change a category other than PD; empty if none could."""
    outside = [lesion for lesion in lesions if lesion.fate == Fate.OUTSIDE]
    if any(lesion.is_target for lesion in outside):
        return "a target lesion lies wholly or partly outside the field of view of the follow-up"
    if any(lesion.baseline is None for lesion in outside):
        return "a lesion of the follow-up lies outside the field of view of the baseline, so it may be new"
    if outside and all(lesion.follow_up is None and lesion.fate in (Fate.OUTSIDE, Fate.VANISHED) for lesion in lesions):
        return "all lesions have vanished but those outside the field of view of the follow-up"
    return ""


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
