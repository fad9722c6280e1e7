"""How often the placement check refuses correct liver masks, and mirrored ones.

`python benchmarks/placement.py [TABLE]`: on the cases of a table that have a liver, by default on 24 phantoms.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from hepar.errors import Refusal
from hepar.imaging.masks import Mask
from hepar.imaging.volumes import Array, Geometry, canonical, to_array
from hepar.ingest.checks import check_placement
from hepar.ingest.sources.table import read_table
from hepar.phantoms import FULLY_LABELLED, CohortDesign, write_phantoms


def is_refused(liver_zyx: Mask, image_zyx: Array, spacing_zyx_mm: tuple[float, float, float]) -> bool:
    try:
        check_placement(liver_zyx, image_zyx, spacing_zyx_mm)
    except Refusal:
        return True
    return False


def main(table: Path) -> None:
    correct, mirrored = [], []
    for case in read_table(table):
        if case.liver is None:
            continue
        image = canonical(case.image.read())
        image_zyx, spacing_zyx_mm = to_array(image), Geometry.of(image).spacing_zyx_mm
        liver_zyx = to_array(canonical(case.liver.read())) > 0
        if case.tumour is not None:
            liver_zyx |= to_array(canonical(case.tumour.read())) > 0
        correct.append(is_refused(liver_zyx, image_zyx, spacing_zyx_mm))
        mirrored += [is_refused(np.flip(liver_zyx, axis), image_zyx, spacing_zyx_mm) for axis in range(3)]
    print(f"refused: {sum(correct)} of {len(correct)} correct masks, {sum(mirrored)} of {len(mirrored)} mirrored ones")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(write_phantoms(Path(folder), cases=24, seed=3, design=CohortDesign(FULLY_LABELLED)))
