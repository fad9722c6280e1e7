"""Stage 1: read a source, check and canonicalise its cases, split them by patient.

Writes a cohort: `cases.parquet`, `volumes/<case>/*.nii.gz`, `perceptual_hashes.npz`, and `quarantine.csv` with every refused
case, the rule it breaks and the value. A case that an earlier cohort in the same place holds, made from the same files,
is linked.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import SimpleITK as sitk

from hepar.cases import Case, Cohort, LabelState, Modality, Split, check_patients
from hepar.errors import DataError, HeparError, Refusal
from hepar.imaging.volumes import Geometry, canonical, to_array, write_image
from hepar.ingest.checks import check_image, check_mask, check_placement, check_tumour_in_liver, check_volume
from hepar.ingest.perceptual_hash import FILE as PERCEPTUAL_HASHES
from hepar.ingest.perceptual_hash import PerceptualHash, Seen, load_perceptual_hashes, perceptual_hash
from hepar.ingest.sources import SourceCase, open_source, read_splits
from hepar.ingest.sources.files import VOLUME_ENDINGS
from hepar.ingest.sources.remote_cache import digests, local
from hepar.ingest.sources.source import Volume
from hepar.params import IngestParams, SplitParams
from hepar.runtime.artifacts import link, sha256_file, sha256_json, writing
from hepar.runtime.device import available_cores
from hepar.runtime.progress import current, stage

KIND = "cohort"
QUARANTINE = "quarantine.csv"
RULES_VERSION = 4  # a new one has every case checked and written anew
MIN_PARALLEL_CASES = 16  # below it, starting processes takes longer than the work
AHEAD = 2  # cases a process has waiting, so that results in memory stay few


@dataclass(frozen=True)
class Accepted:
    """A case that enters the cohort."""

    case: Case
    perceptual_hash: PerceptualHash


@dataclass(frozen=True)
class Refused:
    """A line of the quarantine list."""

    case_id: str
    rule: str
    value: str


def run(source: str, cohort: Path, params: IngestParams) -> None:
    """Ingest `source` (a table, a folder or zip of a known layout, or `phantoms`) into the folder `cohort`.

    Raises DataError where the source is empty, too many cases are refused, or what is left cannot be trained on. The
    quarantine list then lies beside the cohort, as `<cohort>.quarantine.csv`.
    """
    rejected = cohort.with_name(f"{cohort.name}.{QUARANTINE}")
    with stage("ingest"), open_source(source, params) as listed, writing(cohort, KIND, {}) as folder:
        _check_ids(listed)
        if params.split_from:
            listed = _officially_split(listed, read_splits(params.split_from))
        accepted, refused = _ingest(listed, folder, params.split, _earlier(cohort))
        _write_quarantine(folder / QUARANTINE, refused)
        rejected.unlink(missing_ok=True)
        if len(refused) > params.max_refused_share * len(listed):
            _write_quarantine(rejected, refused)
            first = refused[0]
            raise DataError(
                f"{len(refused)} of {len(listed)} cases are refused, more than ingest.max_refused_share"
                f" ({params.max_refused_share:g}) allows; {rejected} lists them; the first is case {first.case_id}:"
                f" {first.rule}: {first.value}"
            )
        check_patients(accepted)
        check_trainable(accepted)
        Cohort(folder, tuple(sorted(accepted, key=lambda case: case.case_id))).save()


def _check_ids(listed: Sequence[SourceCase]) -> None:
    seen: set[str] = set()
    for case in listed:
        if case.case_id in seen:
            raise DataError(f"case {case.case_id}: the id is used twice")
        seen.add(case.case_id)


def _officially_split(listed: Sequence[SourceCase], official: Mapping[str, Split]) -> list[SourceCase]:
    """The cases with the splits that a table gives to them or their patients. Raises DataError where it names none."""
    given = {case.case_id: official.get(case.case_id, official.get(case.patient_id)) for case in listed}
    if not any(given.values()):
        raise DataError(f"ingest.split_from names none of the source's cases and patients, such as {listed[0].case_id}")
    return [replace(case, split=given[case.case_id] or case.split) for case in listed]


def _earlier(cohort: Path) -> Cohort | None:
    """The cohort that is there already, if it is whole."""
    try:
        return Cohort.load(cohort) if cohort.is_dir() else None
    except DataError:
        return None


def _ingest(
    listed: Sequence[SourceCase], folder: Path, split: SplitParams, earlier: Cohort | None
) -> tuple[list[Case], list[Refused]]:
    accepted: list[Case] = []
    refused: list[Refused] = []
    seen = Seen()
    kept = _unchanged(listed, earlier) if earlier else {}
    jobs = [case for case in listed if case.case_id not in kept]
    with current().counting(len(listed), "cases") as count, _many(len(jobs)) as run_all:
        made = run_all(partial(_ingest_case, folder=folder, split=split), jobs)
        for source in listed:
            result: Accepted | Refused | None = kept.get(source.case_id)
            if earlier is not None and isinstance(result, Accepted):
                result = replace(result, case=replace(result.case, split=source.split or split_of(source, split)))
                _link(result.case, earlier.folder, folder)
            else:
                result = next(made)
            if isinstance(result, Accepted):
                result = _twin(result, seen) or result
            if isinstance(result, Accepted):
                accepted.append(result.case)
                seen.add(result.case, result.perceptual_hash)
            else:
                shutil.rmtree(folder / "volumes" / result.case_id, ignore_errors=True)
                refused.append(result)
            count.advance(accepted=str(len(accepted)), refused=str(len(refused)))
    seen.save(folder / PERCEPTUAL_HASHES)
    return accepted, refused


def _unchanged(listed: Sequence[SourceCase], earlier: Cohort) -> dict[str, Accepted]:
    """The cases of an earlier cohort whose sources are as they were then; files are hashed, several at a time."""
    found = load_perceptual_hashes(earlier.folder / PERCEPTUAL_HASHES)
    known = {case.case_id: Accepted(case, found[case.case_id]) for case in earlier if case.case_id in found}

    def is_same(source: SourceCase) -> bool:
        try:
            return known[source.case_id].case.source_sha256 == _origin(source)
        except DataError:
            return False

    candidates = [source for source in listed if source.case_id in known]
    with ThreadPoolExecutor(available_cores()) as executor:
        same = executor.map(is_same, candidates)
        return {source.case_id: known[source.case_id] for source, is_it in zip(candidates, same, strict=True) if is_it}


def _twin(accepted: Accepted, seen: Seen) -> Refused | None:
    """The refusal of a scan that an earlier case is: by its voxels, or nearly so and under another patient's name."""
    case = accepted.case
    rule = "no scan is there twice"
    if same := seen.same(case):
        return Refused(case.case_id, rule, f"same voxels as case {same[-1]}")
    if alike := seen.alike(case, accepted.perceptual_hash):
        value = (
            f"as case {alike.case_id} of another patient, resampled or mirrored: correlation {alike.correlation:.3f}"
        )
        return Refused(case.case_id, rule, value)
    return None


