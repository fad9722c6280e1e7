"""Load the service: many clients upload at once, more than its queue holds, and none of them loses anything.

Starts `hepar serve` on loopback with a tiny network and small phantoms, lets each client upload its scans one after
the other and wait for each result, and watches the memory of the service. Prints a table; exits with 1 if a job was
lost or failed, if a result is not that of its scan, or if memory grew.

    python benchmarks/serve.py [--clients 50] [--scans 2] [--minutes 20]
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
import torch

from hepar.cases import Modality
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.imaging.volumes import Geometry, to_image, write_image
from hepar.inference.model_folder import ModelFolder, ModelSpec
from hepar.networks import build_network
from hepar.params import load_params
from hepar.runtime.artifacts import write_artifact

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TOKEN = "a-token-of-the-benchmark"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
FULL = 503
PATCH_ZYX = (16, 32, 32)
MAX_GROWTH = 1.2  # of the memory, last third of the run against the second


@dataclass
class Tally:
    """What the clients saw."""

    done: int = 0
    retried: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def write_model(folder: Path) -> None:
    """A tiny network that finds liver and tumour everywhere."""
    network = load_params(ROOT / "params" / "tiny.yaml").network
    weights = build_network(network.name, network.config, PATCH_ZYX).state_dict()
    weights["head.weight"] = torch.zeros_like(weights["head.weight"])
    weights["head.bias"] = torch.full_like(weights["head.bias"], 2.0)
    plan = PreprocessingPlan(spacing_zyx_mm=(4.0, 4.0, 4.0), window_hu=(-100.0, 300.0), mr_percentiles=(2.0, 98.0))
    spec = ModelSpec(
        network=network, plan=plan, patch_zyx=PATCH_ZYX, modalities=(Modality.CT,), origin={"cohort": "benchmark"}
    )
    with write_artifact(folder, ModelFolder.KIND, {"cohort": "benchmark"}) as partial:
        ModelFolder(partial).save(weights, spec, ())


def scan(folder: Path, number: int) -> tuple[bytes, list[int]]:
    """A noisy CT whose size is its own, and that size along x, y, z."""
    size_zyx = (16 + number % 7, 32 + number % 5, 32 + number % 3)
    image_zyx = np.random.default_rng(number).integers(-50, 200, size_zyx).astype(np.int16)
    grid = Geometry(size_zyx, (4.0, 4.0, 4.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    path = folder / f"{number}.nii.gz"
    write_image(to_image(image_zyx, grid), path)
    content = path.read_bytes()
    path.unlink()
    return content, list(size_zyx[::-1])


def use(url: str, content: bytes, size_xyz: list[int], end: float, tally: Tally) -> None:
    """Upload a scan, again and again while the queue is full, and check the result."""
    began = time.monotonic()
    while (
        answer := requests.post(f"{url}/api/jobs?modality=CT", data=content, headers=HEADERS, timeout=300)
    ).status_code == FULL:
        with tally.lock:
            tally.retried += 1
        if time.monotonic() > end:
            raise TimeoutError("the queue stays full")
        time.sleep(float(answer.headers["Retry-After"]))
    answer.raise_for_status()
    job = answer.json()
    while job["state"] not in ("done", "failed"):
        if time.monotonic() > end:
            raise TimeoutError("the job does not end")
        time.sleep(0.5)
        job = requests.get(f"{url}/api/jobs/{job['id']}", headers=HEADERS, timeout=300).json()
    if job["state"] == "failed":
        raise ValueError(job["error"])
    (found,) = job["scans"]
    if found["measurements"]["scan"]["size_xyz"] != size_xyz:
        raise ValueError("the result is that of another scan")
    mask = requests.get(f"{url}/api/jobs/{job['id']}/scans/1/liver.nii.gz", headers=HEADERS, timeout=300)
    mask.raise_for_status()
    requests.delete(f"{url}/api/jobs/{job['id']}", headers=HEADERS, timeout=300).raise_for_status()
    with tally.lock:
        tally.done += 1
        tally.seconds.append(time.monotonic() - began)


def client(url: str, scans: list[tuple[bytes, list[int]]], end: float, tally: Tally) -> None:
    for content, size_xyz in scans:
        try:
            use(url, content, size_xyz, end, tally)
        except (requests.RequestException, ValueError, TimeoutError) as error:
            with tally.lock:
                tally.problems.append(str(error))


def memory_mib(process: psutil.Process) -> float:
    """Resident memory of a process and all that it started."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):
            total += one.memory_info().rss
    return total / 2**20


def watch(process: psutil.Process, samples: list[float], stopped: threading.Event) -> None:
    while not stopped.wait(0.5):
        samples.append(memory_mib(process))


def load(url: str, process: psutil.Process, options: Any, folder: Path) -> tuple[Tally, list[float]]:
    """Let all clients work at once; returns what they saw, and the memory of the service meanwhile."""
    numbers = iter(range(options.clients * options.scans))
    work = [[scan(folder, next(numbers)) for _ in range(options.scans)] for _ in range(options.clients)]
    samples: list[float] = []
    tally, stopped, end = Tally(), threading.Event(), time.monotonic() + 60 * options.minutes
    watcher = threading.Thread(target=watch, args=(process, samples, stopped))
    watcher.start()
    with ThreadPoolExecutor(options.clients) as pool:
        for scans in work:
            pool.submit(client, url, scans, end, tally)
    stopped.set()
    watcher.join()
    return tally, samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--scans", type=int, default=2, help="of each client")
    parser.add_argument("--minutes", type=float, default=20.0, help="that the clients may take")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        command = [str(BIN / "hepar"), "serve", "--model", str(folder / "model")]
        environment = {**os.environ, "HEPAR_SERVE_TOKEN": TOKEN, "TMPDIR": name}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
            try:
                assert server.stdout is not None
                address = re.search(r"http://[\d.:]+", server.stdout.readline())
                assert address is not None, "the service did not start"
                began = time.monotonic()
                tally, samples = load(address[0], psutil.Process(server.pid), options, folder)
                seconds = time.monotonic() - began
                server.send_signal(signal.SIGTERM)
                server.wait(60)
            finally:
                server.kill()
    return report(tally, samples, options.clients * options.scans, seconds)


def report(tally: Tally, samples: list[float], asked: int, seconds: float) -> int:
    """Print what was seen; 1 if anything was lost or memory grew."""
    third = max(1, len(samples) // 3)
    second, last = float(np.mean(samples[third : 2 * third] or samples)), float(np.mean(samples[-third:]))
    for problem in sorted(set(tally.problems)):
        print(f"problem: {problem}")
    print(f"{'jobs asked for, done, lost':<34} {asked}, {tally.done}, {asked - tally.done}")
    print(f"{'uploads sent again (queue full)':<34} {tally.retried}")
    print(f"{'seconds, jobs a second':<34} {seconds:.0f}, {tally.done / seconds:.2f}")
    if tally.seconds:
        median, slowest = np.percentile(tally.seconds, [50, 100])
        print(f"{'seconds for a job, median, longest':<34} {median:.1f}, {slowest:.1f}")
    memory = f"{second:.0f}, {last:.0f}, {max(samples):.0f} ({last / second:.2f} times)"
    print(f"{'MiB, second and last third, peak':<34} {memory}")
    return int(tally.done < asked or last > MAX_GROWTH * second)


if __name__ == "__main__":
    sys.exit(main())
