"""A scan of 512×512×300 segmented as `hepar predict` does, against MONAI's sliding window over the whole volume.

`python benchmarks/predict.py [--params params.yaml] [--model FOLDER --scan FILE] [--repeats 1] `

All arms start from the scan in memory and end with masks on its own grid, with the same network, overlap, thresholds
and postprocessing. `hepar` predicts the windows that matter to the liver, `whole` (with a model) all windows of the
same grid. `monai` resamples the whole scan, predicts it in single precision by MONAI's sliding window, with the overlap
that this grid really has along each axis, and resamples the probabilities of both structures back. Each arm runs in a
process of its own, in turns; its peak resident memory (Linux) is printed too, and the CPU time, whose ratio holds on a
busy machine too.

Without a model, the network of the params file has random weights and runs at its full cost, but the liver is found by
the intensities of a synthetic scan: that measures time and memory. With a model and a scan that holds a liver, the scan
is resampled to 512×512×300 first, and the Dice of the livers of `hepar` with those of the two others is printed: with
`whole` it says what is lost by leaving windows out, with `monai` also what resampling and precision change. The time of
MONAI over a scan with more windows than `--monai-windows` is extrapolated from eight windows, and its Dice is not
measured.
`--hepar-every 50` runs a large network without a model for one window of fifty only, and extrapolates hepar's time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from memory import peak_mib
from torch import Tensor, nn

from hepar.cases import LIVER, TUMOUR, Modality
from hepar.evaluation.overlap import dice
from hepar.imaging.modality import guess_modality
from hepar.imaging.preprocessing import PreprocessingPlan, preprocess_image
from hepar.imaging.volumes import Geometry, canonical, read_image, resample, to_array, to_image
from hepar.inference.liver_region import LIVER_THRESHOLD
from hepar.inference.model_folder import ModelSpec
from hepar.inference.prediction import Model, load_ensemble, postprocess, segment
from hepar.inference.settings import PredictionSettings
from hepar.inference.sliding_window import SIGMA, WindowGrid
from hepar.networks import build_network
from hepar.params import load_params
from hepar.runtime.device import (
    available_cores,
    inference_precision,
    is_large,
    memory_format,
    return_freed_blocks,
    use_threads,
)

SIZE_ZYX, SPACING_ZYX_MM = (300, 512, 512), (1.5, 0.8, 0.8)
LIVER_HU, TUMOUR_HU, BODY_HU, AIR_HU, NOISE_HU = 110, 60, 30, -1000, 8.0
ROOT = Path(__file__).parents[1]


class CostOnly(nn.Module):
    """A network that is run for its cost; what it returns is liver where the input is as bright as the liver."""

    def __init__(self, network: nn.Module, plan: PreprocessingPlan) -> None:
        super().__init__()
        self.network, self.plan = network, plan
        self.every = 1  # of how many calls one runs the network
        self.calls = self.run = 0
        self.seconds = np.zeros(2)  # in the network, as of `clocks`

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        if self.calls % self.every == 0:
            start = clocks()
            self.network(image_bcdhw)
            self.seconds, self.run = self.seconds + clocks() - start, self.run + 1
        self.calls += 1
        low, high = self.plan.window_hu
        hu_bcdhw = (image_bcdhw.float() + 1) * (high - low) / 2 + low
        liver_bcdhw = (hu_bcdhw - (LIVER_HU + BODY_HU) / 2) / NOISE_HU
        return torch.cat([liver_bcdhw, liver_bcdhw - 100], dim=1)


def clocks() -> npt.NDArray[np.float64]:
    """Seconds on the clock, and of CPU time."""
    return np.array([time.perf_counter(), time.process_time()])


def synthetic_scan() -> sitk.Image:
    """A body of fat and muscle with a liver of 1.6 l, 200 mm wide and 170 mm high, and noise; int16."""
    z, y, x = ((np.arange(n, dtype=np.float32) - n / 2) * mm for n, mm in zip(SIZE_ZYX, SPACING_ZYX_MM, strict=True))
    rng = np.random.default_rng(1)
    hu_zyx = np.empty(SIZE_ZYX, np.int16)
    body_yx = (y[:, None] / 120) ** 2 + (x[None] / 170) ** 2 < 1
    for number, height in enumerate(z):
        liver_yx = ((height - 60) / 85) ** 2 + ((y[:, None] + 10) / 85) ** 2 + ((x[None] + 60) / 100) ** 2 < 1
        hu_yx = np.where(liver_yx & body_yx, LIVER_HU, np.where(body_yx, BODY_HU, AIR_HU))
        hu_zyx[number] = hu_yx + rng.normal(0, NOISE_HU, hu_yx.shape) * body_yx
    return to_image(hu_zyx, Geometry(SIZE_ZYX, SPACING_ZYX_MM, (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1)))


def enlarged_scan(path: Path) -> sitk.Image:
    """A scan resampled to 512×512×300 voxels over the same extent, int16."""
    image = canonical(read_image(path, spacing_known=False))
    own = Geometry.of(image)
    z, y, x = (n * mm / new for n, mm, new in zip(own.size_zyx, own.spacing_zyx_mm, SIZE_ZYX, strict=True))
    return sitk.Cast(resample(image, own.with_spacing((z, y, x))), sitk.sitkInt16)


def load(options: argparse.Namespace) -> Model:
    """The model of the options, or the network of the params file at its cost only."""
    if options.model:
        return load_ensemble(options.model, torch.device("cpu"))[0]
    params = load_params(options.params)
    plan = PreprocessingPlan(
        spacing_zyx_mm=params.preprocessing.spacing_zyx_mm or (1.0, 1.0, 1.0),
        window_hu=params.preprocessing.window_hu,
        mr_percentiles=params.preprocessing.mr_percentiles,
    )
    patch_zyx = params.train_universal.training.patch_zyx
    torch.manual_seed(1)
    network = build_network(params.network.name, params.network.config, patch_zyx)
    network = network.to(memory_format=memory_format(torch.device("cpu"))).eval()  # type: ignore[call-overload]
    spec = ModelSpec(
        network=params.network, plan=plan, patch_zyx=patch_zyx, modalities=(Modality.CT, Modality.MR), origin={}
    )
    if is_large(network):
        return_freed_blocks()  # as for a stored model
    return Model(CostOnly(network, plan).eval(), spec, torch.device("cpu"))


def by_hepar(model: Model, image: sitk.Image, modality: Modality, options: argparse.Namespace) -> dict[str, Any]:
    """Segment by the liver's windows; with only some of them run, the time of the others is theirs."""
    network, start = model.network, clocks()
    if isinstance(network, CostOnly):
        network.every, network.calls, network.run, network.seconds = options.hepar_every, 0, 0, np.zeros(2)
    labels_zyx = segment([model], image, modality, PredictionSettings(overlap=options.overlap)).labels_zyx
    if not isinstance(network, CostOnly) or network.every == 1:
        return {"labels": labels_zyx, "seconds": None}
    others = (network.calls - network.run) * network.seconds / network.run
    return {"labels": None, "seconds": clocks() - start + others, "windows": network.calls, "sampled": network.run}


