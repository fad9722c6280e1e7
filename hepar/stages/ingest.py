"""Stage 1: read a source, check and canonicalise its cases, split them by patient.

Writes a cohort: `cases.parquet`, `volumes/<case>/*.nii.gz`, `perceptual_hashes.npz`, and `quarantine.csv` with every
refused case, the rule it breaks and the value. A case that an earlier cohort in the same place holds, made from the
same files, is linked, or stays in the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hepar.cases import Cohort, Modality, check_case_ids, check_patients
from hepar.ingest.cohort_building import build_cases, load_earlier
from hepar.ingest.liver_share import keep_livers
from hepar.ingest.quarantine import check_refused_share, write_quarantine
from hepar.ingest.sources import open_source
from hepar.ingest.splits import assign_official_splits, assign_splits, check_trainable, read_splits
from hepar.params import IngestParams
from hepar.runtime.artifacts import write_artifact
from hepar.runtime.progress import stage
from hepar.runtime.stored_versions import Handover


def run(
    source: str,
    cohort: Path,
    params: IngestParams,
    modalities: Sequence[Modality],
    handover: Handover | None = None,
) -> None:
    """Ingest `source` (a table, a folder or zip of a known layout, an address, or `phantoms`) into the folder `cohort`.

    Scans of other modalities than `modalities` are left out. Raises DataError if the source is empty, too many cases
    are refused, or the rest cannot be trained on. If too many are refused, the quarantine list is left beside the
    cohort, as `<cohort>.quarantine.csv`.

    `handover`, if given, comes before and after inside the stage: if it fails, the stage fails.
    """
    rejected = cohort.with_name(f"{cohort.name}.{Cohort.QUARANTINE}")
    with stage("ingest", rejected):
        if handover is not None:
            handover.start(cohort)
        _write_cohort(source, cohort, params, modalities, rejected)
        if handover is not None:
            handover.finish(cohort)


def _write_cohort(
    source: str, cohort: Path, params: IngestParams, modalities: Sequence[Modality], rejected: Path
) -> None:
    hashes: dict[str, str] = {}
    with open_source(source, params) as sources, write_artifact(cohort, Cohort.KIND, {}, hashes) as folder:
        check_case_ids(source.case_id for source in sources)
        sources = [source for source in sources if source.fault is not None or source.modality in modalities]
        if params.split_from:
            sources = assign_official_splits(sources, read_splits(params.split_from))
        sources = keep_livers(assign_splits(sources, params.split), params.liver_share)
        accepted, refused = build_cases(sources, folder, load_earlier(cohort))
        write_quarantine(folder / Cohort.QUARANTINE, refused)
        rejected.unlink(missing_ok=True)
        check_refused_share(refused, len(sources), params.max_refused_share, rejected)
        check_patients(accepted)
        check_trainable(accepted, modalities)
        hashes.update(item for case in accepted for item in case.file_hashes.items())
        Cohort(folder, tuple(sorted(accepted, key=lambda case: case.case_id))).save()
