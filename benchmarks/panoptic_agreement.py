"""Panoptic quality against the package panoptica, on random masks.

`python benchmarks/panoptic_agreement.py [--pairs 60] [--seed 1]`. panoptica needs older releases of pandas and rich
than hepar does, so it gets an environment of its own, made by uv in a temporary folder and deleted at the end; this
file is run there again with `--results`. Instances are face-connected components in both, and an IoU of exactly 0.5 is
no match. Ends with an error if a count differs, or a quality by more than 1e-9.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TOLERANCE = 1e-9
COUNTS, QUALITIES = ("tp", "fp", "fn"), ("pq", "sq", "rq")
Pair = tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]


def random_pairs(count: int, seed: int) -> list[Pair]:
    """Masks with some blobs each: the second has them grown, moved, and a few of its own; some masks are empty."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        size_zyx = rng.integers(8, 28, 3)
        blobs_zyx = ndimage.gaussian_filter(rng.normal(size=size_zyx), rng.uniform(0.6, 1.8))
        other_zyx = blobs_zyx + rng.uniform(0.1, 0.6) * blobs_zyx.std() * rng.normal(size=size_zyx)
        level = np.quantile(blobs_zyx, rng.uniform(0.8, 0.97))
        pairs.append((blobs_zyx > (np.inf if number % 20 == 7 else level), other_zyx > level))
    return pairs


def our_results(pairs: list[Pair]) -> list[dict[str, float | None]]:
    from hepar.evaluation.lesions import match_lesions
    from hepar.evaluation.overlap import ratio
    from hepar.evaluation.panoptic import panoptic_counts

    results: list[dict[str, float | None]] = []
    for pair in pairs:
        counts = panoptic_counts(match_lesions(*pair))
        numbers = (counts.true_positives, counts.false_positives, counts.false_negatives)
        ratios = [ratio(*getattr(counts, f"{name}_terms")) for name in QUALITIES]
        results.append(dict(zip((*COUNTS, *QUALITIES), (*numbers, *ratios), strict=True)))
    return results


def panoptica_results(pairs: list[Pair]) -> list[dict[str, float | None]]:
    """Those of panoptica, which is installed in the environment that this runs in."""
    from panoptica import (
        ConnectedComponentsInstanceApproximator,
        InputType,
        NaiveThresholdMatching,
        Panoptica_Evaluator,
    )
    from panoptica.metrics import Metric
    from panoptica.utils.constants import CCABackend

    evaluator = Panoptica_Evaluator(
        expected_input=InputType.SEMANTIC,
        instance_approximator=ConnectedComponentsInstanceApproximator(CCABackend.scipy),
        instance_matcher=NaiveThresholdMatching(Metric.IOU, 0.5, strict_threshold=True),
        instance_metrics=[Metric.IOU],
        global_metrics=[],
    )
    results: list[dict[str, float | None]] = []
    for reference_zyx, prediction_zyx in pairs:
        found: Any = evaluator.evaluate(prediction_zyx.astype(np.uint8), reference_zyx.astype(np.uint8))
        result = found["ungrouped"]
        results.append({name: float(getattr(result, name)) for name in (*COUNTS, *QUALITIES)})
    return results


def in_own_environment(pairs: list[Pair]) -> list[dict[str, float | None]]:
    """The results of panoptica, from a virtual environment that lives as long as this call."""
    uv = Path(sys.executable).with_name("uv")
    wheels = os.environ.get("PIP_FIND_LINKS")
    environment = {**os.environ, **({"UV_FIND_LINKS": wheels} if wheels else {})}
    with tempfile.TemporaryDirectory() as name:
        python, file = Path(name) / "venv/bin/python", Path(name) / "pairs.npz"
        masks: dict[str, Any] = {f"r{n}": reference_zyx for n, (reference_zyx, _) in enumerate(pairs)}
        masks |= {f"p{n}": prediction_zyx for n, (_, prediction_zyx) in enumerate(pairs)}
        np.savez(file, **masks)
        for command in (["venv", str(python.parents[1])], ["pip", "install", "--python", str(python), "panoptica"]):
            subprocess.run([uv, *command, "--quiet"], check=True, env=environment)
        shown = subprocess.run([python, __file__, "--results", file], check=True, stdout=subprocess.PIPE, text=True)
        return list(json.loads(shown.stdout.splitlines()[-1]))


def differences(ours: dict[str, float | None], theirs: dict[str, float | None]) -> list[str]:
    """What differs. Qualities are compared where there is a match; without one they are 0 or undefined by choice."""
    found = [f"{name}: {ours[name]} and {theirs[name]}" for name in COUNTS if ours[name] != theirs[name]]
    for name in QUALITIES:
        value, other = ours[name], theirs[name]
        if value is not None and ours["tp"] and (other is None or not abs(value - other) <= TOLERANCE):
            found.append(f"{name}: {value} and {other}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, help="print the results of panoptica for these masks")
    arguments = parser.parse_args()
    if arguments.results:
        with np.load(arguments.results) as masks:
            pairs = [(masks[f"r{n}"], masks[f"p{n}"]) for n in range(len(masks.files) // 2)]
        print(json.dumps(panoptica_results(pairs)))
        return
    pairs = random_pairs(arguments.pairs, arguments.seed)
    ours, theirs = our_results(pairs), in_own_environment(pairs)
    wrong = [(n, text) for n, both in enumerate(zip(ours, theirs, strict=True)) for text in differences(*both)]
    matches, instances = (sum(int(one[name] or 0) for one in ours) for name in ("tp", "fn"))
    for number, text in wrong:
        print(f"pair {number}: {text}")
    print(f"panoptic quality: {len(pairs)} pairs, {matches} matches, {instances} missed; {len(wrong)} disagreements")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
