"""The scans in what a user gives: a file, a folder or zip, `s3://` or `dicomweb+https://`; and the series left out."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pydicom.uid

from hepar.cases import Modality
from hepar.errors import DataError
from hepar.imaging.headers import ENDINGS, volume_stem
from hepar.imaging.volumes import check_inside
from hepar.ingest.sources import is_remote
from hepar.ingest.sources.archive import unpacked
from hepar.ingest.sources.dicom import (
    CLASSIC,
    ENHANCED,
    MIN_SLICES,
    Instance,
    Stack,
    is_localiser,
    is_placed,
    read_header,
    stacks,
)
from hepar.ingest.sources.dicom_scan import refused_folders, scan
from hepar.ingest.sources.dicom_volume import DicomVolume
from hepar.ingest.sources.dicomweb import SCHEMES, Server
from hepar.ingest.sources.files import folders, is_zip, safe_id
from hepar.ingest.sources.mask_series import find_mask_series
from hepar.ingest.sources.s3 import Buckets
from hepar.ingest.sources.source import Volume, VolumeFile
from hepar.params import Uneven
from hepar.prediction.folder import is_prediction
from hepar.runtime.artifacts import sha256_file, sha256_json
from hepar.runtime.redaction import redact_address
from hepar.runtime.remote_cache import RemoteFile, local
from hepar.runtime.scratch import scratch_folder

PHASES = ("arterial", "portal-venous", "delayed", "non-contrast")
# parts of the body in BodyPartExamined whose scans do not show the liver; CHEST may reach it
OTHER_PARTS = frozenset(
    (
        *("HEAD", "BRAIN", "SKULL", "FACE", "ORBIT", "JAW", "SINUS", "NECK", "CSPINE", "CAROTID", "BREAST", "HEART"),
        *("CORONARY", "PELVIS", "PROSTATE", "UTERUS", "HIP", "LEG", "THIGH", "KNEE", "ANKLE", "FOOT", "EXTREMITY"),
        *("SHOULDER", "ARM", "ELBOW", "WRIST", "HAND", "FINGER", "TOE"),
    )
)


@dataclass(frozen=True)
class Scan:
    """One volume to predict. `name` is that of a file, or for DICOM one without identifiers; `modality` is that of the
    DICOM header, None without one.

    `source` is the path of a file in the source, after its folder's name if it is the source itself; `folder` is the
    name of that folder. Both are empty for DICOM, whose paths often name a patient. `remote` maps placeholders to the
    files of a store, which `fetched` gets. `source_number` is the position of the source among several, from 1.
    """

    name: str
    image: Volume
    modality: Modality | None = None
    sequence: str = ""
    source: str = ""
    folder: str = ""
    stack: Stack | None = None  # of DICOM slices
    remote: Mapping[Path, RemoteFile] = field(default_factory=dict, repr=False)
    roots: tuple[Path, ...] = ()  # in which all its files lie; anywhere if there are none
    source_number: int | None = None

    def hash(self) -> str:
        """A hash by which a result is known as that of this scan, all of whose files are on this disk.

        It is over the SeriesInstanceUID of DICOM, which it does not reveal, else over the content of all files.
        """
        if self.stack is not None:
            return hashlib.sha256(f"SeriesInstanceUID {self.stack.series}".encode()).hexdigest()
        return sha256_json([sha256_file(path) for path in self.image.files])

    def qualified(self) -> Scan:
        """The scan with the name of its folder before its own; itself if that is not known, or there already."""
        return replace(self, name=f"{self.folder}-{self.name}", folder="") if self.folder else self

    @contextmanager
    def fetched(self) -> Iterator[Scan]:
        """The scan with all its files on this disk. Raises DataError if one lies out of the source."""
        if self.roots and not self.remote:
            check_inside(self.image.files, self.roots)
        with local(self, self.remote) as here:
            yield here


@dataclass(frozen=True)
class LeftOut:
    """A series or file that is not predicted, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What a source holds: the scans to predict, each with a name of its own, and what is left out."""

    scans: tuple[Scan, ...]
    left_out: tuple[LeftOut, ...] = ()


@contextmanager
def open_scans(source: str, uneven: Uneven = "refuse") -> Iterator[Found]:
    """The scans of a source; unpacked files and those of a store last as long as the context.

    A file is a scan. In a folder, a zip or behind an address each CT or MR series that may show the liver is one, or
    without DICOM files each NIfTI, NRRD or MetaImage file that no prediction wrote. `uneven` says what to do with
    tilted or uneven slices, as `ingest.uneven_slices` does. Raises DataError if the source does not exist or is or
    holds no scan at all.
    """
    with scratch_folder("remote") as scratch:
        store: Server | Buckets | None = None
        if source.startswith(SCHEMES):
            store = server = Server(scratch, source)
            path = server.mirror()
        elif is_remote(source):
            store = buckets = Buckets(scratch)
            path = buckets.mirror(source)
        else:
            path = Path(source)
        if not path.exists():
            raise DataError(f"{source}: no such file or folder")
        if path.is_file() and not is_zip(path):
            if read := _as_dicom(path):
                yield _in_instances(read, (path,), uneven)
            elif path.name.lower().endswith(ENDINGS):
                yield Found((_file_scan(path, path.parent.parent),))
            else:
                raise DataError(
                    f"{redact_address(source)} is no scan: give a folder, zip or file of DICOM, or a file whose name"
                    f" ends in {', '.join(ENDINGS)}"
                )
            return
        with unpacked(path) as opened:
            found = _in_folder(opened.folder, (opened.folder, path), uneven)
            refused = [LeftOut(case.case_id, str(case.fault)) for case in opened.refused]
            if not found.scans and not found.left_out and not refused:
                raise DataError(f"{redact_address(source)}: no DICOM series and no scan in {', '.join(ENDINGS)}")
            scans = [replace(item, remote=_remote_files(item, store)) for item in found.scans]
            yield Found(tuple(scans), (*found.left_out, *refused))


def _remote_files(item: Scan, store: Server | Buckets | None) -> dict[Path, RemoteFile]:
    if store is None:
        return {}
    resolved = {path: path.resolve() for path in item.image.files}
    return {path: store.remote(real) for path, real in resolved.items() if real.is_relative_to(store.root)}


def _as_dicom(path: Path) -> list[Instance]:
    """The header of a file of DICOM, such as a multi-frame image; none of any other file."""
    return [found] if (found := read_header(path)) else []


def _file_scan(path: Path, base: Path) -> Scan:
    """The scan of a file other than DICOM; `source` is its path below `base`."""
    folder = path.parent.resolve() if path.parent.name in ("", "..") else path.parent
    source = path.relative_to(base).as_posix()
    return Scan(safe_id(volume_stem(path)), VolumeFile(path), source=source, folder=safe_id(folder.name))


def _in_folder(folder: Path, roots: tuple[Path, ...], uneven: Uneven) -> Found:
    instances, files = list(scan(folder)), _volumes(folder)
    if instances:
        found = _in_instances(instances, roots, uneven)
        beside = [LeftOut(path.name, "it lies beside DICOM: give it by itself") for path in files]
        return Found(_uniquely_named(found.scans), (*found.left_out, *beside))
    return Found(_uniquely_named([replace(_file_scan(path, folder), roots=roots) for path in files]))


def _volumes(folder: Path) -> list[Path]:
    """The files in a folder that may be scans, but for hidden ones and the results of predictions."""
    places = [part for part in folders(folder) if not is_prediction(part)]
    files = [path for part in places for path in sorted(part.iterdir()) if path.name.lower().endswith(ENDINGS)]
    return [path for path in files if path.is_file() and not path.name.startswith(".")]


def _in_instances(instances: Sequence[Instance], roots: tuple[Path, ...], uneven: Uneven) -> Found:
    scans, left_out = [], [LeftOut(case.case_id, str(case.fault)) for case in refused_folders(instances)]
    every = stacks(instances)
    masks = {series.stack.paths: series.structure for series in find_mask_series(every) if series.is_read}
    for stack in every:
        if reason := _why_not(stack, masks):
            left_out.append(LeftOut(_stack_name(stack), reason))
        else:
            volume = DicomVolume(stack.paths, uneven)
            made = Scan(_stack_name(stack), volume, stack.modality, _sequence(stack), stack=stack, roots=roots)
            scans.append(made)
    known = {stack.series for stack in every}
    for uid, members in _by_series(instances).items():
        if uid not in known:
            left_out.append(LeftOut(_series_name(members[0]), _why_no_volume(members)))
    return Found(tuple(scans), tuple(left_out))


def _by_series(instances: Iterable[Instance]) -> dict[str, list[Instance]]:
    series: dict[str, list[Instance]] = {}
    for instance in instances:
        if uid := instance.get("SeriesInstanceUID"):
            series.setdefault(str(uid), []).append(instance)
    return series


def _why_not(stack: Stack, masks: Mapping[tuple[Path, ...], str]) -> str:
    """Why a volume is not predicted; empty if it is. `masks` are structures by the files of their masks."""
    if stack.fault is not None:
        return str(stack.fault)
    if structure := masks.get(stack.paths):
        return f"it is a mask of the {structure} by its name and two values"
    words = re.findall(r"[A-Z]+", str(stack.first.get("BodyPartExamined") or "").upper())
    if words and all(word in OTHER_PARTS for word in words):
        return f"BodyPartExamined is {' '.join(words)}, which does not show the liver"
    return ""


def _why_no_volume(members: Sequence[Instance]) -> str:
    """Why the files of a series form no volume."""
    kind = members[0].get("SOPClassUID")
    if kind not in {**CLASSIC, **ENHANCED}:
        return f"it is no image of CT or MR but {pydicom.uid.UID(str(kind)).name}"
    if len(members) < MIN_SLICES:
        return f"a series has at least {MIN_SLICES} slices: {len(members)}"
    slices = [member for member in members if is_placed(member) and not is_localiser(member)]
    if not slices:
        return f"none of its {len(members)} files is a slice with a place: localisers, projections or captures"
    return f"no {MIN_SLICES} of its {len(slices)} slices have one orientation, spacing and size"


def _stack_name(stack: Stack) -> str:
    parts = [
        _series_name(stack.first),
        str(stack.modality),
        _sequence(stack),
        str(stack.number + 1) if stack.number else "",
    ]
    return "-".join(part.lower() for part in parts if part)


def _sequence(stack: Stack) -> str:
    """Phase or sequence; of a CT only a phase, since protocols of whole studies may name a sequence of MR."""
    return stack.sequence if stack.modality == Modality.MR or stack.sequence in PHASES else ""


def _series_name(instance: Instance) -> str:
    """A name without identifiers: descriptions may hold anything, but a number of up to six digits is a number."""
    number = str(instance.get("SeriesNumber") or "")
    return f"series-{number}" if re.fullmatch(r"\d{1,6}", number) else "series"


def _uniquely_named(scans: Sequence[Scan]) -> tuple[Scan, ...]:
    """The scans: where names clash, with those of their folders before them; a number behind those that still do."""
    count = Counter(item.name for item in scans)
    qualified = [item.qualified() if count[item.name] > 1 else item for item in scans]
    names = unique_names(item.name for item in qualified)
    return tuple(replace(item, name=name) for item, name in zip(qualified, names, strict=True))


def unique_names(names: Iterable[str]) -> list[str]:
    """The names, with -2, -3, … behind each that an earlier one has."""
    given: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in given:
            number += 1
            candidate = f"{name}-{number}"
        given.append(candidate)
    return given
