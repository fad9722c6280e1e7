"""Stage 1: read a source, check and canonicalise its cases, split them by patient.

Writes a cohort: `cases.parquet`, `volumes/<case>/*.nii.gz`, and `quarantine.csv` with every refused case, the rule it
breaks and the value.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk

from hepar.artifacts import sha256_file, writing
from hepar.cases import Case, Cohort, LabelState, Modality, Split, check_patients
from hepar.checks import check_image, check_mask
from hepar.errors import DataError, Refusal
from hepar.params import IngestParams, SplitParams
from hepar.progress import current, stage
from hepar.readers import SourceCase, open_source
from hepar.volumes import Geometry, canonical, to_array, write_image

KIND = "cohort"
QUARANTINE = "quarantine.csv"


@dataclass(frozen=True)
class Refused:
    """A line of the quarantine list."""

    case_id: str
    rule: str
    value: str


def run(source: str, cohort: Path, params: IngestParams) -> None:
    """Ingest `source` (a table, a folder with `cohort.csv`, or `phantoms`) into the folder `cohort`.

    Raises DataError where the source is empty, too many cases are refused, or what is left cannot be trained on.
    """
    with stage("ingest"), open_source(source, params) as listed, writing(cohort, KIND, {}) as folder:
        accepted, refused = _ingest(listed, folder, params.split)
        _write_quarantine(folder / QUARANTINE, refused)
        if len(refused) > params.max_refused_share * len(listed):
            first = refused[0]
            raise DataError(
                f"{len(refused)} of {len(listed)} cases are refused, more than ingest.max_refused_share"
                f" ({params.max_refused_share:g}) allows; the first is case {first.case_id}:"
                f" {first.rule}: {first.value}"
            )
        check_patients(accepted)
        check_trainable(accepted)
        Cohort(folder, tuple(sorted(accepted, key=lambda case: case.case_id))).save()


def _ingest(listed: Sequence[SourceCase], folder: Path, split: SplitParams) -> tuple[list[Case], list[Refused]]:
    accepted: list[Case] = []
    refused: list[Refused] = []
    seen: dict[str, str] = {}
    with current().counting(len(listed), "cases") as count:
        for source_case in listed:
            try:
                accepted.append(_ingest_case(source_case, folder, split, seen))
            except Refusal as refusal:
                refused.append(Refused(source_case.case_id, refusal.rule, refusal.value))
            except DataError as error:
                refused.append(Refused(source_case.case_id, "every file can be read", str(error)))
            count.advance(accepted=str(len(accepted)), refused=str(len(refused)))
    return accepted, refused


def _ingest_case(source: SourceCase, folder: Path, split: SplitParams, seen: dict[str, str]) -> Case:
    """Check one case and write its canonical volumes. Raises Refusal."""
    original = source.image.read()
    check_image(original)
    masks = {"liver": source.liver, "tumour": source.tumour}
    originals = {name: volume.read() for name, volume in masks.items() if volume is not None}
    for name, mask in originals.items():
        check_mask(name, mask, original, source.modality)

    image = sitk.Cast(canonical(original), sitk.sitkInt16 if source.modality == Modality.CT else sitk.sitkFloat32)
    digest = hashlib.sha256(to_array(image).tobytes()).hexdigest()
    if (twin := seen.setdefault(digest, source.case_id)) != source.case_id:
        raise Refusal("no scan is there twice", f"same voxels as case {twin}")

    files = {"image": image} | {name: sitk.Cast(canonical(mask), sitk.sitkUInt8) for name, mask in originals.items()}
    paths = {name: f"volumes/{source.case_id}/{name}.nii.gz" for name in files}
    for name, volume in files.items():
        write_image(volume, folder / paths[name])
    hashes = {f"{name}_sha256": sha256_file(folder / path) for name, path in paths.items()}
    geometry = Geometry.of(image)
    return Case(
        case_id=source.case_id,
        patient_id=source.patient_id,
        source=source.source,
        modality=source.modality,
        sequence=source.sequence,
        image=paths["image"],
        liver=paths.get("liver", ""),
        tumour=paths.get("tumour", ""),
        liver_state=source.liver_state,
        tumour_state=source.tumour_state,
        split=source.split or split_of(source, split),
        spacing_mm=geometry.spacing_zyx_mm,
        size=geometry.size_zyx,
        distances_known=source.distances_known,
        licence=source.licence,
        header=_header(original),
        **hashes,
    )


def _header(original: sitk.Image) -> str:
    facts = {
        "size_xyz": original.GetSize(),
        "spacing_xyz_mm": original.GetSpacing(),
        "origin_lps_mm": original.GetOrigin(),
        "direction": original.GetDirection(),
        "voxel_type": original.GetPixelIDTypeAsString(),
    }
    return json.dumps(facts, sort_keys=True)


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
