"""How assembling and pushing a pool scales with its size: assembled, assembled again, with one more case, and pushed.

`python benchmarks/pool.py [--cases 10 100 1000] [--push 100]`. Cases are phantoms of 32×48×48 voxels; the remote is a
folder. Each assembly runs in its own process; the memory is its growth at peak (Linux).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hepar.stages.ingest
from components import pool_versions
from hepar.cases import Cohort, Split
from hepar.params import load_params
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.runtime.artifacts import read_manifest, write_artifact

ROOT = Path(__file__).parents[1]
SIZE_ZYX = (32, 48, 48)
ASSEMBLE = """
import resource, sys, time
from pathlib import Path
import hepar.stages.assemble_pool
from hepar.params import load_params

root, folder = map(Path, sys.argv[1:3])
params = load_params(root / "params.yaml")
inputs = (folder / "cohort", folder / "pseudo", folder / "pool")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
hepar.stages.assemble_pool.run(*inputs, params.modalities, params.preprocessing, params.assemble_pool)
print(time.perf_counter() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def ingest_phantoms(cohort: Path, cases: int) -> None:
    """Writes a cohort of phantoms."""
    loaded = load_params(ROOT / "params.yaml")
    params = loaded.ingest
    phantoms = params.phantoms.model_copy(update={"cases": cases, "size_zyx": SIZE_ZYX})
    hepar.stages.ingest.run("phantoms", cohort, params.model_copy(update={"phantoms": phantoms}), loaded.modalities)


def write_inputs(source: Path, folder: Path, cases: int) -> None:
    """Writes the first training and validation cases of a cohort as a smaller one, without pseudo-labels."""
    chosen = Cohort.load(source).select(None, (Split.TRAIN, Split.VAL))[:cases]
    assert len(chosen) == cases
    with write_artifact(folder / "cohort", Cohort.KIND, {}) as partial:
        (partial / Cohort.VOLUMES).symlink_to(source / Cohort.VOLUMES)
        Cohort(partial, chosen).save()
    parents = {Cohort.KIND: read_manifest(folder / "cohort", Cohort.KIND).hash}
    with write_artifact(folder / "pseudo", PseudoLabels.KIND, parents) as partial:
        PseudoLabels(partial).save_table([])


def assemble(folder: Path) -> tuple[float, float]:
    """Assembles the pool of a folder; returns seconds, and the growth of the process in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", ASSEMBLE, str(ROOT), str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, mib = done.stdout.split()
    return float(seconds), float(mib)


def time_assembly(source: Path, counts: list[int], work: Path) -> None:
    """Prints one line for each number of cases."""
    print("cases   seconds   ms/case   peak MiB   again: seconds   of the first   one more case: seconds")
    for count in counts:
        folder = work / str(count)
        write_inputs(source, folder, count)
        first, mib = assemble(folder)
        again, _ = assemble(folder)
        write_inputs(source, folder, count + 1)
        one_more, _ = assemble(folder)
        row = f"{count:5d}   {first:7.2f}   {1000 * first / count:7.1f}   {mib:8.0f}   {again:14.2f}"
        print(f"{row}   {again / first:12.1%}   {one_more:22.2f}", flush=True)


def time_push(source: Path, count: int, work: Path) -> None:
    """Prints the time and the stored bytes of pushing a pool, and then the same pool with one more case."""
    folder, remote = work / "pushed", work / "remote"
    seconds = []
    for cases in (count, count + 1):
        write_inputs(source, folder, cases)
        assemble(folder)
        start = time.perf_counter()
        pool_versions.push(folder / "pool", str(remote))
        seconds.append(time.perf_counter() - start)
        sizes = [path.stat().st_size for path in remote.rglob("*") if path.is_file()]
        stored_mib = sum(sizes) / 2**20
        print(
            f"push of {cases} cases: {seconds[-1]:.1f} s; the remote holds {len(sizes)} objects, {stored_mib:.1f} MiB"
        )
    print(f"pushing one more case takes {seconds[1] / seconds[0]:.2f} of the first push")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--push", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        most = max([*options.cases, options.push])
        # a sixth of the phantoms are test cases; half as many again leaves enough for the largest pool
        ingest_phantoms(work / "cohort", 2 * (3 * most // 4 + 8))
        time_assembly(work / "cohort", sorted(options.cases), work)
        time_push(work / "cohort", options.push, work)


if __name__ == "__main__":
    main()
