"""Seconds to score one large scan, against the functions of MONAI and MedPy.

`uv run --no-project --with medpy==0.5.2 python benchmarks/metrics.py [--ours-only]`, in the activated environment.
MedPy is under the GPL, so hepar does not depend on it, and uv adds it for this run alone; without it MONAI is timed
alone. One scan of 200×512×512 voxels of 1.5×0.75×0.75 mm with a liver and 20 lesions; the prediction is shifted and
bent, 16 lesions are found and four components are false. `score_case` gives everything that a report has of a case:
overlap, distances by voxel and by area, matched lesions, panoptic quality, challenge scores, candidates, calibration,
and size and diameters of each lesion. The libraries compute what they have of it, once for the liver and once for the
tumours, each function by itself, as one calls them. CPU seconds are those of the whole process, so on a busy machine
they say more than wall-clock ones. Imports are not counted. Ends with an error if a library takes less than ten
times our CPU seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from hepar.evaluation.label_pairs import CaseIdentity, LabelPair, SegmentedCase, TumourProbability
from hepar.evaluation.scores import CaseScores, StructureScores, score_case
from hepar.imaging.masks import Mask, find_components
from hepar.runtime.bounded_map import bounded_map
from hepar.runtime.device import available_cores

SIZE_ZYX = (200, 512, 512)
SPACING_MM = (1.5, 0.75, 0.75)
LESIONS, FOUND = 20, 16
PARALLEL_CASES = 4
LEAST_RATIO = 10
OUR_FIELDS = ("dice", "voe", "hd95_mm", "mssd_mm", "assd_mm", "nsd_2mm")  # of those that a library has
Figures = dict[str, float]


def large_case() -> SegmentedCase:
    """A liver of 2.5 l with 20 lesions, and a prediction with probabilities."""
    rng = np.random.default_rng(16)
    z, y, x = np.ogrid[tuple(slice(0, size) for size in SIZE_ZYX)]
    bent = 0.05 * np.sin(x / 9) * np.cos(y / 7) * np.sin(z / 5)
    liver_zyx = _ellipsoid((z, y, x), (100, 250, 200), (60, 100, 130)) <= 1
    predicted_liver_zyx = _ellipsoid((z, y, x), (101, 252, 203), (59, 98, 131)) + bent <= 1
    reference_zyx, predicted_zyx = np.zeros(SIZE_ZYX, bool), np.zeros(SIZE_ZYX, bool)
    for number, centre in enumerate(_centres(rng)):
        radius_mm = rng.uniform(3, 11)
        reference_zyx |= _ball(centre, radius_mm)
        shift = rng.normal(0, 2, 3) if number < FOUND else np.array([0.0, 40.0, 0.0])
        predicted_zyx |= _ball(centre + shift, radius_mm * rng.uniform(0.8, 1.2))
    predicted_zyx &= predicted_liver_zyx
    noise_zyx = rng.random(SIZE_ZYX, np.float32)
    probability_zyx = np.where(predicted_zyx, 0.5 + noise_zyx / 2, noise_zyx**8 / 2).astype(np.float32)
    return SegmentedCase(
        CaseIdentity("large", "p", "CT", "", "benchmark"),
        LabelPair(liver_zyx | reference_zyx, predicted_liver_zyx),
        LabelPair(reference_zyx, predicted_zyx),
        SPACING_MM,
        distances_known=True,
        tumour_probability=TumourProbability(probability_zyx, inside_liver=True, min_lesion_voxels=50),
    )


def _ellipsoid(grid: Any, centre: tuple[int, ...], radii: tuple[int, ...]) -> npt.NDArray[np.float64]:
    return np.asarray(sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radii, strict=True)))


def _centres(rng: np.random.Generator) -> list[npt.NDArray[np.float64]]:
    """Places in the liver that are at least 28 mm apart, so that lesions do not touch."""
    centres: list[npt.NDArray[np.float64]] = []
    while len(centres) < LESIONS:
        centre = rng.uniform((55, 170, 100), (145, 320, 300))
        apart = all(np.linalg.norm((centre - other) * SPACING_MM) > 28 for other in centres)
        if apart and _ellipsoid(centre, (100, 250, 200), (60, 100, 130)) < 0.75:
            centres.append(centre)
    return centres


def _ball(centre: npt.NDArray[np.float64], radius_mm: float) -> Mask:
    mask_zyx = np.zeros(SIZE_ZYX, bool)
    reach = [int(radius_mm / mm) + 2 for mm in SPACING_MM]
    box = tuple(slice(max(0, int(c) - r), int(c) + r) for c, r in zip(centre, reach, strict=True))
    grid = np.ogrid[box]
    offsets_mm = zip(grid, centre, SPACING_MM, strict=True)
    mask_zyx[box] = sum(((axis - c) * mm) ** 2 for axis, c, mm in offsets_mm) <= radius_mm**2
    return mask_zyx


def timed(compute: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a call returns, its wall-clock seconds and its CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = compute()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def our_figures(scores: CaseScores) -> Figures:
    """Those that the libraries have as well, by name."""

    def of(name: str, structure: StructureScores) -> Figures:
        figures = {metric: getattr(structure, metric) for metric in OUR_FIELDS}
        by_area = 0.0 if structure.area_weighted is None else structure.area_weighted.nsd
        return {f"{name} {metric}": value for metric, value in {**figures, "area-weighted NSD": by_area}.items()}

    assert scores.panoptic is not None
    top, bottom = scores.panoptic.pq_terms
    return {**of("liver", scores.liver), **of("tumour", scores.tumour), "PQ": top / bottom}


def overlap_error(intersection_over_union: Callable[..., Any], *masks: Any, **named: Any) -> Any:
    return 1 - intersection_over_union(*masks, **named)


def monai_functions(case: SegmentedCase) -> dict[str, Callable[[], Any]]:
    import torch
    from monai import metrics

    def tensor(mask_zyx: Mask) -> torch.Tensor:
        return torch.from_numpy(mask_zyx)[None, None]

    functions: dict[str, Callable[[], Any]] = {}
    for name, pair in (("liver", case.liver), ("tumour", case.tumour)):
        assert pair.reference_zyx is not None
        masks = {"y_pred": tensor(pair.prediction_zyx), "y": tensor(pair.reference_zyx)}
        far = {**masks, "include_background": True, "spacing": SPACING_MM}
        functions |= {
            f"{name} dice": partial(metrics.compute_dice, **masks),
            f"{name} voe": partial(overlap_error, metrics.compute_iou, **masks),
            f"{name} hd95_mm": partial(metrics.compute_hausdorff_distance, **far, percentile=95),
            f"{name} mssd_mm": partial(metrics.compute_hausdorff_distance, **far),
            f"{name} assd_mm": partial(metrics.compute_average_surface_distance, **far, symmetric=True),
            f"{name} nsd_2mm": partial(metrics.compute_surface_dice, **far, class_thresholds=[2.0]),
            f"{name} area-weighted NSD": partial(
                metrics.compute_surface_dice, **far, class_thresholds=[2.0], use_subvoxels=True
            ),
        }

    def panoptic() -> Any:
        labels = []
        for mask_zyx in (case.tumour.prediction_zyx, case.tumour.reference_zyx):
            assert mask_zyx is not None
            components = find_components(mask_zyx)
            whole_zyx = np.zeros(mask_zyx.shape, np.int32)
            whole_zyx[components.box] = components.labels_zyx
            labels.append(torch.from_numpy(whole_zyx))
        return metrics.compute_panoptic_quality(*labels)

    return {**functions, "PQ": panoptic}


def medpy_functions(case: SegmentedCase) -> dict[str, Callable[[], Any]]:
    from medpy.metric import binary

    functions: dict[str, Callable[[], Any]] = {}
    for name, pair in (("liver", case.liver), ("tumour", case.tumour)):
        masks = (pair.prediction_zyx, pair.reference_zyx)
        functions |= {
            f"{name} dice": partial(binary.dc, *masks),
            f"{name} voe": partial(overlap_error, binary.jc, *masks),
            f"{name} hd95_mm": partial(binary.hd95, *masks, voxelspacing=SPACING_MM),
            f"{name} mssd_mm": partial(binary.hd, *masks, voxelspacing=SPACING_MM),
            f"{name} assd_mm": partial(binary.assd, *masks, voxelspacing=SPACING_MM),
        }
    return functions


def score_in_parallel(case: SegmentedCase, workers: int) -> list[CaseScores]:
    return list(bounded_map(score_case, [case] * PARALLEL_CASES, workers))


def compare(library: str, functions: dict[str, Callable[[], Any]], ours: Figures, our_cpu: float) -> float:
    """Time each function; returns how many times our CPU seconds they take."""
    print(f"\n{library:24s}  wall s   CPU s       value   difference to ours")
    total_wall = total_cpu = distances_cpu = 0.0
    for name, compute in functions.items():
        found, wall, cpu = timed(compute)
        value = float(found)
        total_wall, total_cpu = total_wall + wall, total_cpu + cpu
        distances_cpu += 0.0 if name == "PQ" else cpu
        print(f"  {name:22s}  {wall:6.2f}  {cpu:6.2f}  {value:10.4f}   {value - ours[name]:+.1e}")
    print(f"  {'all':22s}  {total_wall:6.2f}  {total_cpu:6.2f}: {total_cpu / our_cpu:.1f} times our CPU seconds,")
    print(f"  {distances_cpu / our_cpu:.1f} times without panoptic quality; ours are of everything that we compute")
    return total_cpu / our_cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours-only", action="store_true", help="leave the libraries out")
    arguments = parser.parse_args()
    case = large_case()
    scores, wall, cpu = timed(lambda: score_case(case))
    assert scores.candidates is not None
    print(
        f"score_case, {available_cores()} cores: {wall:.2f} s wall, {cpu:.2f} s CPU; {len(scores.lesion_rows)} rows of"
    )
    print(f"lesions, {len(scores.candidates.confidences)} candidates, panoptic {scores.panoptic}")
    for workers in (1, 2):
        _, wall, _ = timed(partial(score_in_parallel, case, workers))
        print(f"{PARALLEL_CASES} cases by {workers} thread(s): {wall:.2f} s wall")
    if arguments.ours_only:
        return
    libraries = {"MONAI": monai_functions}
    if importlib.util.find_spec("medpy"):
        libraries["MedPy"] = medpy_functions
    else:
        print("\nMedPy is not installed")
    ratios = [compare(name, make(case), our_figures(scores), cpu) for name, make in libraries.items()]
    if min(ratios) < LEAST_RATIO:
        sys.exit(f"a library takes less than {LEAST_RATIO} times as long")


if __name__ == "__main__":
    main()