Work = Callable[[SourceCase], "Accepted | Refused"]


@contextmanager
def _many(count: int) -> Iterator[Callable[[Work, Sequence[SourceCase]], Iterator[Accepted | Refused]]]:
    """A `map` in order over all cores that never holds more than a few results; a plain one for few cases."""
    workers = available_cores()
    if count < MIN_PARALLEL_CASES or workers == 1:
        yield lambda work, jobs: map(work, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as executor:

        def run_all(work: Work, jobs: Sequence[SourceCase]) -> Iterator[Accepted | Refused]:
            waiting: deque[Future[Accepted | Refused]] = deque()
            for job in jobs:
                waiting.append(executor.submit(work, job))
                if len(waiting) >= AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        yield run_all


def _one_thread() -> None:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _ingest_case(source: SourceCase, folder: Path, split: SplitParams) -> Accepted | Refused:
    """The case as it enters the cohort, its volumes written; or why it does not."""
    try:
        origin = _origin(source)
    except DataError as error:
        return _refused(source, error)
    with local(source, source.remote) as here:
        try:
            return _make(here, origin, folder, split)
        except DataError as error:
            return _refused(here, error)


def _refused(source: SourceCase, error: DataError) -> Refused:
    """The line of a refusal. Files go by their names, of DICOM by their numbers: folders may be named by patients."""
    rule, value = ("every file can be read", str(error))
    if isinstance(error, Refusal):
        rule, value = error.rule, error.value
    for number, path in enumerate(source.files, start=1):
        is_volume = path.name.endswith(VOLUME_ENDINGS)
        value = value.replace(str(path), path.name if is_volume else f"file {number} of {len(source.files)}")
    return Refused(source.case_id, rule, value)


def _origin(source: SourceCase) -> str:
    """Hash of what a case is made from: what its source declares, and every file."""
    volumes = [volume for volume in (source.image, source.liver, source.tumour) if volume is not None]
    here = [path for path in source.files if path not in source.remote]
    if missing := [path for path in here if not path.is_file()]:
        raise DataError(f"{missing[0]} does not exist")
    sha256 = digests(source.remote) | {path: sha256_file(path) for path in here}
    declared = [
        source.case_id,
        source.patient_id,
        str(source.modality),
        source.sequence,
        str(source.liver_state),
        str(source.tumour_state),
        source.source,
        source.licence,
        source.distances_known,
        dict(source.facts),
    ]
    contents = [[type(volume).__name__, [sha256[path] for path in volume.files]] for volume in volumes]
    return sha256_json([RULES_VERSION, declared, contents])


def _link(case: Case, earlier: Path, folder: Path) -> None:
    """Take over the volumes of an earlier cohort without copying them, where the file system can."""
    for name in filter(None, (case.image, case.liver, case.tumour)):
        link(earlier / name, folder / name)


def _make(source: SourceCase, origin: str, folder: Path, split: SplitParams) -> Accepted:
    """Check one case and write its canonical volumes. Raises Refusal."""
    original = _read(source.image)
    check_image(original, source.modality)
    states = {"liver": source.liver_state, "tumour": source.tumour_state}
    masks: dict[str, sitk.Image] = {}
    for name, volume in (("liver", source.liver), ("tumour", source.tumour)):
        if volume is None:
            continue
        mask = _read(volume)
        if source.empty_is_absent and not to_array(mask).any():
            states[name] = LabelState.ABSENT
            continue
        check_mask(name, mask, original, source.modality)
        masks[name] = sitk.Cast(canonical(mask), sitk.sitkUInt8)

    image = sitk.Cast(canonical(original), sitk.sitkInt16 if source.modality == Modality.CT else sitk.sitkFloat32)
    _check_anatomy(image, masks, source.distances_known)
    files = {"image": image} | masks
    paths = {name: f"volumes/{source.case_id}/{name}.nii.gz" for name in files}
    for name, volume in files.items():
        write_image(volume, folder / paths[name])
    hashes = {f"{name}_sha256": sha256_file(folder / path) for name, path in paths.items()}
    geometry, voxels = Geometry.of(image), to_array(image)
    case = Case(
        case_id=source.case_id,
        patient_id=source.patient_id,
        source=source.source,
        modality=source.modality,
        sequence=source.sequence,
        image=paths["image"],
        liver=paths.get("liver", ""),
        tumour=paths.get("tumour", ""),
        liver_state=states["liver"],
        tumour_state=states["tumour"],
        split=source.split or split_of(source, split),
        spacing_mm=geometry.spacing_zyx_mm,
        size=geometry.size_zyx,
        distances_known=source.distances_known,
        licence=source.licence,
        source_sha256=origin,
        voxels_sha256=hashlib.sha256(voxels.tobytes()).hexdigest(),
        header=_header(original, source.facts),
        **hashes,
    )
    return Accepted(case, perceptual_hash(voxels, source.modality))


def _read(volume: Volume) -> sitk.Image:
    """Read a volume. Raises Refusal where a library breaks on it: whatever a file holds, the other cases go on.

    What the library says is left out, since it may quote the file.
    """
    try:
        return volume.read()
    except (HeparError, MemoryError):
        raise
    except Exception as error:
        raise Refusal("every file can be read", f"{type(volume).__name__} ends in {type(error).__name__}") from error


def _check_anatomy(image: sitk.Image, masks: Mapping[str, sitk.Image], distances_known: bool) -> None:
    """What masks have to be in a patient: the liver of a size and in a place, the tumour near it."""
    geometry = Geometry.of(image)
    arrays = {name: to_array(mask) > 0 for name, mask in masks.items()}
    if "liver" not in arrays:
        return
    liver = arrays["liver"] | arrays["tumour"] if "tumour" in arrays else arrays["liver"]
    if distances_known:
        check_volume(liver, geometry)
    if "tumour" in arrays:
        check_tumour_in_liver(arrays["tumour"], arrays["liver"], geometry.spacing_zyx_mm)
    check_placement(liver, to_array(image), geometry.spacing_zyx_mm)


def _header(original: sitk.Image, facts: Mapping[str, str]) -> str:
    geometry = {
        "size_xyz": original.GetSize(),
        "spacing_xyz_mm": original.GetSpacing(),
        "origin_lps_mm": original.GetOrigin(),
        "direction": original.GetDirection(),
        "voxel_type": original.GetPixelIDTypeAsString(),
    }
    return json.dumps({**facts, **geometry}, sort_keys=True)


def split_of(case: SourceCase, params: SplitParams) -> Split:
    """The split of a patient whom the source assigns to none: by a hash of the id alone.

    So all scans of a patient share it, and it stays the same whatever is added to the cohort or labelled later.
    """
    digest = hashlib.sha256(case.patient_id.encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < params.test:
        return Split.TEST
    return Split.VAL if position < params.test + params.val else Split.TRAIN


def check_trainable(cases: Sequence[Case]) -> None:
    """Raise DataError where the two stages could not run on these cases, naming what is missing."""
    for modality in Modality:
        members = [case for case in cases if case.modality == modality]
        if not members:
            raise DataError(f"the cohort has no {modality} case: a liver teacher of each modality is needed")
        if not any(case.split == Split.TRAIN and case.liver_state == LabelState.MANUAL for case in members):
            raise DataError(f"the cohort has no {modality} training case with a manual liver: its teacher cannot learn")
        if not any(case.split == Split.TEST and case.liver_state == LabelState.MANUAL for case in members):
            raise DataError(f"the cohort has no {modality} test case with a manual liver: it could not be evaluated")
    if not any(case.split == Split.TRAIN and case.tumour_state == LabelState.MANUAL for case in cases):
        raise DataError("the cohort has no training case with a manual tumour: there is nothing to learn tumours from")


def _write_quarantine(path: Path, refused: Sequence[Refused]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case_id", "rule", "value"])
        writer.writerows((line.case_id, line.rule, line.value) for line in refused)
