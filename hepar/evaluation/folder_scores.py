"""A report of two folders of label maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from hepar.cases import STRUCTURES, Modality
from hepar.errors import ArtifactError, DataError, ParamsError
from hepar.evaluation.mask_folders import LabelValues, MaskPair, match_masks, read_pair
from hepar.evaluation.report_folder import Report
from hepar.evaluation.scored_cases import ScoredCase, save_report
from hepar.evaluation.scores import score_case
from hepar.evaluation.slices import pick_slice
from hepar.evaluation.summary import Bootstrap
from hepar.inference.model_folder import ModelFolder
from hepar.runtime.artifacts import read_manifest, sha256_file, sha256_json, write_artifact
from hepar.runtime.bounded_map import bounded_map
from hepar.runtime.commit import RELEASE, git_commit, release
from hepar.runtime.device import available_cores
from hepar.runtime.progress import current_stage, stage


@dataclass(frozen=True)
class MaskFolders:
    """The two folders, what their values mean, and what is known about the cases, see `match_masks`."""

    reference: Path
    prediction: Path
    labels: LabelValues
    prediction_labels: LabelValues
    table: Path | None = None
    modality: Modality | None = None

    @property
    def scored(self) -> frozenset[int]:
        """The channels that both label maps show."""
        return self.labels.structures() & self.prediction_labels.structures()


def score_folders(folders: MaskFolders, out: Path, bootstrap: Bootstrap) -> Report:
    """Score all cases of two folders and write a report to `out`, with the tables and the page of `hepar evaluate`.

    The page shows outlines on black, since there are no images, and masks are not copied. Raises DataError as
    `match_masks` and `read_pair` do, or if `out` holds something other than an earlier report of masks, ParamsError if
    the label maps have no structure in common; then nothing is written.
    """
    with stage("score"):
        if not folders.scored:
            labels = (folders.labels.describe(), folders.prediction_labels.describe())
            raise ParamsError(
                f"labels are {labels[0]} and those of the prediction {labels[1]}: no structure is in both"
            )
        _check_out(out, folders)
        pairs = match_masks(folders.reference, folders.prediction, folders.table, folders.modality)
        with write_artifact(out, Report.KIND, {}) as folder:
            with current_stage().counting(len(pairs), "cases") as count:
                scored = []
                for case in bounded_map(partial(_score, folders=folders), pairs, available_cores()):
                    scored.append(case)
                    count.advance(case=case.scores.identity.case_id)
            history = pd.DataFrame(columns=list(ModelFolder.HISTORY_COLUMNS))
            save_report(Report(folder), scored, history, _facts(pairs, folders), bootstrap)
        return Report(out)


def _check_out(out: Path, folders: MaskFolders) -> None:
    """Raise DataError unless the report can take the place of what is at `out`, which is deleted."""
    read = [folders.reference, folders.prediction, *([folders.table] if folders.table else [])]
    if inside := [path for path in read if path.resolve().is_relative_to(out.resolve())]:
        raise DataError(f"{out} would be replaced by the report, but {inside[0]} lies in it: choose another --out")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        read_manifest(out, Report.KIND)
    except ArtifactError:
        raise DataError(f"{out} exists and is not a report: choose another --out") from None
    if ModelFolder.KIND in Report(out).facts():
        raise DataError(f"{out} holds the evaluation of a model with its predicted masks: choose another --out")


def _score(pair: MaskPair, folders: MaskFolders) -> ScoredCase:
    case = read_pair(pair, folders.labels, folders.prediction_labels)
    black_zyx = np.broadcast_to(np.uint8(0), case.liver.prediction_zyx.shape)
    return ScoredCase(score_case(case), pick_slice(case, black_zyx, (0.0, 1.0)))


def _facts(pairs: Sequence[MaskPair], folders: MaskFolders) -> dict[str, str]:
    unnamed = [name for channel, name in enumerate(STRUCTURES) if channel not in folders.scored]
    left_out = {Report.NOT_SCORED: f"{unnamed[0]}: not among the labels of both folders"} if unnamed else {}
    tested = [
        [pair.facts.identity.case_id, pair.facts.identity.patient_id, *map(str, pair.facts.states)] for pair in pairs
    ]
    return {
        Report.TEST_SET: sha256_json([tested, _hashes(pair.reference for pair in pairs), folders.labels.describe()]),
        Report.PREDICTIONS: sha256_json(_hashes(pair.prediction for pair in pairs)),
        Report.REFERENCE_LABELS: folders.labels.describe(),
        Report.PREDICTION_LABELS: folders.prediction_labels.describe(),
        **left_out,
        RELEASE: release(),
        Report.COMMIT: git_commit(),
    }


def _hashes(paths: Iterable[Path]) -> list[str]:
    return [sha256_file(path) for path in paths]
