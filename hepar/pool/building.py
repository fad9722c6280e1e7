"""Cases become entries of a pool: prepared and written, or linked from an earlier pool where nothing has changed."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from hepar.runtime.artifacts import link, read_manifest, sha256_json
from hepar.cases import Case, LabelState
from hepar.runtime.chunked import sha256_chunked
from hepar.errors import ArtifactError
from hepar.pool.table import (
    FULL,
    IMAGE,
    LABELS,
    KnownLabels,
    Pool,
    PoolEntry,
    PreprocessedArrays,
    UnknownTumour,
    make_targets,
)
from hepar.imaging.masks import Mask, lesion_diameters_mm
from hepar.imaging.preprocessing import PreprocessingPlan, preprocess_image
from hepar.imaging.volumes import Geometry, canonical, read_image, resample_mask

KEY_VERSION = 1  # of what `_prepare` does; a new one has every case written anew


@dataclass(frozen=True)
class LiverLabel:
    """The liver mask that a case enters the pool with, instead of the one in its cohort.

    `state` is pseudo, or manual for one that a person corrected. `weight` is the trust in it, 0 where it is rejected.
    `uncertain` marks a pseudo-liver's doubtful boundary; None where it has none.
    """

    state: LabelState
    mask: Path
    sha256: str
    weight: float
    uncertain: Path | None = None
    uncertain_sha256: str = ""
    teacher: str = ""
    gate: str = ""
    reasons: str = ""
    review: str = ""


@dataclass(frozen=True)
class Rules:
    """What else decides how a case is prepared."""

    plan: PreprocessingPlan
    unknown_tumour: UnknownTumour
    margin_mm: float


@dataclass(frozen=True)
class Earlier:
    """An earlier pool whose arrays may be taken over, by the keys of its entries."""

    pool: Pool | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)  # of its files, by their place

    @classmethod
    def at(cls, folder: Path) -> Earlier:
        """The pool at a place, if it is whole; else none."""
        try:
            return cls(Pool.load(folder), read_manifest(folder, "pool").files)
        except ArtifactError:
            return cls()

    @cached_property
    def _by_key(self) -> dict[tuple[str, str], PoolEntry]:
        return {(entry.case_id, entry.key): entry for entry in (self.pool.entries if self.pool else ())}

    def entry(self, case_id: str, key: str) -> PoolEntry | None:
        """The entry of a case with that key, whose arrays are there."""
        found = self._by_key.get((case_id, key))
        if self.pool is None or found is None:
            return None
        return found if all((self.pool.folder / found.file / name).is_file() for name in (IMAGE, LABELS)) else None


def write_entry(
    folder: Path,
    case: Case,
    cohort_folder: Path,
    rules: Rules,
    liver: LiverLabel | None = None,
    use_liver: bool = True,
    use_tumour: bool = True,
    earlier: Earlier | None = None,
    known: MutableMapping[str, str] | None = None,
) -> PoolEntry:
    """Prepare one case and write its arrays to `folder/cases`, or link them from an `earlier` pool.

    `liver` takes the place of the cohort's liver. Without `use_…` a label of the cohort counts as unknown. The content
    hashes of the files are put into `known`.
    """
    chosen = _chosen(case, cohort_folder, liver, use_liver)
    tumour_state = case.tumour_state if use_tumour else LabelState.UNKNOWN
    entry = _entry(case, chosen, liver, tumour_state, rules)
    found = (earlier or Earlier()).entry(case.case_id, entry.key)
    if known is None:
        known = {}
    if earlier is None or earlier.pool is None or found is None:
        return _prepare(folder, case, cohort_folder, rules, chosen, entry, known)
    for name in (IMAGE, LABELS):
        link(earlier.pool.folder / found.file / name, folder / entry.file / name)
        known[f"{entry.file}/{name}"] = earlier.hashes[f"{found.file}/{name}"]
    return replace(
        entry,
        liver_ml=found.liver_ml,
        tumour_ml=found.tumour_ml,
        known_share=found.known_share,
        lesion_diameters_mm=found.lesion_diameters_mm,
        sha256=found.sha256,
    )


def _chosen(case: Case, cohort_folder: Path, liver: LiverLabel | None, use_liver: bool) -> LiverLabel | None:
    """The liver label that counts; None where there is none to trust."""
    if liver is not None and liver.state == LabelState.MANUAL:
        return liver
    if use_liver and case.liver_state == LabelState.MANUAL:
        return LiverLabel(LabelState.MANUAL, cohort_folder / case.liver, case.liver_sha256, 1.0)
    return liver if liver is not None and liver.weight > 0 else None


def _entry(
    case: Case, chosen: LiverLabel | None, given: LiverLabel | None, tumour_state: LabelState, rules: Rules
) -> PoolEntry:
    """The entry as far as it is known without preparing anything."""
    tumour_sha256 = case.tumour_sha256 if tumour_state == LabelState.MANUAL else ""
    outside = chosen.weight if chosen is not None and rules.unknown_tumour == "masked" else 0.0
    tumour_known = tumour_state in (LabelState.MANUAL, LabelState.ABSENT) or rules.unknown_tumour == "background"
    made_from = {
        "version": KEY_VERSION,
        "plan": rules.plan.model_dump(mode="json"),
        "rules": [rules.unknown_tumour, rules.margin_mm],
        "image": [case.image_sha256, str(case.modality)],
        "liver": None if chosen is None else [str(chosen.state), chosen.sha256, chosen.uncertain_sha256, chosen.weight],
        "tumour": [str(tumour_state), tumour_sha256],
    }
    return PoolEntry(
        case_id=case.case_id,
        patient_id=case.patient_id,
        source=case.source,
        modality=case.modality,
        sequence=case.sequence,
        split=case.split,
        group=f"{case.modality}/{case.source}",
        liver_state=LabelState.UNKNOWN if chosen is None else chosen.state,
        tumour_state=tumour_state,
        liver_weight=0.0 if chosen is None else chosen.weight,
        tumour_weight=1.0 if tumour_known else outside,
        liver_origin="" if chosen is None else chosen.sha256,
        tumour_origin=tumour_sha256,
        teacher=chosen.teacher if chosen is not None else "",
        gate=given.gate if given is not None else "",
        reasons=given.reasons if given is not None else "",
        review=given.review if given is not None else "",
        liver_ml=0.0,
        tumour_ml=0.0,
        known_share=0.0,
        lesion_diameters_mm=(),
        licence=case.licence,
        image_sha256=case.image_sha256,
        file=f"cases/{case.case_id}",
        sha256="",
        key=sha256_json(made_from),
    )


def _prepare(
    folder: Path,
    case: Case,
    cohort_folder: Path,
    rules: Rules,
    liver: LiverLabel | None,
    entry: PoolEntry,
    known_hashes: MutableMapping[str, str],
) -> PoolEntry:
    """Write the arrays of a case, and fill in what they tell."""
    prepared, geometry = preprocess_image(read_image(cohort_folder / case.image), case.modality, rules.plan)
    has_tumour = entry.tumour_state == LabelState.MANUAL
    known = KnownLabels(
        liver_state=entry.liver_state,
        tumour_state=entry.tumour_state,
        liver=None if liver is None else read_mask(liver.mask, geometry),
        tumour=read_mask(cohort_folder / case.tumour, geometry) if has_tumour else None,
        weight=1.0 if liver is None else liver.weight,
        uncertain=None if liver is None or liver.uncertain is None else read_mask(liver.uncertain, geometry),
    )
    targets = make_targets(
        known, geometry.size_zyx, geometry.spacing_zyx_mm, rules.unknown_tumour, margin_mm=rules.margin_mm
    )
    PreprocessedArrays.of(prepared, targets).save(folder / entry.file)
    own = {f"{entry.file}/{name}": digest for name, digest in hashes_of(folder / entry.file).items()}
    known_hashes.update(own)
    return replace(
        entry,
        liver_ml=float(targets.liver.sum() * geometry.voxel_ml) if liver is not None else 0.0,
        tumour_ml=float(targets.tumour.sum() * geometry.voxel_ml),
        known_share=float((targets.liver_weight.mean() + targets.tumour_weight.mean()) / (2 * FULL)),
        lesion_diameters_mm=lesion_diameters_mm(targets.tumour, geometry.voxel_ml),
        sha256=sha256_json(list(own.values())),
    )


def hashes_of(folder: Path) -> dict[str, str]:
    """The content hashes of a case's arrays, by file; an entry's `sha256` is that of the list of them."""
    return {name: sha256_chunked(folder / name) for name in (IMAGE, LABELS)}


def read_mask(path: Path, geometry: Geometry) -> Mask:
    """A binary mask file on another grid."""
    return resample_mask(canonical(read_image(path)), geometry)
