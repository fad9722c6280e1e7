"""How often the placement check refuses a liver mask that is right, and one that is mirrored.

`python benchmarks/placement.py [TABLE]`: by default on 24 phantoms, else on the cases of a table that have a liver.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from hepar.errors import Refusal
from hepar.imaging.volumes import Geometry, canonical, to_array
from hepar.ingest.checks import check_placement
from hepar.ingest.sources.table import read_table
from hepar.phantoms import FULLY_LABELLED, CohortDesign, write_phantoms


def refused(mask: np.ndarray, image: np.ndarray, spacing_zyx_mm: tuple[float, float, float]) -> bool:
    try:
        check_placement(mask, image, spacing_zyx_mm)
    except Refusal:
        return True
    return False


def main(table: Path) -> None:
    right, mirrored = [], []
    for case in read_table(table):
        if case.liver is None:
            continue
        image = canonical(case.image.read())
        liver = to_array(canonical(case.liver.read())) > 0
        if case.tumour is not None:
            liver |= to_array(canonical(case.tumour.read())) > 0
        array, spacing = to_array(image), Geometry.of(image).spacing_zyx_mm
        right.append(refused(liver, array, spacing))
        mirrored += [refused(np.flip(liver, axis), array, spacing) for axis in range(3)]
    print(f"refused: {sum(right)} of {len(right)} masks as they are, {sum(mirrored)} of {len(mirrored)} mirrored ones")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(write_phantoms(Path(folder), cases=24, seed=3, design=CohortDesign(FULLY_LABELLED)))