def by_whole(model: Model, image: sitk.Image, modality: Modality, options: argparse.Namespace) -> dict[str, Any]:
    """Segment by all windows."""
    settings = PredictionSettings(overlap=options.overlap)
    return {"labels": segment([model], image, modality, settings, whole=True).labels_zyx, "seconds": None}


def by_monai(model: Model, image: sitk.Image, modality: Modality, options: argparse.Namespace) -> dict[str, Any]:
    """Segment the whole volume with MONAI's sliding window, or time as many windows as the options allow."""
    from monai.data.utils import dense_patch_slices
    from monai.inferers import sliding_window_inference

    spec = model.spec
    start = clocks()
    image_zyx, grid = preprocess_image(canonical(image), modality, spec.plan)
    overlap_zyx = WindowGrid.over(image_zyx.shape, spec.patch_zyx, options.overlap).overlap_zyx
    steps = [max(1, int(p * (1 - overlap))) for p, overlap in zip(spec.patch_zyx, overlap_zyx, strict=True)]
    size_zyx = [max(n, p) for n, p in zip(image_zyx.shape, spec.patch_zyx, strict=True)]
    windows = len(dense_patch_slices(size_zyx, spec.patch_zyx, steps))

    def network(image_bcdhw: Tensor) -> Tensor:
        output: Tensor = model.network(image_bcdhw.contiguous(memory_format=memory_format(model.device)))
        return output.sigmoid()

    def predict(part_zyx: Any) -> Any:
        at_once = 4 if np.prod(spec.patch_zyx) < 2**20 else 1
        tensor = torch.from_numpy(np.ascontiguousarray(part_zyx))[None, None]
        with torch.inference_mode():
            return sliding_window_inference(
                tensor, spec.patch_zyx, at_once, network, overlap=overlap_zyx, mode="gaussian", sigma_scale=SIGMA
            )[0].numpy()

    if windows > options.monai_windows:
        elsewhere = clocks() - start
        sample_zyx = image_zyx[tuple(slice(0, p + s) for p, s in zip(spec.patch_zyx, steps, strict=True))]
        begin = clocks()
        predict(sample_zyx)
        sampled = len(dense_patch_slices(sample_zyx.shape, spec.patch_zyx, steps))
        per_window = (clocks() - begin) / sampled
        return {"labels": None, "seconds": elsewhere + per_window * windows, "windows": windows, "sampled": sampled}
    probability_rzyx = predict(image_zyx)
    own = Geometry.of(image)
    liver_zyx, tumour_zyx = (to_array(resample(to_image(p_zyx, grid), own)) for p_zyx in probability_rzyx)
    point = PredictionSettings().operating_point(spec)
    masks_zyx = postprocess(
        liver_zyx > LIVER_THRESHOLD,
        tumour_zyx > point.tumour_threshold,
        spec.taught,
        own.voxel_ml,
        point.min_lesion_ml,
        outline_zyx=tumour_zyx > point.outline_threshold,
    )
    labels_zyx = np.where(masks_zyx[TUMOUR], np.uint8(2), masks_zyx[LIVER].astype(np.uint8))
    return {"labels": labels_zyx, "seconds": None, "windows": windows}


