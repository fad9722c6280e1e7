"""Pictures of synthetic lesions and look-alikes beside lesions that were not painted, and what painting costs.

`python benchmarks/synthetic_pictures.py [--source COHORT.csv] [--out FILE] [--seed N]`. Left CT, right MR; each picture
is an axial slice of 110 mm, with the finding in its middle. Without a source, livers and the lesions of the first row
are those of phantoms, and the picture is docs/images/synthetic-lesions.png. With the table of a cohort they are those
of its training patients, to be compared by eye: the picture goes to runs/, and no licence of theirs is touched.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from hepar.cases import LIVER, TUMOUR, Modality
from hepar.imaging.intensities import CT_RANGE
from hepar.imaging.preprocessing import (
    PreprocessingPlan,
    make_preprocessing_plan,
    normalise,
    preprocess_image,
)
from hepar.imaging.volumes import canonical, read_image, resample_mask
from hepar.params import load_params
from hepar.phantoms.phantom import make_phantom
from hepar.training.look_alikes import add_look_alikes
from hepar.training.sampling import Patch
from hepar.training.synthetic_lesions import add_synthetic_lesions

ROOT = Path(__file__).parents[1]
PARAMS = ROOT / "params" / "real-small.yaml"
OUT, OUT_REAL = ROOT / "docs" / "images" / "synthetic-lesions.png", ROOT / "runs" / "synthetic-lesions.png"
COLUMNS = 4  # for each modality
ROWS = (("lesions not painted", 1), ("synthetic lesions", 3), ("look-alikes", 2))
PATCH_ZYX = (32, 64, 64)
SIDE_MM = 110.0
PHANTOM_SIZE_ZYX = (64, 120, 120)  # at a spacing for which the field of view is that of an abdomen
PHANTOM_SPACING_ZYX_MM = (4.0, 2.9, 2.9)
PHANTOMS = {
    Modality.CT: ("portal-venous", "non-contrast", "delayed", "arterial"),
    Modality.MR: ("T2", "T1", "hepatobiliary"),
}
GREYS = {Modality.CT: CT_RANGE, Modality.MR: (-1.2, 3.0)}  # shown as black and white
MIN_CHANGE, MIN_VOXELS = 0.1, 12  # a finding that a reader could see: of the change of the image, in one slice
DPI = (100, 180)  # without and with a source
TIMED = 40  # patches


def phantom_livers(plan: PreprocessingPlan, modality: Modality) -> Iterator[Patch]:
    """Phantoms, preprocessed and whole, with all labels known."""
    for seed in range(1000, 10**6):
        sequences = PHANTOMS[modality]
        phantom = make_phantom(
            seed, modality, sequences[seed % len(sequences)], PHANTOM_SIZE_ZYX, PHANTOM_SPACING_ZYX_MM
        )
        target_rzyx = np.stack([phantom.liver_zyx, phantom.tumour_zyx]).astype(np.float32)
        yield Patch(normalise(phantom.image_zyx, modality, plan), target_rzyx, np.ones_like(target_rzyx), modality)


def real_livers(plan: PreprocessingPlan, modality: Modality, source: Path) -> Iterator[Patch]:
    """The training cases of a cohort that have a manual liver, over and over; an unknown tumour has weight 0."""
    with source.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "train" and row["liver_state"] == "manual"]
    rows = [row for row in rows if row["modality"] == modality]
    rows.sort(key=lambda row: not row["tumour"])  # those with a lesion first
    patches = []
    for row in rows:
        image = canonical(read_image(source.parent / row["image"]))
        image_zyx, geometry = preprocess_image(image, modality, plan)
        masks = [row["liver"], row["tumour"]]
        target_rzyx = np.stack(
            [
                resample_mask(canonical(read_image(source.parent / mask)), geometry)
                if mask
                else np.zeros_like(image_zyx, bool)
                for mask in masks
            ]
        ).astype(np.float32)
        patches.append(Patch(image_zyx, target_rzyx, np.ones_like(target_rzyx), modality))
        yield patches[-1]
    while patches:
        yield from patches


def cut_around(structure: int, whole: Patch, rng: np.random.Generator) -> Patch:
    """A training patch around a random voxel of a structure, or of the liver if the scan does not have it."""
    voxels_n3 = np.argwhere(whole.target_rzyx[structure] > 0)
    if not len(voxels_n3):
        voxels_n3 = np.argwhere(whole.target_rzyx[LIVER] > 0)
    centre_zyx = voxels_n3[rng.integers(len(voxels_n3))]
    part = tuple(
        slice(start, start + p)
        for start, p in (
            (int(np.clip(c - p // 2, 0, max(0, n - p))), p)
            for c, p, n in zip(centre_zyx, PATCH_ZYX, whole.image_zyx.shape, strict=True)
        )
    )
    return Patch(whole.image_zyx[part], whole.target_rzyx[:, *part], whole.weight_rzyx[:, *part], whole.modality)


Finding = tuple[Patch, npt.NDArray[np.bool_]]


def own_lesions(wholes: Iterator[Patch], real_mr: bool, rng: np.random.Generator) -> Iterator[Finding]:
    """Lesions of the scans themselves; real MR has none, and shows healthy liver instead."""
    for whole in wholes:
        patch = cut_around(TUMOUR, whole, rng)
        healthy = not patch.target_rzyx[TUMOUR].any()
        yield patch, patch.target_rzyx[LIVER if healthy and real_mr else TUMOUR] > 0


def painted(
    wholes: Iterator[Patch], paint: Callable[[Patch, np.random.Generator], Patch], rng: np.random.Generator
) -> Iterator[Finding]:
    for whole in wholes:
        patch = cut_around(LIVER, whole, rng)
        after = paint(patch, rng)
        yield after, np.abs(after.image_zyx - patch.image_zyx) > MIN_CHANGE * patch.image_zyx.std()


def show(axis: Axes, finding: Finding, spacing_yx_mm: tuple[float, float]) -> bool:
    """Show the slice with most of the finding around its middle; false if there is too little to be seen."""
    patch, found_zyx = finding
    area_z = found_zyx.sum((1, 2))
    z = int(area_z.argmax())
    if area_z[z] < MIN_VOXELS:
        return False
    middle = np.argwhere(found_zyx[z]).mean(0)
    image_yx = patch.image_zyx[z]
    height, width = (n * mm for n, mm in zip(image_yx.shape, spacing_yx_mm, strict=True))
    black, white = GREYS[patch.modality]
    extent = (0, width, height, 0)
    axis.imshow(image_yx, cmap="gray", interpolation="bicubic", extent=extent, vmin=black, vmax=white)
    y, x = (
        float(np.clip(m * mm, SIDE_MM / 2, n - SIDE_MM / 2))
        for m, mm, n in zip(middle, spacing_yx_mm, (height, width), strict=True)
    )
    axis.set_xlim(x - SIDE_MM / 2, x + SIDE_MM / 2)
    axis.set_ylim(y + SIDE_MM / 2, y - SIDE_MM / 2)
    return True


def draw(source: Path | None, out: Path, seed: int) -> None:
    plan = make_preprocessing_plan((), load_params(PARAMS).preprocessing)
    if not source:
        plan = plan.model_copy(update={"spacing_zyx_mm": PHANTOM_SPACING_ZYX_MM})
    rows = [name for name, count in ROWS for _ in range(count)]
    figure, axes = plt.subplots(len(rows), 2 * COLUMNS, figsize=(10, 1.27 * len(rows)))
    figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    for row, name in enumerate(rows):
        axes[row, 0].set_ylabel(name, fontsize=7)
    for column, modality in ((0, Modality.CT), (COLUMNS, Modality.MR)):
        wholes = real_livers(plan, modality, source) if source else phantom_livers(plan, modality)
        rng = np.random.default_rng([seed, column])
        kinds = {
            "lesions not painted": own_lesions(wholes, source is not None and modality == Modality.MR, rng),
            "synthetic lesions": painted(wholes, lambda p, r: add_synthetic_lesions(p, plan, r), rng),
            "look-alikes": painted(wholes, lambda p, r: add_look_alikes(p, plan, r), rng),
        }
        for row, name in enumerate(rows):
            for axis in axes[row, column : column + COLUMNS]:
                while not show(axis, next(kinds[name]), plan.spacing_zyx_mm[1:]):
                    pass
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=DPI[source is not None], pil_kwargs={"optimize": True})


def measure(seed: int) -> None:
    """Print the milliseconds of CPU time of both functions together for a training patch."""
    plan = make_preprocessing_plan((), load_params(PARAMS).preprocessing)
    plan = plan.model_copy(update={"spacing_zyx_mm": PHANTOM_SPACING_ZYX_MM})
    for modality in Modality:
        wholes, rng = phantom_livers(plan, modality), np.random.default_rng(seed)
        milliseconds = []
        for _ in range(4):
            whole = next(wholes)
            for patch in [cut_around(LIVER, whole, rng) for _ in range(TIMED // 4)]:
                start = time.thread_time()
                add_look_alikes(add_synthetic_lesions(patch, plan, rng), plan, rng)
                milliseconds.append(1000 * (time.thread_time() - start))
        print(
            f"{modality}: median {np.median(milliseconds):.1f} ms, 95 % below {np.percentile(milliseconds, 95):.1f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    measure(options.seed)
    draw(options.source, options.out or (OUT_REAL if options.source else OUT), options.seed)


if __name__ == "__main__":
    main()
