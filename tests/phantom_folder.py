"""A folder of phantoms that a test may edit, and its ingest."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import hepar.stages.ingest
from hepar.cases import Cohort, Modality
from hepar.errors import DataError
from hepar.imaging.volumes import read_image, to_array
from hepar.params import IngestParams

SCAN = "phantom-ct-0006"  # a training case with a manual tumour and no manual liver
Row = dict[str, str]


@dataclass(frozen=True)
class PhantomFolder:
    """A folder with `cohort.csv` and the files that it names."""

    folder: Path

    def rows(self) -> list[Row]:
        with (self.folder / "cohort.csv").open() as stream:
            return list(csv.DictReader(stream))

    def rewrite(self, rows: list[Row], columns: list[str] | None = None) -> None:
        names = columns or list(self.rows()[0])
        with (self.folder / "cohort.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    def change(self, file: str, edit: Callable[[sitk.Image], sitk.Image]) -> None:
        path = self.folder / file
        sitk.WriteImage(edit(sitk.ReadImage(str(path))), str(path))

    def spoil_with_nan(self, case_id: str) -> None:
        """Set two voxels to NaN. The image becomes a NRRD file: ITK's NIfTI reader turns NaN into 0."""
        image = read_image(self.folder / case_id / "image.nii.gz")
        voxels_zyx = to_array(image).astype(np.float32)
        voxels_zyx[3, 4, 5:7] = np.nan
        spoiled = sitk.GetImageFromArray(voxels_zyx)
        spoiled.CopyInformation(image)
        sitk.WriteImage(spoiled, str(self.folder / case_id / "image.nrrd"))
        rows = self.rows()
        for row in rows:
            if row["case_id"] == case_id:
                row["image"] = f"{case_id}/image.nrrd"
        self.rewrite(rows)


def ingest(source: PhantomFolder, params: IngestParams, modalities: Sequence[Modality] = tuple(Modality)) -> Path:
    """Ingest the folder into `cohort` beside it; returns that place."""
    cohort = source.folder.parent / "cohort"
    hepar.stages.ingest.run(str(source.folder), cohort, params, modalities)
    return cohort


def quarantine(cohort: Path) -> list[Row]:
    with (cohort / Cohort.QUARANTINE).open() as stream:
        return list(csv.DictReader(stream))


def refusal(source: PhantomFolder, params: IngestParams) -> str:
    """The message with which ingest fails, leaving no cohort."""
    with pytest.raises(DataError) as caught:
        ingest(source, params)
    assert not (source.folder.parent / "cohort").exists()
    return str(caught.value)
