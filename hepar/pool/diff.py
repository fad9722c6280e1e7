"""The difference between two pools: cases added, removed, relabelled or changed, with Dice of old and new targets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace

import pandas as pd

from hepar.cases import LabelState
from hepar.evaluation.overlap import dice
from hepar.imaging.grid_rules import size_text
from hepar.pool.table import COLUMNS, Pool, PoolEntry, entry_row

ADDED, REMOVED, RELABELLED, CHANGED = "added", "removed", "relabelled", "changed"
LABEL_COLUMNS = (  # a case is relabelled if one of these differs
    "liver_state",
    "tumour_state",
    "liver_weight",
    "tumour_weight",
    "liver_mask_sha256",
    "tumour_mask_sha256",
    "gate",
    "review",
)
DERIVED_COLUMNS = (  # these follow from the arrays, whose hash is compared, or say where they are
    *("case_id", "modality", "liver_ml", "tumour_ml", "known_share", "lesion_diameters_mm", "image_sha256"),
    *("folder", "sha256", "key"),
)
METADATA_COLUMNS = tuple(name for name in COLUMNS if name not in (*LABEL_COLUMNS, *DERIVED_COLUMNS))


@dataclass(frozen=True)
class EntryDiff:
    """One case that differs between two pools.

    A case is relabelled if the label of its liver or tumour differs, and changed if only its arrays or metadata do.
    Dice are of old and new targets; None if the grids differ, a label is unknown, or both targets are empty.
    """

    case_id: str
    change: str
    details: str
    liver_dice: float | None = None
    tumour_dice: float | None = None


def differing_entries(old: Pool, new: Pool) -> list[tuple[PoolEntry, PoolEntry]]:
    """Old and new entry of each case that is in both pools but differs."""
    old_entries = {entry.case_id: entry for entry in old.entries}
    both = ((old_entries[entry.case_id], entry) for entry in new.entries if entry.case_id in old_entries)
    return [(before, after) for before, after in both if _compared_values(before) != _compared_values(after)]


def diff_pools(old: Pool, new: Pool) -> list[EntryDiff]:
    """All differences, ordered by case. Needs the arrays of `differing_entries` on disk."""
    old_ids, new_ids = ({entry.case_id for entry in pool.entries} for pool in (old, new))
    diffs = [EntryDiff(e.case_id, ADDED, _summary(e)) for e in new.entries if e.case_id not in old_ids]
    diffs += [EntryDiff(e.case_id, REMOVED, _summary(e)) for e in old.entries if e.case_id not in new_ids]
    diffs += [_diff_entry(old, new, before, after) for before, after in differing_entries(old, new)]
    return sorted(diffs, key=lambda diff: diff.case_id)


def diff_frame(diffs: Iterable[EntryDiff]) -> pd.DataFrame:
    """One row per difference."""
    return pd.DataFrame([asdict(diff) for diff in diffs], columns=[item.name for item in fields(EntryDiff)])


def _compared_values(entry: PoolEntry) -> tuple[object, ...]:
    row = entry_row(entry)
    return tuple(row[column] for column in ("sha256", *LABEL_COLUMNS, *METADATA_COLUMNS))


def _summary(entry: PoolEntry) -> str:
    return f"{entry.modality}, liver {entry.liver.state}, tumour {entry.tumour.state}, {entry.split}"


def _diff_entry(old: Pool, new: Pool, before: PoolEntry, after: PoolEntry) -> EntryDiff:
    old_row, new_row = entry_row(before), entry_row(after)
    labels = [column for column in LABEL_COLUMNS if old_row[column] != new_row[column]]
    metadata = [column for column in METADATA_COLUMNS if old_row[column] != new_row[column]]
    details = [f"{name} {_format(old_row[name])} → {_format(new_row[name])}" for name in (*labels, *metadata)]
    change = RELABELLED if labels else CHANGED
    old_arrays, new_arrays = old.arrays(before), new.arrays(after)
    old_shape, new_shape = old_arrays.image_zyx.shape, new_arrays.image_zyx.shape
    if old_shape != new_shape:
        details.append(f"grid {size_text(old_shape)} → {size_text(new_shape)}")
        return EntryDiff(before.case_id, change, ", ".join(details))
    diff = EntryDiff(before.case_id, change, ", ".join(details) or "arrays")
    if LabelState.UNKNOWN not in (before.liver.state, after.liver.state):
        diff = replace(diff, liver_dice=dice(old_arrays.liver_zyx > 0, new_arrays.liver_zyx > 0))
    if LabelState.UNKNOWN not in (before.tumour.state, after.tumour.state):
        diff = replace(diff, tumour_dice=dice(old_arrays.tumour_zyx > 0, new_arrays.tumour_zyx > 0))
    return diff


def _format(value: object) -> str:
    """A value of the table for people: weights with two decimals, hashes by their first eight digits."""
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return text[:8] if len(text) == 64 else text or "none"
