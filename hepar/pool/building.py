"""Pool building: cases become pool entries, preprocessed, or linked from a previous pool if nothing changed."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from hepar.cases import Case, LabelState
from hepar.errors import ArtifactError, DataError
from hepar.imaging.masks import Mask, lesion_diameters_mm
from hepar.imaging.preprocessing import PreprocessingPlan, preprocess_image
from hepar.imaging.volumes import Geometry, canonical, grid_difference, read_image, resample_mask
from hepar.params import UnknownTumour
from hepar.pool.arrays import PreprocessedArrays, hash_arrays, hash_files
from hepar.pool.table import ArraysRecord, LiverRecord, Pool, PoolEntry, Provenance, TumourRecord
from hepar.pool.targets import KnownLabels, make_targets, tumour_weight
from hepar.runtime.artifacts import Manifest, sha256_json
from hepar.runtime.fetching import carry, fetched
from hepar.runtime.progress import current_stage
from hepar.runtime.stored_files import StoredFile, write_stored
from hepar.runtime.verification import find_damage, verify_artifact

KEY_VERSION = 2  # of what `_preprocess` does; raise it and every case is preprocessed again


@dataclass(frozen=True)
class LiverLabel:
    """A liver mask that replaces the one in the cohort.

    `state` is pseudo, or manual if a reviewer corrected it. `weight`, 0 to 1, is how much it is trusted; 0 is rejected.
    `uncertain` is the mask of a pseudo-liver's uncertain boundary, None without one.
    """

    state: LabelState
    mask: Path
    mask_sha256: str
    weight: float
    uncertain: Path | None = None
    uncertain_sha256: str = ""
    teacher: str = ""
    gate: str = ""
    reasons: str = ""
    review: str = ""

    def reviewed(self, accepted: bool, gate: str, review: str) -> LiverLabel:
        """The label after a review: fully trusted if accepted, else rejected."""
        return replace(self, weight=float(accepted), gate=gate, review=review)

    def check_grid(self, case: Case, image: Path) -> None:
        """Raises DataError if the mask is not on the grid of the case's image."""
        with fetched(image) as here:
            own, wanted = Geometry.of(read_image(self.mask)), Geometry.of(read_image(here[image]))
        if difference := grid_difference(own, wanted):
            raise DataError(f"case {case.case_id}: the corrected mask is not on the grid of the image: {difference}")


@dataclass(frozen=True)
class PoolSettings:
    """What the arrays of every case depend on besides its files."""

    plan: PreprocessingPlan
    unknown_tumour: UnknownTumour
    margin_mm: float


@dataclass(frozen=True)
class PreviousPool:
    """A previous pool, from which arrays are reused if an entry's key is the same; without a pool nothing is reused."""

    pool: Pool | None = None
    manifest: Manifest | None = None

    @classmethod
    def load(cls, folder: Path) -> PreviousPool:
        """The pool in a folder; an empty `PreviousPool` if there is none or it is incomplete or damaged."""
        try:
            manifest = verify_artifact(folder, Pool.KIND, [Pool.TABLE, Pool.PLAN])
            return cls(Pool.load(folder), manifest)
        except ArtifactError as error:
            if folder.exists():
                current_stage().log(f"nothing is linked from the earlier pool: {error}")
            return cls()

    @cached_property
    def _by_key(self) -> dict[tuple[str, str], PoolEntry]:
        return {(entry.case_id, entry.arrays.key): entry for entry in (self.pool.entries if self.pool else ())}

    def find(self, entry: PoolEntry) -> PoolEntry | None:
        """The previous entry of the same case and key; None if there is none or one of its files is damaged."""
        found = self._by_key.get((entry.case_id, entry.arrays.key))
        if self.pool is None or self.manifest is None or found is None:
            return None
        files = [f"{found.arrays.folder}/{name}" for name in PreprocessedArrays.FILES]
        for damage in find_damage(self.pool.folder, self.manifest, files):
            current_stage().log(f"case {entry.case_id} is preprocessed again: in the earlier pool {damage}")
            return None
        return found


