"""What changed from one pool to another: cases added, removed and relabelled, with how alike old and new masks are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import pandas as pd

from hepar.cases import LabelState
from hepar.evaluation.overlap import dice
from hepar.pool.table import Pool, PoolEntry

ADDED, REMOVED, RELABELLED, CHANGED = "added", "removed", "relabelled", "changed"
LABELS = (
    "liver_state",
    "tumour_state",
    "liver_weight",
    "tumour_weight",
    "liver_origin",
    "tumour_origin",
    "gate",
    "review",
)
# what is said of a case beside its labels
ORIGINS = ("split", "patient_id", "source", "sequence", "licence", "teacher", "reasons")


@dataclass(frozen=True)
class Change:
    """One case that is not the same in both pools. Dice are of old and new targets; None where they are not compared.

    A case is relabelled where the label of liver or tumour is another, and changed where only its arrays or what is
    said of it are, as with another plan, split or teacher. Where one of two labels is unknown they have no Dice.
    """

    case_id: str
    change: str
    what: str
    liver_dice: float | None = None
    tumour_dice: float | None = None


def pairs(old: Pool, new: Pool) -> list[tuple[PoolEntry, PoolEntry]]:
    """Cases in both pools that differ, whose arrays have to be compared."""
    before = {entry.case_id: entry for entry in old.entries}
    both = ((before[entry.case_id], entry) for entry in new.entries if entry.case_id in before)
    return [(a, b) for a, b in both if _facts(a) != _facts(b)]


def changes(old: Pool, new: Pool) -> list[Change]:
    """What changed, ordered by case; the arrays of `pairs` have to be there."""
    ids = [{entry.case_id for entry in pool.entries} for pool in (old, new)]
    found = [Change(e.case_id, ADDED, _in_words(e)) for e in new.entries if e.case_id not in ids[0]]
    found += [Change(e.case_id, REMOVED, _in_words(e)) for e in old.entries if e.case_id not in ids[1]]
    found += [_compare(old, new, a, b) for a, b in pairs(old, new)]
    return sorted(found, key=lambda change: change.case_id)


def changes_frame(found: Iterable[Change]) -> pd.DataFrame:
    """One row a change."""
    return pd.DataFrame([asdict(change) for change in found], columns=[*Change.__dataclass_fields__])


def _facts(entry: PoolEntry) -> tuple[object, ...]:
    return tuple(getattr(entry, name) for name in ("sha256", *LABELS, *ORIGINS))


def _in_words(entry: PoolEntry) -> str:
    return f"{entry.modality}, liver {entry.liver_state}, tumour {entry.tumour_state}, {entry.split}"


def _compare(old: Pool, new: Pool, a: PoolEntry, b: PoolEntry) -> Change:
    relabelled = [name for name in LABELS if getattr(a, name) != getattr(b, name)]
    other = [name for name in ORIGINS if getattr(a, name) != getattr(b, name)]
    words = [f"{name} {_short(getattr(a, name))} → {_short(getattr(b, name))}" for name in (*relabelled, *other)]
    before, after = old.arrays(a), new.arrays(b)
    if before.image.shape != after.image.shape:
        words.append(f"grid {_times(before.image.shape)} → {_times(after.image.shape)}")
        return Change(a.case_id, RELABELLED if relabelled else CHANGED, ", ".join(words))
    if not words:
        words.append("arrays")
    change = Change(a.case_id, RELABELLED if relabelled else CHANGED, ", ".join(words))
    if LabelState.UNKNOWN not in (a.liver_state, b.liver_state):
        change = replace(change, liver_dice=dice(before.liver > 0, after.liver > 0))
    if LabelState.UNKNOWN not in (a.tumour_state, b.tumour_state):
        change = replace(change, tumour_dice=dice(before.tumour > 0, after.tumour > 0))
    return change


def _short(value: object) -> str:
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return text[:8] if len(text) == 64 else text or "none"  # a hash


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
