"""Cost of a pool against its size: assembled, assembled again, with one more case, and pushed to a DVC remote.

`python benchmarks/pool.py [--cases 10 100 1000] [--push 100]`. Cases are phantoms of 32×48×48 voxels. Each assembly is
a process of its own; its memory is by how much that process grows at most (Linux).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from components import pool_versions
from hepar.cases import Cohort, Split
from hepar.params import load_params
from hepar.pseudo_labels.gates import TABLE
from hepar.runtime.artifacts import read_manifest, writing
from hepar.stages import ingest
from hepar.stages.pseudo_label import COLUMNS

ROOT = Path(__file__).parents[1]
SIZE_ZYX = (32, 48, 48)
ASSEMBLE = """
import resource, sys, time
from pathlib import Path
from hepar.params import load_params
from hepar.pseudo_labels.gates import TABLE
from hepar.stages import assemble_pool

root, place = map(Path, sys.argv[1:3])
params = load_params(root / "params.yaml")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
assemble_pool.run(place / "cohort", place / "pseudo", place / "pool", params.preprocessing, params.assemble_pool)
print(time.perf_counter() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def phantoms(folder: Path, cases: int) -> None:
    """A cohort of phantoms and pseudo-labels of none of them."""
    params = load_params(ROOT / "params.yaml").ingest
    size = params.phantoms.model_copy(update={"cases": cases, "size_zyx": SIZE_ZYX})
    ingest.run("phantoms", folder / "cohort", params.model_copy(update={"phantoms": size}))


def part_of(whole: Path, folder: Path, cases: int) -> None:
    """The first cases of a cohort that are not for testing, as a cohort of its own, without pseudo-labels."""
    cohort = Cohort.load(whole / "cohort")
    chosen = cohort.select(None, (Split.TRAIN, Split.VAL))[:cases]
    assert len(chosen) == cases
    with writing(folder / "cohort", "cohort", {}) as partial:
        (partial / "volumes").symlink_to(whole / "cohort" / "volumes")
        Cohort(partial, chosen).save()
    parents = {"cohort": read_manifest(folder / "cohort", "cohort").hash}
    with writing(folder / "pseudo", "pseudo-labels", parents) as partial:
        columns = [*COLUMNS, "gate", "weight", "reasons", "predicted_dice"]
        pd.DataFrame([], columns=columns).to_parquet(partial / TABLE, index=False)


def assemble(folder: Path) -> tuple[float, float]:
    """Seconds, and by how many MiB the process grew."""
    done = subprocess.run(
        [sys.executable, "-c", ASSEMBLE, str(ROOT), str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, mib = done.stdout.split()
    return float(seconds), float(mib)


def growing(whole: Path, counts: list[int], work: Path) -> None:
    print("cases   seconds   ms a case   MiB grown   again: seconds   of the first   one more: seconds")
    for count in counts:
        folder = work / str(count)
        part_of(whole, folder, count)
        first, mib = assemble(folder)
        again, _ = assemble(folder)
        part_of(whole, folder, count + 1)
        more, _ = assemble(folder)
        row = f"{count:5d}   {first:7.2f}   {1000 * first / count:9.1f}   {mib:9.0f}   {again:14.2f}"
        print(f"{row}   {again / first:12.1%}   {more:17.2f}", flush=True)


def pushing(whole: Path, count: int, work: Path) -> None:
    folder, remote = work / "pushed", work / "remote"
    seconds = []
    for cases in (count, count + 1):
        part_of(whole, folder, cases)
        assemble(folder)
        start = time.perf_counter()
        pool_versions.push(folder / "pool", str(remote))
        seconds.append(time.perf_counter() - start)
        objects = sum(path.is_file() for path in remote.rglob("*"))
        stored = sum(path.stat().st_size for path in remote.rglob("*") if path.is_file()) / 2**20
        print(f"push of {cases} cases: {seconds[-1]:.1f} s; the remote holds {objects} objects, {stored:.1f} MiB")
    print(f"one more case takes {seconds[1] / seconds[0]:.2f} of the first push")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--push", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        most = max([*options.cases, options.push])
        # a quarter of the phantoms is for testing: with half as many more, enough are left for the largest pool
        phantoms(work / "whole", 2 * (3 * most // 4 + 8))
        growing(work / "whole", sorted(options.cases), work)
        pushing(work / "whole", options.push, work)


if __name__ == "__main__":
    main()
