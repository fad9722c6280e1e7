"""One case on its way into a cohort: read, checked, brought to the canonical orientation, written; or refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from hepar.cases import STRUCTURES, Case, Cohort, LabelState, Modality
from hepar.errors import DataError, HeparError, Refusal, one_line
from hepar.imaging.grid_rules import check_grid
from hepar.imaging.volumes import Geometry, canonical, to_array, write_image
from hepar.ingest.checks import check_image, check_mask, check_placement, check_tumour_in_liver, check_volume
from hepar.ingest.parallel import Died
from hepar.ingest.perceptual_hash import PerceptualHash, perceptual_hash
from hepar.ingest.quarantine import Refused, reproducible
from hepar.ingest.sources.files import VOLUME_ENDINGS
from hepar.ingest.sources.source import SourceCase, Volume
from hepar.runtime.artifacts import sha256_file, sha256_json
from hepar.runtime.remote_cache import digests, local
from hepar.runtime.shortages import is_out_of_memory

RULES_VERSION = 7  # raise it when a rule changes: every case is then checked and written anew
READABLE = "every file can be read"
MIN_SECONDS = 600.0  # for a case, whatever its size; a CT of 512 × 512 × 1000 with two masks takes some minutes
MIN_BYTES_PER_SECOND = 2**18  # of its files; a slow core reads and checks ten times as many
FETCH_SECONDS = 4 * 3600.0  # more for files of a store, whose client has time limits of its own


@dataclass(frozen=True)
class Accepted:
    """A case that enters the cohort."""

    case: Case
    perceptual_hash: PerceptualHash


def build_case(source: SourceCase, folder: Path) -> Accepted | Refused:
    """Write a case's canonical volumes into the cohort's `folder`, or say why it is refused.

    `source` has a split. Files of a store are fetched for as long as this takes.
    """
    try:
        source_sha256 = hash_source(source)
    except DataError as error:
        return _refused(source, error)
    with local(source, source.remote) as here:
        try:
            checked = _check(here)
        except DataError as error:
            return _refused(here, error)
        return _write(here, checked, source_sha256, folder)


def refuse_died(source: SourceCase, died: Died) -> Refused:
    """The refusal of a case on which its process died."""
    return _refused(source, Refusal(READABLE, died.reason))


def seconds_to_build(source: SourceCase) -> float:
    """How long a case may take. One that takes longer hangs: good ones take a hundredth of it."""
    size_bytes = 0
    for path in source.files:
        with suppress(OSError, ValueError):
            size_bytes += path.stat().st_size
    return MIN_SECONDS + size_bytes / MIN_BYTES_PER_SECOND + (FETCH_SECONDS if source.remote else 0)


def hash_source(source: SourceCase) -> str:
    """SHA-256 of what a case is made from: its declaration, the content of every file, and `RULES_VERSION`.

    The split is left out. Raises DataError if a file is missing, not regular or outside the source, or if the source
    itself refuses the case.
    """
    if source.fault is not None:
        raise source.fault
    volumes = [volume for volume in (source.image, source.liver, source.tumour) if volume is not None]
    here = [path for path in source.files if path not in source.remote]
    source.check_files()
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
        dict(source.if_empty),
    ]
    contents = [[_settings(volume), [sha256[path] for path in volume.files]] for volume in volumes]
    return sha256_json([RULES_VERSION, declared, contents])


def _settings(item: Any) -> Any:
    """How a volume is read, as JSON: its type and fields at any depth, without the paths of its files."""
    if is_dataclass(item) and not isinstance(item, type):
        return [type(item).__name__, {part.name: _settings(getattr(item, part.name)) for part in fields(item)}]
    if isinstance(item, frozenset):
        return sorted(item)
    if isinstance(item, tuple):
        return [_settings(part) for part in item if not isinstance(part, Path)]
    return None if isinstance(item, Path) else item


def _refused(source: SourceCase, error: DataError) -> Refused:
    """The line of a refusal. DICOM files go by number, since their folders may be named after patients."""
    rule, value = (error.rule, error.value) if isinstance(error, Refusal) else (READABLE, one_line(error))
    names: dict[str, str] = {}
    for number, path in enumerate(source.files, start=1):
        is_volume = path.name.endswith(VOLUME_ENDINGS)
        names[str(path)] = path.name if is_volume else f"file {number} of {len(source.files)}"
        if path in source.remote and not is_volume:
            names[source.remote[path].url] = names[str(path)]
    return Refused(source.case_id, rule, reproducible(value, names))


@dataclass(frozen=True)
class _Checked:
    """What is written of a case that keeps every rule."""

    image: sitk.Image
    masks: Mapping[str, sitk.Image]
    states: Mapping[str, LabelState]
    header: str


def _check(source: SourceCase) -> _Checked:
    """Read and check one case. Raises DataError if it breaks a rule, or a library breaks on it.

    The library's message is left out, since it may quote the file.
    """
    try:
        _check_fetched(source)
        original = _read("image", source.image)
        check_image(original, source.modality)
        masks, states = _read_masks(source, original)
        image = _as_stored(canonical(original), source.modality)
        _check_anatomy(image, masks, source.distances_known)
        return _Checked(image, masks, states, _header(original, source.facts))
    except (HeparError, MemoryError) as error:
        if is_out_of_memory(error):
            raise MemoryError from error
        raise
    except Exception as error:
        raise Refusal(READABLE, f"checking it failed: {type(error).__name__}") from error


def _as_stored(image: sitk.Image, modality: Modality) -> sitk.Image:
    """The volume in the voxel type of a cohort: CT in whole HU as int16, MR as float32."""
    if modality == Modality.MR:
        return sitk.Cast(image, sitk.sitkFloat32)
    is_real = image.GetPixelID() in (sitk.sitkFloat32, sitk.sitkFloat64)
    return sitk.Cast(sitk.Round(image) if is_real else image, sitk.sitkInt16)  # a cast alone would cut off fractions


def _check_fetched(source: SourceCase) -> None:
    """Raise DataError if a fetched header names files that were not fetched with it."""
    if source.remote and (more := [path for path in source.files if not path.is_file()]):
        raise DataError(f"{more[0]} does not exist")


def _write(source: SourceCase, checked: _Checked, source_sha256: str, folder: Path) -> Accepted:
    """Write the canonical volumes of a checked case. Raises StorageError if the disk is full."""
    assert source.split is not None
    image, states = checked.image, checked.states
    volumes = {"image": image, **checked.masks}
    paths = {name: Cohort.volume(source.case_id, name) for name in volumes}
    for name, volume in volumes.items():
        write_image(volume, folder / paths[name])
    sha256 = {f"{name}_sha256": sha256_file(folder / path) for name, path in paths.items()}
    geometry, image_zyx = Geometry.of(image), to_array(image)
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
        split=source.split,
        spacing_mm=geometry.spacing_zyx_mm,
        size=geometry.size_zyx,
        distances_known=source.distances_known,
        licence=source.licence,
        source_sha256=source_sha256,
        voxels_sha256=hashlib.sha256(image_zyx.tobytes()).hexdigest(),
        header=checked.header,
        **sha256,
    )
    return Accepted(case, perceptual_hash(image_zyx, source.modality))


def _read_masks(source: SourceCase, image: sitk.Image) -> tuple[dict[str, sitk.Image], dict[str, LabelState]]:
    """The manual masks in the canonical orientation as uint8, and each structure's state. Raises Refusal."""
    masks: dict[str, sitk.Image] = {}
    states = dict(zip(STRUCTURES, (source.liver_state, source.tumour_state), strict=True))
    for name, volume in zip(STRUCTURES, (source.liver, source.tumour), strict=True):
        if volume is None:
            continue
        mask = _read(f"{name} mask", volume)
        if name in source.if_empty and not to_array(mask).any():
            states[name] = source.if_empty[name]
            continue
        check_mask(name, mask, image, source.modality)
        masks[name] = sitk.Cast(canonical(mask), sitk.sitkUInt8)
    return masks, states


