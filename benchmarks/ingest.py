"""Ingest of growing cohorts, DICOM reading against other readers, patches of preprocessed arrays against other formats.

`python benchmarks/ingest.py [--cases 1 10 100 1000] [--dicom ZIP_OR_FOLDER] [--no-patches]`:

1. phantoms of a table are ingested, then ingested again unchanged;
2. one DICOM series (for README: CHAOS CT, 78 slices) is written as NIfTI by hepar, by SimpleITK's series reader alone,
   and by dicom2nifti;
3. random patches of 128³ with their labels are read from a preprocessed case of 200×512×512, from `.nii.gz` files, and
   from files in the format of nnU-Net v2: Blosc2 with zstd at level 8, float32, chunks of 1 MiB and blocks of 16 KiB.
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
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import SimpleITK as sitk

from hepar.cases import Modality
from hepar.imaging.preprocessing import PreprocessingPlan, normalise
from hepar.imaging.volumes import canonical, to_array, write_image
from hepar.ingest.sources import open_source
from hepar.ingest.sources.archive import unpacked
from hepar.ingest.sources.source import Volume
from hepar.ingest.sources.table import read_table
from hepar.params import load_params
from hepar.phantoms import FULLY_LABELLED, CohortDesign, write_phantoms
from hepar.pool.arrays import PreprocessedArrays
from hepar.pool.targets import FULL, Targets
from hepar.training.sampling import cut

ROOT = Path(__file__).parents[1]
SIZE_ZYX = (48, 72, 72)
REPEATS = 5


def tree_mib(pid: int) -> float:
    """Proportional memory (PSS) of a process and its descendants: shared pages are divided among them (Linux)."""
    total, pids = 0.0, [pid]
    while pids:
        process = pids.pop()
        try:
            status = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("Pss:")) / 1024
            for task in Path(f"/proc/{process}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
        except (OSError, ValueError):
            continue
    return total


@contextmanager
def watched(process: subprocess.Popen[bytes]) -> Iterator[list[float]]:
    """Yields a list of one item, the peak memory of a process tree in MiB, sampled ten times a second."""
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
    command = [str(Path(sys.executable).with_name("hepar")), "ingest"]
    command += ["--source", str(table), "--cohort", str(cohort), "--params", str(params)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with watched(process) as peak:
        _, errors = process.communicate()
    seconds = time.perf_counter() - start
    # a cohort too small to train on is read and written before it is refused with exit code 2
    if process.returncode not in (0, 2) or b"Traceback" in errors:
        raise SystemExit(errors.decode())
    return seconds, peak[0]


def growing(counts: list[int], work: Path) -> None:
    """Time and memory of ingest for each number of phantoms, first and again unchanged."""
    params = work / "params.yaml"
    params.write_text(f"extends: {ROOT / 'params.yaml'}\ningest:\n  max_refused_share: 1.0\n")
    table = write_phantoms(work / "source", cases=max(counts), seed=11, size_zyx=SIZE_ZYX)
    header, *rows = table.read_text().splitlines()
    print(f"phantoms of {'×'.join(map(str, SIZE_ZYX))} voxels")
    print("cases  seconds  cases/s  peak MiB  seconds, again unchanged")
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
    """One DICOM series to NIfTI by three readers."""
    import dicom2nifti

    params = load_params(ROOT / "params.yaml").ingest

    def by_hepar() -> None:
        with open_source(str(opened.folder), params) as cases:
            volume = canonical(cases[0].image.read())
            write_image(sitk.Cast(volume, sitk.sitkInt16), work / "hepar.nii.gz")

    def by_simpleitk() -> None:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(place)))
        sitk.WriteImage(reader.Execute(), str(work / "simpleitk.nii.gz"), useCompression=True)

    def by_dicom2nifti() -> None:
        dicom2nifti.dicom_series_to_nifti(str(place), str(work / "dicom2nifti.nii.gz"), reorient_nifti=True)

    os.environ.setdefault("HEPAR_PATIENT_KEY", "a key of the benchmark")
    with unpacked(source) as opened:
        with open_source(str(opened.folder), params) as cases:
            place = cases[0].image.files[0].parent
            print(f"\nDICOM series of {len(cases[0].image.files)} slices to NIfTI, the best of {REPEATS}")
        readers = {"hepar": by_hepar, "SimpleITK": by_simpleitk, "dicom2nifti": by_dicom2nifti}
        best = dict.fromkeys(readers, float("inf"))
        for _ in range(REPEATS):  # in turns, so that other load affects all of them
            for name, convert in readers.items():
                best[name] = min(best[name], _seconds(convert))
    for name, seconds in best.items():
        print(f"{name:12s} {seconds:6.2f} s")
    other = min(best["SimpleITK"], best["dicom2nifti"])
    print(f"hepar takes {best['hepar'] / other:.2f} of the time of the faster other reader")


def enlarged(volume: Volume) -> np.ndarray:
    """The voxels of a volume, zyx, each repeated four times along each axis."""
    return to_array(canonical(volume.read())).repeat(4, 0).repeat(4, 1).repeat(4, 2)


def patches(work: Path) -> None:
    """Random patches of a large case from three formats in turns."""
    rng = np.random.default_rng(1)
    case = read_table(write_phantoms(work / "large", 8, 3, (50, 128, 128), CohortDesign(FULLY_LABELLED, ("CT",))))[0]
    assert case.liver is not None
    assert case.tumour is not None
    masks_zyx = [enlarged(mask) for mask in (case.liver, case.tumour)]
    image_zyx = (enlarged(case.image) + rng.normal(0, 12, masks_zyx[0].shape)).astype(np.int16)
    plan = PreprocessingPlan(spacing_zyx_mm=(1.0, 1.0, 1.0), window_hu=(-150.0, 250.0), mr_percentiles=(2.0, 98.0))
    weight_zyx = np.full(image_zyx.shape, FULL, np.uint8)
    preprocessed_zyx = normalise(image_zyx.astype(np.float32), case.modality, plan)

    PreprocessedArrays.encode(
        preprocessed_zyx, Targets(masks_zyx[0] > 0, masks_zyx[1] > 0, weight_zyx, weight_zyx)
    ).save(work / "ours")
    for name, array in (("image", image_zyx), ("liver", masks_zyx[0]), ("tumour", masks_zyx[1])):
        write_image(sitk.GetImageFromArray(array), work / "nifti" / f"{name}.nii.gz")
    settings: dict[str, Any] = {"mode": "w", "cparams": {"codec": blosc2.Codec.ZSTD, "clevel": 8, "nthreads": 1}}
    (work / "nnunet").mkdir()
    labels_zyx = (masks_zyx[0] + masks_zyx[1]).astype(np.int8)
    for name, array, block in (("image", preprocessed_zyx.astype(np.float32), 16), ("labels", labels_zyx, 32)):
        shape = {"chunks": (1, 64, 64, 64), "blocks": (1, 16, block, block)}
        blosc2.asarray(array[None], urlpath=str(work / "nnunet" / f"{name}.b2nd"), **shape, **settings)

    def ours(part: tuple[slice, ...], centre: np.ndarray) -> None:
        cut(PreprocessedArrays.open(work / "ours"), centre, (128, 128, 128), Modality.CT)

    def nifti(part: tuple[slice, ...], centre: np.ndarray) -> None:
        for name in ("image", "liver", "tumour"):
            sitk.GetArrayFromImage(sitk.ReadImage(str(work / "nifti" / f"{name}.nii.gz")))[part].copy()

    def nnunet(part: tuple[slice, ...], centre: np.ndarray) -> None:
        for name in ("image", "labels"):
            file = str(work / "nnunet" / f"{name}.b2nd")
            blosc2.open(file, mode="r", mmap_mode="r", dparams={"nthreads": 1})[(slice(None), *part)]

    formats = {"ours": ours, "nifti": nifti, "nnunet": nnunet}
    seconds: dict[str, list[float]] = {name: [] for name in formats}
    for turn in range(40):
        start = [int(rng.integers(n - 128 + 1)) for n in image_zyx.shape]
        part, centre = tuple(slice(a, a + 128) for a in start), np.array(start, np.int32) + 64
        for name, read in formats.items():
            if name != "nifti" or turn % 10 == 0:  # it is slow
                seconds[name].append(_seconds(partial(read, part, centre)))
    print("\npatches of 128³ of a case of 200×512×512, the median")
    for name, values in seconds.items():
        stored = sum(path.stat().st_size for path in (work / name).iterdir())
        ratio = float(np.median(values) / np.median(seconds["ours"]))
        print(f"{name:7s} {1000 * float(np.median(values)):8.1f} ms  {ratio:6.1f} of ours  {stored / 2**20:6.0f} MiB")


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, nargs="*", default=[1, 10, 100, 1000])
    parser.add_argument("--dicom", type=Path, help="a DICOM series; without one, that part is left out")
    parser.add_argument("--no-patches", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.cases:
            growing(sorted(options.cases), Path(name))
        if options.dicom is None:
            print("no --dicom given: the DICOM series is left out")
        else:
            series(options.dicom, Path(name))
        if not options.no_patches:
            patches(Path(name))


if __name__ == "__main__":
    main()