ARMS = {"hepar": by_hepar, "monai": by_monai, "whole": by_whole}


def measure(arm: str, options: argparse.Namespace) -> None:
    """Run one arm in this process; print its time and peak memory as JSON and save its labels."""
    use_threads(options.threads)
    image = read_image(options.volume, spacing_known=False)
    modality = Modality(options.modality)
    model = load(options)
    with torch.inference_mode():  # so that the first use of a kernel is not counted
        model.network(torch.zeros(1, 1, *(min(32, side) for side in model.spec.patch_zyx)))
    start = clocks()
    found = ARMS[arm](model, image, modality, options)
    seconds, cpu_seconds = (clocks() - start if found["seconds"] is None else found["seconds"]).tolist()
    if found["labels"] is not None:
        np.save(options.labels, found["labels"] > 0)
    told: dict[str, Any] = {name: found[name] for name in ("windows", "sampled") if name in found}
    told |= {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "mib": peak_mib(torch.device("cpu")),
        "labels": found["labels"] is not None,
    }
    print(json.dumps(told | {"precision": inference_precision(model.network, model.device)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml")
    parser.add_argument("--model", type=Path, help="a model folder, with --scan")
    parser.add_argument("--scan", type=Path, help="a scan with a liver, with --model")
    parser.add_argument("--modality", help="of --scan", choices=list(map(str, Modality)))
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--monai-windows", type=int, default=200, help="more are extrapolated")
    parser.add_argument("--hepar-every", type=int, default=1, help="without a model, run one window of so many only")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--volume", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--labels", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        measure(options.arm, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        volume = Path(folder) / "scan.nii"
        image = enlarged_scan(options.scan) if options.scan else synthetic_scan()
        sitk.WriteImage(image, str(volume))
        modality = options.modality or (guess_modality(image, options.scan) if options.scan else Modality.CT)
        own = [*sys.argv[1:], "--modality", str(modality), "--volume", str(volume)]
        del image
        arms = [arm for arm in ARMS if arm != "whole" or options.model]
        results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
        for _ in range(options.repeats):
            for arm, runs in results.items():
                command = [sys.executable, __file__, *own, "--arm", arm, "--labels", f"{folder}/{arm}.npy"]
                runs.append(json.loads(subprocess.check_output(command).splitlines()[-1]))
        report(results, Path(folder), options)


def report(results: dict[str, list[dict[str, Any]]], folder: Path, options: argparse.Namespace) -> None:
    """Print the best time of each arm, their peak memory, ratios of times, and the Dice of the livers with hepar's."""
    name = options.model or options.params.name
    precision = results["hepar"][0]["precision"]
    print(f"{name}, overlap {options.overlap:g}, {options.threads} threads, hepar in {precision}")
    best = {arm: min(run["seconds"] for run in runs) for arm, runs in results.items()}
    for arm, runs in results.items():
        run = runs[0]
        sampled = f", extrapolated from {run['sampled']} of {run['windows']} windows" if "sampled" in run else ""
        print(f"  {arm:6s} {best[arm]:8.1f} s  {max(run['mib'] for run in runs):6.0f} MiB{sampled}")
    for arm in list(results)[1:]:
        print(f"  {arm} / hepar {best[arm] / best['hepar']:.1f}{_cpu_ratio(results['hepar'], results[arm])}")
        if results["hepar"][0]["labels"] and results[arm][0]["labels"]:
            hepar_zyx, other_zyx = (np.load(folder / f"{name}.npy") for name in ("hepar", arm))
            print(f"  Dice of the livers of hepar and {arm} {dice(other_zyx, hepar_zyx):.4f}")


def _cpu_ratio(hepar: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    """The ratio of CPU times."""
    hepar_s, other_s = (min(run["cpu_seconds"] for run in runs) for runs in (hepar, other))
    return f", in CPU time {other_s / hepar_s:.1f} ({other_s:.1f} s / {hepar_s:.1f} s)"


if __name__ == "__main__":
    main()
