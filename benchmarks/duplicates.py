"""How well perceptual hashes of one scan on other grids correlate, and those of different patients.

`python benchmarks/duplicates.py [TABLE]`: by default on 60 phantoms, else on the scans of a table.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import SimpleITK as sitk

from hepar.imaging.volumes import Geometry, canonical, resample, to_array
from hepar.ingest.near_duplicates import MIN_CORRELATION
from hepar.ingest.perceptual_hash import PerceptualHash, correlation, perceptual_hash
from hepar.ingest.sources.table import read_table
from hepar.phantoms import write_phantoms


def copies(image: sitk.Image) -> dict[str, sitk.Image]:
    """Copies as they occur between data sets."""
    geometry = Geometry.of(image)
    z_mm, y_mm, x_mm = (1.6 * mm for mm in geometry.spacing_zyx_mm)
    return {
        "coarser by 1.6": resample(image, geometry.with_spacing((z_mm, y_mm, x_mm))),
        "isotropic 3 mm": resample(image, geometry.with_spacing((3.0, 3.0, 3.0))),
        "twice the values": sitk.Cast(image, sitk.sitkFloat32) * 2,
        "mirrored": sitk.Flip(image, (True, False, False)),
        "without two slices at each end": image[:, :, 2:-2],
    }


def main(table: Path) -> None:
    hashes: list[tuple[str, str, PerceptualHash]] = []
    lowest: dict[str, tuple[float, str]] = {}
    for case in read_table(table):
        image = canonical(case.image.read())
        own = perceptual_hash(to_array(image), case.modality)
        hashes.append((case.case_id, case.patient_id, own))
        for name, copy in copies(image).items():
            with_copy = correlation(own, perceptual_hash(to_array(copy), case.modality))
            lowest[name] = min(lowest.get(name, (2.0, "")), (with_copy, case.case_id))
    for name, (with_copy, case_id) in lowest.items():
        print(f"{name}: at least {with_copy:.4f} (case {case_id})")
    pairs = [
        (correlation(a, b), one, other)
        for i, (one, patient, a) in enumerate(hashes)
        for other, another, b in hashes[:i]
        if patient != another
    ]
    highest, one, other = max(pairs)
    print(
        f"{len(pairs)} pairs of different patients: at most {highest:.4f} (cases {one}, {other});"
        f" the limit is {MIN_CORRELATION}"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(write_phantoms(Path(folder), cases=60, seed=5))
