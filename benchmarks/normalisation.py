"""How alike livers look in MR after each way to normalise a scan, as it is and with a bright stomach in it.

    python benchmarks/normalisation.py [--source ../shared/data/cohort.csv]

Reads the manual livers of MR scans of the table's training and validation split. Brightness is counted in spreads of
the normalised intensities inside a liver (quartiles, as the SD of a normal distribution; median over the scans), since
ways to normalise differ in scale. For each way: SD and range of the livers' median brightness over the scans, and by
how much a stomach three to five times as bright as the liver, 8 % of the body (`folds/lights.py`), moves a liver's
median. Nothing is trained: what a network makes of it is measured by `real_folds.py`.

The ways: those of `preprocessing.mr_scale`; mean and SD of the body without its brightest mode, the upper of three
classes after Otsu; and quartiles after N4 bias correction (Tustison et al., "N4ITK: improved N3 bias correction", IEEE
TMI 2010), or of the body that Otsu's threshold separates from air (Otsu, "A threshold selection method from gray-level
histograms", IEEE TSMC 1979).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from folds.lights import Image, Scan, brighten_stomach

from hepar.cases import LabelState, Modality, Split
from hepar.imaging.intensities import mr_body, scale_mr
from hepar.imaging.masks import Mask
from hepar.imaging.volumes import Geometry, canonical, read_image, to_array
from hepar.ingest.cross_validation import read_patients
from hepar.params import load_params

ROOT = Path(__file__).parents[1]
SOURCE = ROOT.parent / "shared" / "data" / "cohort.csv"
PERCENTILES = (2.0, 98.0)
QUARTILES = (25, 50, 75)
NORMAL = 1.349  # quartiles of a normal distribution lie so many SD apart
CLASSES = 3  # that Otsu's thresholds divide the body into
SHRINK = 4  # the bias field is estimated on every fourth voxel along x and y


@dataclass(frozen=True)
class Brightness:
    """A normalised liver: its median, and its spread about it."""

    median: float
    spread: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=SOURCE, help="table of a cohort")
    scans = list(read_scans(parser.parse_args().source))
    print(f"{len(scans)} MR scans with a manual liver\n")
    print("| normalisation | SD over scans | darkest to brightest | a bright stomach moves it by | at most |")
    print("|---|---|---|---|---|")
    for name, normalise in WAYS.items():
        print(row(name, normalise, scans))


def read_scans(source: Path) -> Iterator[Scan]:
    """The MR scans of training and validation patients that have a manual liver."""
    patients = read_patients(source, load_params(ROOT / "params.yaml").ingest.split)
    for scan in (scan for patient in patients if patient.split != Split.TEST for scan in patient.scans):
        if scan["modality"] == Modality.MR and scan["liver_state"] == LabelState.MANUAL:
            image, liver = (canonical(read_image(source.parent / scan[column])) for column in ("image", "liver"))
            yield Scan(
                scan["case_id"],
                to_array(image).astype(np.float32),
                to_array(liver) > 0,
                Geometry.of(image).spacing_zyx_mm,
            )


def row(name: str, normalise: Callable[[Image], Image], scans: list[Scan]) -> str:
    plain = [brightness(normalise(scan.image_zyx), scan.liver_zyx) for scan in scans]
    bright = [brightness(normalise(brighten_stomach(scan)), scan.liver_zyx) for scan in scans]
    unit = np.median([liver.spread for liver in plain])
    medians_n = np.array([liver.median for liver in plain]) / unit
    moved_n = np.abs([after.median - before.median for before, after in zip(plain, bright, strict=True)]) / unit
    spread = f"{medians_n.std(ddof=1):.2f} | {medians_n.min():.2f} to {medians_n.max():.2f}"
    return f"| {name} | {spread} | {moved_n.mean():.2f} | {moved_n.max():.2f} |"


def brightness(image_zyx: Image, liver_zyx: Mask) -> Brightness:
    low, median, high = np.percentile(image_zyx[liver_zyx], QUARTILES)
    return Brightness(float(median), float(high - low) / NORMAL)


def without_brightest_mode(image_zyx: Image) -> Image:
    """Mean 0 and SD 1 of the body's voxels that are not in its brightest class."""
    body_n = image_zyx[mr_body(image_zyx)]
    limits = sitk.OtsuMultipleThresholdsImageFilter()
    limits.SetNumberOfThresholds(CLASSES - 1)
    limits.Execute(sitk.GetImageFromArray(body_n[None]))
    kept_n = body_n[body_n <= limits.GetThresholds()[-1]]
    low, high = np.percentile(kept_n, PERCENTILES)
    kept_n = np.clip(kept_n, low, high)
    return np.asarray((np.clip(image_zyx, low, high) - kept_n.mean()) / kept_n.std(), np.float32)


def after_n4(image_zyx: Image) -> Image:
    """By quartiles, once a smooth bias field is divided out."""
    image = sitk.GetImageFromArray(image_zyx - image_zyx.min() + 1)  # the filter takes logarithms
    body = sitk.GetImageFromArray(mr_body(image_zyx).astype(np.uint8))
    correct = sitk.N4BiasFieldCorrectionImageFilter()
    factors = [SHRINK, SHRINK, 1]
    correct.Execute(sitk.Shrink(image, factors), sitk.Shrink(body, factors))
    field_zyx = np.exp(sitk.GetArrayFromImage(correct.GetLogBiasFieldAsImage(image)))
    return by_quartiles(np.asarray(sitk.GetArrayFromImage(image) / field_zyx, np.float32))


def in_otsu_body(image_zyx: Image) -> Image:
    """By quartiles of the voxels above Otsu's threshold."""
    threshold = sitk.OtsuThresholdImageFilter()
    threshold.Execute(sitk.GetImageFromArray(image_zyx))
    body_n = image_zyx[image_zyx > threshold.GetThreshold()]
    low, median, high = np.percentile(np.clip(body_n, *np.percentile(body_n, PERCENTILES)), QUARTILES)
    return np.asarray((image_zyx - median) / ((high - low) / NORMAL), np.float32)


def by_quartiles(image_zyx: Image) -> Image:
    return scale_mr(image_zyx, PERCENTILES, "quartiles")


WAYS: Mapping[str, Callable[[Image], Image]] = {
    "mean and SD (`linear`)": lambda image_zyx: scale_mr(image_zyx, PERCENTILES, "linear"),
    "the same without the brightest mode": without_brightest_mode,
    "quartiles (`quartiles`)": by_quartiles,
    "quartiles of Otsu's body": in_otsu_body,
    "quartiles after N4": after_n4,
    "landmarks (`quantiles`)": lambda image_zyx: scale_mr(image_zyx, PERCENTILES, "quantiles"),
}


if __name__ == "__main__":
    main()
