"""MedFormer against a direct transcription of its formulas (`plain_medformer.py`): same output, time and peak memory.

`python benchmarks/medformer.py [--repeats 5] [--sizes small lits-64 lits-96] [--devices cpu cuda] [--compile]`

Both networks have the same weights and take turns, so that other load on the machine affects both. On the CPU, memory
is measured in a separate process; on a GPU it is what torch allocates beyond both networks' weights, in bf16.
`--compile` adds both networks compiled, on a GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from memory import growth_mib, held_mib, peak_mib, restart_peak
from plain_medformer import PlainMedFormer
from torch import nn

from hepar.networks import build_network
from hepar.params import load_params
from hepar.runtime.device import available_cores, memory_format, use_threads

ROOT = Path(__file__).parents[1]
SIZES = {  # params file, side of the cubic patch, batch size
    "small": ("params.yaml", 48, 2),
    "lits-64": ("params/full.yaml", 64, 1),
    "lits-96": ("params/full.yaml", 96, 1),
}


def pair(size: str, device: torch.device) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Our network, the plain one with the same weights, and a random image."""
    file, side, batch = SIZES[size]
    network = load_params(ROOT / file).network
    torch.manual_seed(1)
    ours = build_network(network.name, network.config, (side, side, side))
    plain = PlainMedFormer(ours).to(device)
    image_bcdhw = torch.randn(batch, 1, side, side, side, device=device)
    ours.to(device, memory_format=memory_format(device))  # type: ignore[call-overload]
    return ours, plain, image_bcdhw


def step(network: nn.Module, image_bcdhw: torch.Tensor, backward: bool) -> None:
    """One forward pass, with `backward` a backward pass too."""
    if not backward:
        with torch.no_grad():
            network(image_bcdhw)
        return
    output = network(image_bcdhw)
    outputs = output if isinstance(output, list) else [output]
    sum(logits.square().mean() for logits in outputs).backward()
    for parameter in network.parameters():
        parameter.grad = None


def seconds(work: Callable[[], None], device: torch.device) -> float:
    """Wall-clock time of `work`, all of it done on the device."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(size: str, repeats: int, device: torch.device, compiled: bool) -> None:
    """Print difference, time and memory of both networks."""
    ours, plain, image_bcdhw = pair(size, device)
    ours.eval(), plain.eval()
    with torch.no_grad():
        expected_brdhw = plain(image_bcdhw)
        difference = float((ours(image_bcdhw) - expected_brdhw).abs().max() / expected_brdhw.abs().max())
    shape = tuple(image_bcdhw.shape)
    print(f"\n{size}: {shape} on {device.type}, largest difference {difference:.1e} of the largest logit")
    kinds = {"ours": ours, "plain": plain}
    if compiled and device.type == "cuda":
        kinds["ours compiled"] = torch.compile(ours)  # type: ignore[assignment]
        kinds["plain compiled"] = torch.compile(plain)  # type: ignore[assignment]
    for name, backward in (("forward", False), ("forward and backward", True)):
        best = dict.fromkeys(kinds, float("inf"))
        memory: dict[str, float] = {}
        for turn in range(repeats + 1):
            for kind, network in kinds.items():
                network.train(backward)
                input_bcdhw = (
                    image_bcdhw.contiguous(memory_format=memory_format(device)) if "ours" in kind else image_bcdhw
                )
                before_mib = held_mib(device)
                restart_peak(device)
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    duration_s = seconds(partial(step, network, input_bcdhw, backward), device)
                if turn:  # the first is a warm-up
                    best[kind] = min(best[kind], duration_s)
                if device.type == "cuda":
                    memory[kind] = peak_mib(device) - before_mib
        if device.type != "cuda":
            memory = {kind: step_mib(size, kind, backward) for kind in kinds}
        for kind, value in best.items():
            print(f"  {name:21s} {kind:21s} {value:7.3f} s  {memory[kind]:7.0f} MiB")
        for kind in kinds:
            if "ours" in kind:
                ratios = best["plain"] / best[kind], memory["plain"] / memory[kind]
                print(f"  {name:21s} {f'plain / {kind}':21s} {ratios[0]:7.2f}    {ratios[1]:7.2f}")


def step_mib(size: str, kind: str, backward: bool) -> float:
    """Peak growth of the resident memory of a fresh process during one step (Linux)."""
    command = [sys.executable, __file__, "--one", size, kind, str(int(backward))]
    return float(subprocess.check_output(command))


def measure_one(size: str, kind: str, backward: str) -> None:
    """Print the memory growth in MiB of one step, for `step_mib`."""
    ours, plain, image_bcdhw = pair(size, torch.device("cpu"))
    network = (ours if kind == "ours" else plain).train(backward == "1")
    input_bcdhw = (
        image_bcdhw.contiguous(memory_format=memory_format(torch.device("cpu"))) if kind == "ours" else image_bcdhw
    )
    print(growth_mib(lambda: step(network, input_bcdhw, backward == "1")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--devices", nargs="*", choices=["cpu", "cuda"], default=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="compiled networks too, on a GPU")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    use_threads(available_cores())
    if options.one:
        measure_one(*options.one)
        return
    for name in options.devices:
        if name == "cpu" or torch.cuda.is_available():
            for size in options.sizes:
                compare(size, options.repeats, torch.device(name), options.compile)


if __name__ == "__main__":
    main()
