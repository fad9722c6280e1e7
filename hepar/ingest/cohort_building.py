"""All cases of a cohort: built in parallel or taken over from an earlier cohort, each scan once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from hepar.cases import Case, Cohort
from hepar.errors import ArtifactError, DataError
from hepar.ingest.building import Accepted, build_case, hash_source, refuse_died, seconds_to_build
from hepar.ingest.near_duplicates import ScanIndex, load_perceptual_hashes
from hepar.ingest.parallel import Died, parallel_map
from hepar.ingest.quarantine import Refused
from hepar.ingest.sources.source import SourceCase
from hepar.runtime.artifacts import read_manifest
from hepar.runtime.device import available_cores
from hepar.runtime.fetching import carry
from hepar.runtime.progress import current_stage
from hepar.runtime.stored_files import StoredFile, write_stored
from hepar.runtime.verification import find_damage, verify_artifact


def load_earlier(folder: Path) -> Cohort | None:
    """The cohort that already lies at a place; None if there is none or it is damaged."""
    if not folder.is_dir():
        return None
    try:
        verify_artifact(folder, Cohort.KIND, [Cohort.TABLE, Cohort.PERCEPTUAL_HASHES])
        return Cohort.load(folder)
    except (ArtifactError, DataError) as error:
        current_stage().log(f"nothing is linked from the earlier cohort: {error}")
        return None


def build_cases(
    sources: Sequence[SourceCase], folder: Path, earlier: Cohort | None
) -> tuple[list[Case], list[Refused]]:
    """Write volumes and perceptual hashes of all cases into `folder`; returns the accepted and the refused ones.

    `sources` have splits. A case that `earlier` holds, made from the same files, is linked instead of built, or stays
    in the store.
    """
    accepted: list[Case] = []
    refused: list[Refused] = []
    carried: dict[str, StoredFile] = {}
    index = ScanIndex()
    unchanged = _unchanged(sources, earlier) if earlier else {}
    jobs = [source for source in sources if source.case_id not in unchanged]
    with (
        current_stage().counting(len(sources), "cases") as count,
        parallel_map(partial(build_case, folder=folder), jobs, seconds_to_build) as built,
    ):
        for source in sources:
            result: Accepted | Refused
            if earlier is not None and source.case_id in unchanged:
                result = _take_over(unchanged[source.case_id], source, earlier.folder, folder, carried)
            else:
                outcome = next(built)
                result = refuse_died(source, outcome) if isinstance(outcome, Died) else outcome
            if isinstance(result, Accepted):
                result = _duplicate(result, index) or result
            if isinstance(result, Accepted):
                accepted.append(result.case)
                index.add(result.case, result.perceptual_hash)
            else:
                shutil.rmtree(folder / Cohort.VOLUMES / result.case_id, ignore_errors=True)
                for name in [name for name in carried if name.startswith(Cohort.volumes_of(result.case_id))]:
                    del carried[name]
                refused.append(result)
            count.advance(accepted=str(len(accepted)), refused=str(len(refused)))
    index.save(folder / Cohort.PERCEPTUAL_HASHES)
    if carried:
        write_stored(folder, "", carried)
    return accepted, refused


def _unchanged(sources: Sequence[SourceCase], earlier: Cohort) -> dict[str, Accepted]:
    """The cases of an earlier cohort that are undamaged, and whose source files and declaration are still the same.

    Several are compared at a time.
    """
    manifest = read_manifest(earlier.folder, Cohort.KIND)
    hashes = load_perceptual_hashes(earlier.folder / Cohort.PERCEPTUAL_HASHES)
    known = {case.case_id: Accepted(case, hashes[case.case_id]) for case in earlier if case.case_id in hashes}

    def is_same(source: SourceCase) -> bool:
        case = known[source.case_id].case
        try:
            if case.source_sha256 != hash_source(source):
                return False
        except DataError:
            return False
        for damage in find_damage(earlier.folder, manifest, case.file_hashes):
            current_stage().log(f"case {case.case_id} is built again: in the earlier cohort {damage}")
            return False
        return True

    candidates = [source for source in sources if source.case_id in known]
    with ThreadPoolExecutor(available_cores()) as executor:
        same = executor.map(is_same, candidates)
        return {source.case_id: known[source.case_id] for source, is_it in zip(candidates, same, strict=True) if is_it}


def _take_over(
    known: Accepted, source: SourceCase, earlier: Path, folder: Path, carried: dict[str, StoredFile]
) -> Accepted:
    """A case of an earlier cohort with the split that it has now; its volumes are linked, or copied if they must be, or
    stay in the store.
    """
    assert source.split is not None
    case = replace(known.case, split=source.split)
    for name in case.file_hashes:
        carry(earlier, name, folder, name, carried)
    return replace(known, case=case)


def _duplicate(accepted: Accepted, index: ScanIndex) -> Refused | None:
    """The refusal of a scan that has the voxels of an earlier one, or is nearly one of another patient."""
    case = accepted.case
    rule = "no scan occurs twice"
    if same := index.same_voxels(case):
        return Refused(case.case_id, rule, f"same voxels as case {same[-1]}")
    if near := index.near_duplicate(case, accepted.perceptual_hash):
        value = (
            f"resampled or mirrored copy of case {near.case_id} of another patient: correlation {near.correlation:.3f}"
        )
        return Refused(case.case_id, rule, value)
    return None