@dataclass(frozen=True)
class PoolBuilder:
    """Adds cases to the pool in `folder`: preprocesses them, or links their arrays from a `previous` pool.

    `hashes` collects the content hashes of the files by path, `stored` those of the bytes of linked ones, so that the
    manifest needs no second pass over them, and `carried` the files that stay in the store, where a previous pool by
    reference has them.
    """

    folder: Path
    cohort: Path
    settings: PoolSettings
    previous: PreviousPool = field(default_factory=PreviousPool)
    hashes: MutableMapping[str, str] = field(default_factory=dict)
    stored: MutableMapping[str, str] = field(default_factory=dict)
    carried: MutableMapping[str, StoredFile] = field(default_factory=dict)

    def add(
        self, case: Case, liver: LiverLabel | None = None, use_liver: bool = True, use_tumour: bool = True
    ) -> PoolEntry:
        """Adds a case and returns its entry.

        `liver` is used if it is manual or the cohort has no manual liver. Without `use_liver` or `use_tumour` that
        label of the cohort counts as unknown.
        """
        chosen = self._choose_liver(case, liver, use_liver)
        tumour_state = case.tumour_state if use_tumour else LabelState.UNKNOWN
        entry = self._describe(case, chosen, liver, tumour_state)
        found = self.previous.find(entry)
        return self._preprocess(case, chosen, entry) if found is None else self._link(found, entry)

    def save_carried(self) -> None:
        """Notes in the folder which files stay in the store; nothing if none do."""
        if self.carried:
            write_stored(self.folder, "", self.carried)

    def _choose_liver(self, case: Case, liver: LiverLabel | None, use_liver: bool) -> LiverLabel | None:
        """The liver label to use; None if no liver is known or trusted."""
        if liver is not None and liver.state == LabelState.MANUAL:
            return liver
        if use_liver and case.liver_state == LabelState.MANUAL:
            return LiverLabel(LabelState.MANUAL, self.cohort / case.liver, case.liver_sha256, 1.0)
        return liver if liver is not None and liver.weight > 0 else None

    def _describe(
        self, case: Case, chosen: LiverLabel | None, given: LiverLabel | None, tumour_state: LabelState
    ) -> PoolEntry:
        """The entry before preprocessing: without volumes, lesions, known share and the hash of the arrays."""
        tumour_sha256 = case.tumour_sha256 if tumour_state == LabelState.MANUAL else ""
        liver = LiverRecord(
            state=LabelState.UNKNOWN if chosen is None else chosen.state,
            weight=0.0 if chosen is None else chosen.weight,
            mask_sha256="" if chosen is None else chosen.mask_sha256,
            teacher="" if chosen is None else chosen.teacher,
            gate="" if given is None else given.gate,
            reasons="" if given is None else given.reasons,
            review="" if given is None else given.review,
        )
        weight = tumour_weight(tumour_state, self.settings.unknown_tumour, liver.weight)
        tumour = TumourRecord(tumour_state, weight, tumour_sha256)
        return PoolEntry(
            case_id=case.case_id,
            patient_id=case.patient_id,
            split=case.split,
            modality=case.modality,
            liver=liver,
            tumour=tumour,
            provenance=Provenance(case.source, case.sequence, case.licence, case.image_sha256),
            arrays=ArraysRecord(f"{Pool.CASES}/{case.case_id}", self._key(case, chosen, tumour)),
        )

    def _key(self, case: Case, liver: LiverLabel | None, tumour: TumourRecord) -> str:
        """Hash of everything that the arrays of a case depend on."""
        used_liver = None
        if liver is not None:
            used_liver = [str(liver.state), liver.mask_sha256, liver.uncertain_sha256, liver.weight]
        made_from = {
            "version": KEY_VERSION,
            "plan": self.settings.plan.model_dump(mode="json"),
            "rules": [self.settings.unknown_tumour, self.settings.margin_mm],
            "image": [case.image_sha256, str(case.modality)],
            "liver": used_liver,
            "tumour": [str(tumour.state), tumour.mask_sha256],
        }
        return sha256_json(made_from)

    def _link(self, found: PoolEntry, entry: PoolEntry) -> PoolEntry:
        """Links the arrays of the previous entry `found`, and completes the new entry from it."""
        assert self.previous.pool is not None
        assert self.previous.manifest is not None
        for name in PreprocessedArrays.FILES:
            place, before = f"{entry.arrays.folder}/{name}", f"{found.arrays.folder}/{name}"
            carry(self.previous.pool.folder, before, self.folder, place, self.carried)
            self.hashes[place] = self.previous.manifest.files[before]
            if stored := self.previous.manifest.stored.get(before):
                self.stored[place] = stored
        tumour = replace(
            entry.tumour,
            volume_ml=found.tumour.volume_ml,
            lesion_diameters_mm=found.tumour.lesion_diameters_mm,
        )
        arrays = replace(entry.arrays, sha256=found.arrays.sha256, known_share=found.arrays.known_share)
        liver = replace(entry.liver, volume_ml=found.liver.volume_ml)
        return replace(entry, liver=liver, tumour=tumour, arrays=arrays)

    def _preprocess(self, case: Case, liver: LiverLabel | None, entry: PoolEntry) -> PoolEntry:
        """Writes the arrays of a case, and completes its entry from them."""
        settings = self.settings
        image = self.cohort / case.image
        liver_mask, uncertain = (None, None) if liver is None else (liver.mask, liver.uncertain)
        tumour_mask = self.cohort / case.tumour if entry.tumour.state == LabelState.MANUAL else None
        with fetched(image, liver_mask, uncertain, tumour_mask) as here:
            image_zyx, grid = preprocess_image(read_image(here[image]), case.modality, settings.plan)
            known = KnownLabels(
                liver_state=entry.liver.state,
                tumour_state=entry.tumour.state,
                liver_zyx=None if liver_mask is None else read_mask_on_grid(here[liver_mask], grid),
                tumour_zyx=None if tumour_mask is None else read_mask_on_grid(here[tumour_mask], grid),
                liver_weight=1.0 if liver is None else liver.weight,
                uncertain_zyx=None if uncertain is None else read_mask_on_grid(here[uncertain], grid),
            )
        targets = make_targets(known, grid.size_zyx, grid.spacing_zyx_mm, settings.unknown_tumour, settings.margin_mm)
        folder = entry.arrays.folder
        PreprocessedArrays.encode(image_zyx, targets).save(self.folder / folder)
        hashes = hash_files(self.folder / folder)
        self.hashes.update({f"{folder}/{name}": digest for name, digest in hashes.items()})
        liver_ml = float(targets.liver_zyx.sum() * grid.voxel_ml) if liver is not None else 0.0
        tumour = replace(
            entry.tumour,
            volume_ml=float(targets.tumour_zyx.sum() * grid.voxel_ml),
            lesion_diameters_mm=lesion_diameters_mm(targets.tumour_zyx, grid.voxel_ml),
        )
        arrays = replace(entry.arrays, sha256=hash_arrays(hashes), known_share=targets.known_share)
        return replace(entry, liver=replace(entry.liver, volume_ml=liver_ml), tumour=tumour, arrays=arrays)


def read_mask_on_grid(path: Path, geometry: Geometry) -> Mask:
    """A binary mask file resampled to a grid, bool zyx; an empty mask stays empty."""
    return resample_mask(canonical(read_image(path)), geometry)
