"""One case on its way into a cohort: read, checked, brought to the canonical orientation, written; or refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk

from hepar.cases import STRUCTURES, Case, Cohort, LabelState, Modality
from hepar.errors import DataError, HeparError, Refusal
from hepar.imaging.volumes import Geometry, canonical, to_array, write_image
from hepar.ingest.checks import check_image, check_mask, check_placement, check_tumour_in_liver, check_volume
from hepar.ingest.perceptual_hash import PerceptualHash, perceptual_hash
from hepar.ingest.quarantine import Refused
from hepar.ingest.sources.files import VOLUME_ENDINGS
from hepar.ingest.sources.remote_cache import digests, local
from hepar.ingest.sources.source import SourceCase, Volume
from hepar.runtime.artifacts import sha256_file, sha256_json

RULES_VERSION = 4  # raise it when a rule changes: every case is then checked and written anew
READABLE = "every file can be read"


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
            return _build(here, source_sha256, folder)
        except DataError as error:
            return _refused(here, error)


def hash_source(source: SourceCase) -> str:
    """SHA-256 of what a case is made from: its declaration, the content of every file, and `RULES_VERSION`.

    The split is left out. Raises DataError if a file is missing.
    """
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


def _refused(source: SourceCase, error: DataError) -> Refused:
    """The line of a refusal. DICOM files go by number, since their folders may be named after patients."""
    rule, value = (error.rule, error.value) if isinstance(error, Refusal) else (READABLE, str(error))
    for number, path in enumerate(source.files, start=1):
        is_volume = path.name.endswith(VOLUME_ENDINGS)
        value = value.replace(str(path), path.name if is_volume else f"file {number} of {len(source.files)}")
    return Refused(source.case_id, rule, value)


def _build(source: SourceCase, source_sha256: str, folder: Path) -> Accepted:
    """Check one case and write its canonical volumes. Raises Refusal."""
    assert source.split is not None
    original = _read(source.image)
    check_image(original, source.modality)
    masks, states = _read_masks(source, original)
    image = sitk.Cast(canonical(original), sitk.sitkInt16 if source.modality == Modality.CT else sitk.sitkFloat32)
    _check_anatomy(image, masks, source.distances_known)
    volumes = {"image": image} | masks
    paths = {name: f"{Cohort.VOLUMES}/{source.case_id}/{name}.nii.gz" for name in volumes}
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
        header=_header(original, source.facts),
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
        mask = _read(volume)
        if source.empty_is_absent and not to_array(mask).any():
            states[name] = LabelState.ABSENT
            continue
        check_mask(name, mask, image, source.modality)
        masks[name] = sitk.Cast(canonical(mask), sitk.sitkUInt8)
    return masks, states


def _read(volume: Volume) -> sitk.Image:
    """Read a volume. Raises Refusal if a library breaks on it: whatever a file holds, the other cases go on.

    The library's message is left out, since it may quote the file.
    """
    try:
        return volume.read()
    except (HeparError, MemoryError):
        raise
    except Exception as error:
        raise Refusal(READABLE, f"reading a {type(volume).__name__} raises {type(error).__name__}") from error


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
