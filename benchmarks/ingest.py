"""Ingest: cases a second and peak memory as the cohort grows, and DICOM to a canonical volume against other ways.

`python benchmarks/ingest.py [--cases 1 10 100 1000] [--dicom ZIP_OR_FOLDER]`. The first part ingests phantoms of a
written table, then once more unchanged. The second reads one DICOM series (CHAOS CT of 78 slices in the README's
figure) and writes it as NIfTI: by hepar, by SimpleITK's series reader alone, and by dicom2nifti.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import SimpleITK as sitk

from hepar.params import load_params
from hepar.phantoms import write_phantoms
from hepar.readers import open_source
from hepar.readers.archive import unpacked
from hepar.volumes import canonical, write_image

ROOT = Path(__file__).parents[1]
SIZE_ZYX = (48, 72, 72)
REPEATS = 5


def tree_mib(pid: int) -> float:
    """Resident memory of a process and all below it, shared pages counted once for each (Linux)."""
    total, waiting = 0.0, [pid]
    while waiting:
        process = waiting.pop()
        try:
            status = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("Pss:")) / 1024
            for task in Path(f"/proc/{process}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (OSError, ValueError):
            continue
    return total


@contextmanager
def watched(process: subprocess.Popen[bytes]) -> Iterator[list[float]]:
    """The memory of a process tree in MiB, sampled ten times a second; the list's only item is the peak."""
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            peak[0] = max(peak[0], tree_mib(process.pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def ingest(table: Path, cohort: Path, params: Path) -> tuple[float, float]:
    """Seconds and peak MiB of `hepar ingest` in a process of its own."""
    start = time.perf_counter()
    command = [Path(sys.executable).with_name("hepar"), "ingest", "--source", table, "--cohort", cohort]
    process = subprocess.Popen(
        [*command, "--params", params], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    with watched(process) as peak:
        _, said = process.communicate()
    seconds = time.perf_counter() - start
    # one case cannot be trained on: it is read and written all the same, and then said so
    if process.returncode not in (0, 2) or b"Traceback" in said:
        raise SystemExit(said.decode())
    return seconds, peak[0]


def growing(counts: list[int], work: Path) -> None:
    params = work / "params.yaml"
    params.write_text(f"extends: {ROOT / 'params.yaml'}\ningest:\n  max_refused_share: 1.0\n")
    table = write_phantoms(work / "source", cases=max(counts), seed=11, size_zyx=SIZE_ZYX)
    header, *rows = table.read_text().splitlines()
    print(f"phantoms of {'×'.join(map(str, SIZE_ZYX))} voxels")
    print("cases  seconds  cases/s  peak MiB  again, unchanged: seconds")
    for count in counts:
        part = _table(table, header, rows[:count])
        seconds, peak = ingest(part, work / f"cohort-{count}", params)
        again = ingest(part, work / f"cohort-{count}", params)[0]
        print(f"{count:5d}  {seconds:7.1f}  {count / seconds:7.1f}  {peak:8.0f}  {again:7.1f}", flush=True)


def _table(table: Path, header: str, rows: list[str]) -> Path:
    part = table.with_name(f"cohort-{len(rows)}.csv")
    part.write_text("\n".join([header, *rows]) + "\n")
    return part


def series(source: Path, work: Path) -> None:
    import dicom2nifti

    params = load_params(ROOT / "params.yaml").ingest

    def by_hepar() -> None:
        with open_source(str(folder), params) as cases:
            volume = canonical(cases[0].image.read())
            write_image(sitk.Cast(volume, sitk.sitkInt16), work / "hepar.nii.gz")

    def by_simpleitk() -> None:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(place)))
        sitk.WriteImage(reader.Execute(), str(work / "simpleitk.nii.gz"), useCompression=True)

    def by_dicom2nifti() -> None:
        dicom2nifti.dicom_series_to_nifti(str(place), str(work / "dicom2nifti.nii.gz"), reorient_nifti=True)

    os.environ.setdefault("HEPAR_PATIENT_KEY", "a key of the benchmark")
    with unpacked(source) as folder:
        with open_source(str(folder), params) as cases:
            place = cases[0].image.files[0].parent
            print(f"\nDICOM series of {len(cases[0].image.files)} slices to NIfTI, the best of {REPEATS}")
        ways = {"hepar": by_hepar, "SimpleITK": by_simpleitk, "dicom2nifti": by_dicom2nifti}
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(REPEATS):  # in turns, so that what else the machine does meets all of them
            for name, way in ways.items():
                best[name] = min(best[name], _seconds(way))
    for name, seconds in best.items():
        print(f"{name:12s} {seconds:6.2f} s")
    print(f"hepar takes {best['hepar'] / min(best['SimpleITK'], best['dicom2nifti']):.2f} of the faster other way")


def _seconds(way: Callable[[], None]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, nargs="*", default=[1, 10, 100, 1000])
    parser.add_argument("--dicom", type=Path, default=ROOT.parent / "shared" / "data" / "chaos-ct-dicom.zip")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.cases:
            growing(sorted(options.cases), Path(name))
        if options.dicom.exists():
            series(options.dicom, Path(name))
        else:
            print(f"no DICOM series at {options.dicom}: that part was left out")


if __name__ == "__main__":
    main()
