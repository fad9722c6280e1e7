"""The mixed-label pool: for every voxel of every case, what is known about liver and tumour, and how far.

Two nested structures: L, the whole liver including tumour, and T, tumour. `y` is the target, `m` in 0..1 says how far
it is known. A pool is a table (`pool.parquet`), the plan, and a folder of prepared arrays a case (`image.b2nd` and
`labels.b2nd` in `cases/<case>`), in chunks, so that a patch is read without the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from hepar.runtime.artifacts import write_json
from hepar.cases import LabelState, Modality, Split
from hepar.runtime.chunked import Sliceable, open_chunked, read_facts, write_chunked
from hepar.errors import ArtifactError
from hepar.imaging.masks import Mask, dilate, fill_holes
from hepar.imaging.preprocessing import PreprocessingPlan

UnknownTumour = Literal["masked", "ignored", "background"]
FULL = 255  # weight 1 as stored
TABLE = "pool.parquet"
PLAN = "plan.json"
IMAGE, LABELS = "image.b2nd", "labels.b2nd"


@dataclass(frozen=True)
class Targets:
    """What a case teaches: `liver` and `tumour` are bool zyx, the weights uint8 zyx, 0 unknown to 255 fully known."""

    liver: Mask
    tumour: Mask
    liver_weight: npt.NDArray[np.uint8]
    tumour_weight: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class KnownLabels:
    """The masks of a case on the plan's grid. `liver` is the manual or pseudo mask, None where there is neither.

    `weight` is the trust in a pseudo-liver; `uncertain` marks its doubtful boundary.
    """

    liver_state: LabelState
    tumour_state: LabelState
    liver: Mask | None
    tumour: Mask | None
    weight: float = 1.0
    uncertain: Mask | None = None


def make_targets(
    known: KnownLabels,
    shape_zyx: tuple[int, int, int],
    spacing_zyx_mm: tuple[float, float, float],
    unknown_tumour: UnknownTumour,
    margin_mm: float,
) -> Targets:
    """Targets and weights of a case, by the rules of the mixed-label pool (docs/mixed-labels.md).

    Without any liver mask L is unknown everywhere. A tumour that is unknown is still known to be absent outside the
    liver dilated by `margin_mm`, as far as that liver is trusted (`masked`); with `ignored` it is unknown everywhere,
    with `background` it is taken for absent, which is the mistake that the other two avoid.
    """
    tumour = np.zeros(shape_zyx, bool) if known.tumour is None else known.tumour
    if known.liver is None:
        liver = tumour.copy()
        liver_weight = np.zeros(shape_zyx, np.uint8)
    elif known.liver_state == LabelState.MANUAL:
        liver = known.liver | tumour
        liver_weight = np.full(shape_zyx, FULL, np.uint8)
    else:
        liver = fill_holes(known.liver | tumour)
        liver_weight = np.full(shape_zyx, round(known.weight * FULL), np.uint8)
        if known.uncertain is not None:
            liver_weight[known.uncertain] = 0
        liver_weight[tumour] = FULL

    if known.tumour_state in (LabelState.MANUAL, LabelState.ABSENT) or unknown_tumour == "background":
        tumour_weight = np.full(shape_zyx, FULL, np.uint8)
    else:
        tumour_weight = np.zeros(shape_zyx, np.uint8)
        if known.liver is not None and unknown_tumour == "masked":
            far = ~dilate(liver, spacing_zyx_mm, margin_mm)
            tumour_weight[far] = FULL if known.liver_state == LabelState.MANUAL else round(known.weight * FULL)
    return Targets(liver, tumour, liver_weight, tumour_weight)


@dataclass(frozen=True)
class PoolEntry:
    """One case of a pool: what is known of it, how, and from where.

    Volumes count what is labelled; lesion diameters are those of equal volume, ascending. Origins are the hashes of the
    mask files that were taken, empty where there is none.
    """

    case_id: str
    patient_id: str
    source: str
    modality: Modality
    sequence: str
    split: Split
    group: str  # cases of a group share what sampling gives to it
    liver_state: LabelState
    tumour_state: LabelState
    liver_weight: float  # how far the liver's label is trusted: 1 for a manual one, 0 for none
    tumour_weight: float  # likewise; of an unknown tumour, how far its absence outside the liver is
    liver_origin: str
    tumour_origin: str
    teacher: str  # the hash of the model that drew a pseudo-liver
    gate: str  # what the gates, or a person, said of it
    reasons: str
    review: str  # who decided what, and when
    liver_ml: float
    tumour_ml: float
    known_share: float  # of all voxels and both structures, weighted; 0 teaches nothing
    lesion_diameters_mm: tuple[float, ...]
    licence: str
    image_sha256: str
    file: str  # the folder of its arrays
    sha256: str  # of its arrays
    key: str  # of all that its arrays were made from


@dataclass(frozen=True)
class PreprocessedArrays:
    """The arrays of one case, in memory or on disk: `image` float16 zyx, `code` uint8 zyx.

    A code is a row of `palette`, uint8 n x 4: liver, tumour, weight of the liver, weight of the tumour; few of their
    combinations occur in a case. `darkest` is the image's lowest value.
    """

    image: Sliceable
    code: Sliceable
    palette: npt.NDArray[np.uint8]
    darkest: float

    @classmethod
    def of(cls, image: npt.NDArray[np.float32], targets: Targets) -> PreprocessedArrays:
        """The arrays as they are stored. Raises ValueError where more than 256 combinations occur."""
        columns = (targets.liver, targets.tumour, targets.liver_weight, targets.tumour_weight)
        shifts = (24, 16, 8, 0)
        joined = sum(column.astype(np.uint32) << shift for column, shift in zip(columns, shifts, strict=True))
        values, code = np.unique(np.asarray(joined), return_inverse=True)
        if len(values) > 256:
            raise ValueError(f"{len(values)} combinations of labels and weights in one case, at most 256 can be stored")
        palette = np.stack([(values >> shift & 255).astype(np.uint8) for shift in shifts], axis=1)
        stored = image.astype(np.float16)
        return cls(stored, code.reshape(image.shape).astype(np.uint8), palette, float(stored.min()))

    @classmethod
    def open(cls, folder: Path) -> PreprocessedArrays:
        """The arrays on disk, of which a slice reads only its chunks. Raises ArtifactError where they are missing."""
        image, code = open_chunked(folder / IMAGE), open_chunked(folder / LABELS)
        return cls(image, code, np.array(read_facts(code)["palette"], np.uint8), read_facts(image)["darkest"])

    def save(self, folder: Path) -> None:
        """Write the arrays."""
        write_chunked(folder / IMAGE, np.asarray(self.image[:]), darkest=self.darkest)
        write_chunked(folder / LABELS, np.asarray(self.code[:]), palette=self.palette.tolist())

    def loaded(self) -> PreprocessedArrays:
        """The arrays in memory."""
        return PreprocessedArrays(np.asarray(self.image[:]), np.asarray(self.code[:]), self.palette, self.darkest)

    @property
    def liver(self) -> npt.NDArray[np.uint8]:
        return self.palette[:, 0].take(np.asarray(self.code[:]))

    @property
    def tumour(self) -> npt.NDArray[np.uint8]:
        return self.palette[:, 1].take(np.asarray(self.code[:]))

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return 3 * int(np.prod(self.image.shape))


@dataclass(frozen=True)
class Pool:
    """A pool on disk: its folder, plan and entries, ordered by case."""

    folder: Path
    plan: PreprocessingPlan
    entries: tuple[PoolEntry, ...]

    def arrays(self, entry: PoolEntry) -> PreprocessedArrays:
        """The prepared arrays of one case, on disk."""
        return PreprocessedArrays.open(self.folder / entry.file)

    def select(self, split: Split, also_unknown: bool = False) -> tuple[PoolEntry, ...]:
        """The entries of a split of which anything is known, or all of them."""
        return tuple(
            entry for entry in self.entries if entry.split == split and (also_unknown or entry.known_share > 0)
        )

    def save(self) -> None:
        """Write table and plan; the same entries give the same bytes."""
        rows = [asdict(entry) for entry in sorted(self.entries, key=lambda entry: entry.case_id)]
        for row in rows:
            row.update({name: str(row[name]) for name in ("modality", "split", "liver_state", "tumour_state")})
            row["lesion_diameters_mm"] = list(row["lesion_diameters_mm"])
        columns = [item.name for item in fields(PoolEntry)]
        pd.DataFrame(rows, columns=columns).to_parquet(self.folder / TABLE, index=False)
        write_json(self.folder / PLAN, self.plan.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> Pool:
        """Read a pool. Raises ArtifactError where it is incomplete or damaged."""
        if not (folder / TABLE).is_file() or not (folder / PLAN).is_file():
            raise ArtifactError(f"{folder} is not a pool: {TABLE} or {PLAN} is missing")
        try:
            rows = pd.read_parquet(folder / TABLE).to_dict(orient="records")
            plan = PreprocessingPlan.model_validate(json.loads((folder / PLAN).read_text()))
            return cls(folder, plan, tuple(_entry({str(k): v for k, v in row.items()}) for row in rows))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{folder} is damaged, or of another version of hepar: {error}") from None


def _entry(row: dict[str, Any]) -> PoolEntry:
    return PoolEntry(
        **{
            **row,
            "modality": Modality(row["modality"]),
            "split": Split(row["split"]),
            "liver_state": LabelState(row["liver_state"]),
            "tumour_state": LabelState(row["tumour_state"]),
            "lesion_diameters_mm": tuple(float(value) for value in row["lesion_diameters_mm"]),
        }
    )
