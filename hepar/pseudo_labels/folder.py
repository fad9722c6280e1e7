"""The folder `pseudo/`: a table of signals and verdicts, and two masks for each case on the case's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from hepar.cases import Modality
from hepar.errors import ArtifactError, one_line
from hepar.pseudo_labels.gates import Verdict
from hepar.pseudo_labels.signals import Signals
from hepar.runtime.artifacts import Manifest, link_or_copy, read_manifest
from hepar.runtime.verification import verify_artifact
from hepar.runtime.whole_files import write_bytes


@dataclass(frozen=True)
class LabelledCase:
    """A case with a pseudo-liver, and the teacher that predicted it, by its hash."""

    case_id: str
    modality: str
    teacher: str
    teacher_saw_patient: bool
    mask_sha256: str


@dataclass(frozen=True)
class PseudoLabels:
    """A folder of pseudo-labels on disk."""

    folder: Path

    KIND = "pseudo-labels"
    TABLE = "quality.parquet"  # one row per case, by `COLUMNS`
    MASKS = "masks"
    LIVER = "liver.nii.gz"
    UNCERTAIN = "uncertain.nii.gz"
    COLUMNS = (
        *(item.name for item in fields(LabelledCase)),
        *Signals.names(),
        *(item.name for item in fields(Verdict)),
    )

    @staticmethod
    def teacher(modality: Modality) -> str:
        """The name among the parents of the teacher of a modality."""
        return f"teacher-{modality}"

    def liver(self, case_id: str) -> Path:
        """The pseudo-liver of a case: 0 and 1."""
        return self.folder / self.MASKS / case_id / self.LIVER

    def uncertain(self, case_id: str) -> Path:
        """The mask of the voxels of a case whose label is uncertain: 0 and 1."""
        return self.folder / self.MASKS / case_id / self.UNCERTAIN

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, read once. Raises ArtifactError if it is missing or of another kind."""
        return read_manifest(self.folder, self.KIND)

    def verify(self) -> None:
        """Check table and masks. Raises ArtifactError naming the first file that is damaged."""
        verify_artifact(self.folder, self.KIND)

    def link_masks(self, case_id: str, source: Path) -> None:
        """Link both masks of a case from the folder `source`, where they have the same names."""
        link_or_copy(source / self.LIVER, self.liver(case_id))
        link_or_copy(source / self.UNCERTAIN, self.uncertain(case_id))

    def sha256(self, path: Path) -> str:
        """The hash of a file of this folder, from the manifest. Raises ArtifactError if the file is not listed."""
        name = str(path.relative_to(self.folder))
        try:
            return self.manifest.files[name]
        except KeyError:
            raise ArtifactError(f"{self.folder} is incomplete: {name} is missing") from None

    def rows(self) -> list[dict[str, Any]]:
        """The table, one row per case, with the columns `COLUMNS`. Raises ArtifactError if it is missing or damaged."""
        try:
            rows = pd.read_parquet(self.folder / self.TABLE).to_dict(orient="records")
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{self.folder / self.TABLE} is missing or damaged: {one_line(error)}") from None
        return [{str(column): value for column, value in row.items()} for row in rows]

    def save_table(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write the table; the same rows give the same bytes, and no rows give an empty table."""
        write_bytes(self.folder / self.TABLE, pd.DataFrame(rows, columns=list(self.COLUMNS)).to_parquet(index=False))

    @classmethod
    def load(cls, folder: Path) -> PseudoLabels:
        """The pseudo-labels in `folder`. Raises ArtifactError if its manifest is missing or of another kind."""
        labels = cls(folder)
        _ = labels.manifest
        return labels