def _read(name: str, volume: Volume) -> sitk.Image:
    """Read the volume called `name`. Raises Refusal if a library breaks on it, so that the other cases go on.

    The library's message is left out, since it may quote the file.
    """
    try:
        image = volume.read()
        check_grid(image)
        return image
    except (HeparError, MemoryError):
        raise
    except Exception as error:
        raise Refusal(READABLE, f"reading the {name} failed: {type(error).__name__}") from error


def _check_anatomy(image: sitk.Image, masks: Mapping[str, sitk.Image], distances_known: bool) -> None:
    """Raise Refusal if the liver's volume or place is implausible, or the tumour lies away from the liver."""
    geometry = Geometry.of(image)
    masks_zyx = {name: to_array(mask) > 0 for name, mask in masks.items()}
    if "liver" not in masks_zyx:
        return
    liver_zyx = masks_zyx["liver"] | masks_zyx["tumour"] if "tumour" in masks_zyx else masks_zyx["liver"]
    if distances_known:
        check_volume(liver_zyx, geometry)
    if "tumour" in masks_zyx:
        check_tumour_in_liver(masks_zyx["tumour"], masks_zyx["liver"], geometry.spacing_zyx_mm)
    check_placement(liver_zyx, to_array(image), geometry.spacing_zyx_mm)


def _header(original: sitk.Image, facts: Mapping[str, str]) -> str:
    """The source's grid, by which a mask is brought back to it, and facts of its header; as JSON."""
    geometry = {
        "size_xyz": original.GetSize(),
        "spacing_xyz_mm": original.GetSpacing(),
        "origin_lps_mm": original.GetOrigin(),
        "direction": original.GetDirection(),
        "voxel_type": original.GetPixelIDTypeAsString(),
    }
    return json.dumps({**facts, **geometry}, sort_keys=True)
