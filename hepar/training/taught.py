"""What a training teaches."""

from __future__ import annotations

from typing import Literal

from hepar.cases import LabelState, Split
from hepar.params import TrainingParams
from hepar.pool.table import Pool


def taught_structures(pool: Pool, training: TrainingParams) -> tuple[Literal["liver", "tumour"], ...]:
    """The structures that the training cases of a pool show somewhere; a tumour may be synthetic.

    A case of unknown tumour state teaches where there is none, and nothing about what a tumour looks like.
    """
    entries = pool.select(Split.TRAIN)
    painted = training.augmentation.lesions
    tumour = any(
        entry.tumour.state == LabelState.MANUAL
        or (
            entry.tumour.state == LabelState.ABSENT
            and entry.liver.weight > 0  # in which lesions are painted
            and painted.of(entry.modality) > 0
        )
        for entry in entries
    )
    liver = any(entry.liver.weight > 0 for entry in entries)
    return (*(("liver",) if liver else ()), *(("tumour",) if tumour else ()))
