"""A window of MedFormer by ONNX Runtime on the CPU, against torch: same output, and time.

`python benchmarks/onnx_runtime.py [--params params.yaml] [--repeats 10]`

The network of the params file has random weights. Both take turns; the fastest window of each counts. Torch predicts
as many windows at once as `hepar predict` does, and ONNX Runtime one: larger batches are not faster there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from hepar.cases import Modality
from hepar.export.mean_network import example_window
from hepar.export.onnx_file import INPUT, write_onnx
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.inference.model_folder import ModelSpec
from hepar.inference.prediction import Model
from hepar.inference.sliding_window import windows_at_once
from hepar.networks import build_network
from hepar.params import load_params
from hepar.runtime.device import available_cores, memory_format, use_threads

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    params, threads = load_params(options.params), available_cores()
    use_threads(threads)
    patch_zyx = params.train_universal.training.patch_zyx
    torch.manual_seed(1)
    network = build_network(params.network.name, params.network.config, patch_zyx).eval()
    plan = PreprocessingPlan(spacing_zyx_mm=(1.0, 1.0, 1.0), window_hu=(-100, 200), mr_percentiles=(2, 98))
    spec = ModelSpec(network=params.network, plan=plan, patch_zyx=patch_zyx, modalities=tuple(Modality), origin={})
    models = [Model(network, spec, CPU)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(models, path)
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, session_options, providers=["CPUExecutionProvider"])
    window_bcdhw = example_window(models)
    network.to(memory_format=memory_format(CPU))  # type: ignore[call-overload]
    at_once = windows_at_once(patch_zyx, CPU)
    windows_bcdhw = window_bcdhw.expand(at_once, -1, -1, -1, -1).contiguous(memory_format=memory_format(CPU))
    best = {"torch": float("inf"), "onnx": float("inf")}
    with torch.inference_mode():
        for _ in range(options.repeats):
            start = time.perf_counter()
            expected_brdhw = network(windows_bcdhw).sigmoid()
            middle = time.perf_counter()
            (found_brdhw,) = session.run(None, {INPUT: window_bcdhw.numpy()})
            best["torch"] = min(best["torch"], (middle - start) / at_once)
            best["onnx"] = min(best["onnx"], time.perf_counter() - middle)
    difference = float(np.abs(found_brdhw - expected_brdhw[:1].numpy()).max())
    print(f"{options.params.name}: windows of {patch_zyx}, {at_once} at once, {threads} threads")
    print(f"  largest difference {difference:.1e}")
    for name, seconds in best.items():
        print(f"  {name:5s} {seconds:.4f} s")
    print(f"  onnx / torch {best['onnx'] / best['torch']:.2f}")


if __name__ == "__main__":
    main()
