"""Attack hepar with bad inputs, kills, full disks, damaged files and a poisoned remote, and count how each attack ends.

`python benchmarks/faults.py [--inputs N] [--kills N] [--only inputs,kills,runs,…] [--seed N]`

Exits 1 if an attack ends in a traceback, a crash, a hang, a wrong result or outside the folders that it may touch. An
input is accepted right if it is in the cohort with the voxels and the grid that SimpleITK or pydicom read from it; a
killed stage, if it gives the reference's hash when it runs again. The same seed makes the same attacks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from attacks.commands import ROOT
from attacks.inputs import DicomAttack, VolumeAttack, WholeSourceAttack
from attacks.pipeline import (
    STAGES,
    Reference,
    damage_artifacts,
    fill_disks,
    kill_runs,
    kill_stages,
    poison_remote,
)
from attacks.verdicts import Outcome, failures, listing, table

PARTS = ("inputs", "kills", "runs", "disks", "damage", "remotes")
DICOM_SHARE, WHOLE_SHARE = 0.25, 0.04  # of the inputs; an input that is a whole source takes an ingest of its own
MIN_WHOLE = 5  # fewer are left out
RUN_SHARE = 0.2  # of the kills hits `hepar run`; each takes two runs of the pipeline
PROGRESS_EVERY = 20  # attacks, where there is no terminal
SHORT = 5  # kills of a short attack, which tries the first stage alone


def main() -> int:
    arguments = parsed()
    params = ROOT / "params" / "tiny.yaml"
    outcomes: list[Outcome] = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hepar-faults-") as name:
        folder = Path(arguments.keep or name)
        for outcome in attacks(arguments, folder, params):
            outcomes.append(outcome)
            progress = f"{outcome.row}: {len(outcomes)} tried, {len(failures(outcomes))} failures"
            if sys.stderr.isatty():
                print(f"\r\033[K{progress}", end="", file=sys.stderr)
            elif len(outcomes) % PROGRESS_EVERY == 0:
                print(progress, file=sys.stderr, flush=True)
    print(table(outcomes))
    print(f"seed {arguments.seed}, {time.monotonic() - start:.0f} s")
    failed = failures(outcomes)
    if failed:
        print(listing(outcomes, arguments.show))
    return 1 if failed else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--inputs", type=int, default=1000, help="mutated inputs")
    parser.add_argument("--kills", type=int, default=50, help=f"kills; up to {SHORT}, of ingest alone")
    parser.add_argument("--only", default=",".join(PARTS), help="parts of the attack, separated by commas")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=10, help="failures to list of each row and kind")
    parser.add_argument("--keep", help="folder for the attack's files, which stay there")
    arguments = parser.parse_args()
    arguments.only = arguments.only.split(",")
    if unknown := set(arguments.only) - set(PARTS):
        parser.error(f"--only is {', '.join(sorted(unknown))}, must be among {', '.join(PARTS)}")
    return arguments


def attacks(arguments: argparse.Namespace, folder: Path, params: Path) -> Iterator[Outcome]:
    """The outcomes of the parts that are asked for."""
    seed = arguments.seed
    if "inputs" in arguments.only:
        dicom, whole = round(arguments.inputs * DICOM_SHARE), round(arguments.inputs * WHOLE_SHARE)
        yield from VolumeAttack(folder, params, seed).run(arguments.inputs - dicom - whole, seed)
        yield from DicomAttack(folder, params, seed).run(dicom, seed)
        if whole >= MIN_WHOLE:
            yield from WholeSourceAttack(folder, params, seed).run(whole, seed)
    if set(arguments.only) == {"inputs"}:
        return
    short = arguments.kills <= SHORT
    reference = Reference.make(folder / "reference", params, STAGES[:1] if short else STAGES)
    runs = 0 if short else round(arguments.kills * RUN_SHARE)
    if "kills" in arguments.only:
        yield from kill_stages(reference, folder, arguments.kills - runs, seed)
    if "runs" in arguments.only:
        yield from kill_runs(reference, folder, runs, seed)
    if "disks" in arguments.only:
        yield from fill_disks(reference, folder, seed)
    if "damage" in arguments.only:
        yield from damage_artifacts(reference, folder, seed)
    if "remotes" in arguments.only and not short:
        yield from poison_remote(reference, folder, seed)


if __name__ == "__main__":
    sys.exit(main())
