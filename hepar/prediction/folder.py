"""The folder of one predicted scan."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from hepar.cases import STRUCTURES
from hepar.errors import ArtifactError, DataError, one_line
from hepar.evaluation.report_folder import Report
from hepar.evaluation.research_use import RESEARCH_USE
from hepar.imaging.volumes import read_image, to_array, write_image
from hepar.prediction.measurements import LESION_VALUES
from hepar.prediction.outputs import Output
from hepar.runtime.artifacts import MANIFEST, read_any_manifest, write_json
from hepar.runtime.csv_cells import frame_to_csv
from hepar.runtime.verification import verify_artifact
from hepar.runtime.whole_files import write_bytes, write_text

SCAN = "scan"  # among the parents in the manifest: the hash of the scan


@dataclass(frozen=True)
class PredictionFolder:
    """The files of one scan, in `folder`. `SEG` and `SR` come with DICOM input only."""

    folder: Path

    KIND = "prediction"
    MASKS = tuple(f"{structure}.nii.gz" for structure in STRUCTURES)
    SEG, SR = "segmentation.dcm", "report.dcm"
    MEASUREMENTS, SUMMARY, LESIONS = "measurements.json", "measurements.csv", Report.LESIONS
    PICTURE, PAGE = "overview.png", "page.html"

    def save_masks(self, masks: dict[int, sitk.Image]) -> None:
        """Write the mask of each structure, uint8."""
        for structure, mask in masks.items():
            write_image(mask, self.folder / self.MASKS[structure], RESEARCH_USE)

    def save_measurements(self, measurements: dict[str, Any]) -> None:
        """Write all measurements as JSON."""
        write_json(self.folder / self.MEASUREMENTS, measurements)

    def save_tables(self, measurements: dict[str, Any]) -> None:
        """Write the scan as one row of a table, and its lesions as the rows of another."""
        import pandas as pd

        scan, warnings = measurements["scan"], measurements["warnings"]
        named = {"scan": scan["name"], **{key: scan[key] for key in ("source", "source_number", "modality")}}
        row = {**named, **measurements["measurements"]}
        row |= {"warnings": "; ".join(warning["message"] for warning in warnings), "use": RESEARCH_USE}
        write_text(self.folder / self.SUMMARY, frame_to_csv(pd.DataFrame([row])))
        lesions = [{"scan": scan["name"], **_flat(lesion), "use": RESEARCH_USE} for lesion in measurements["lesions"]]
        columns = ["scan", *(column for name in LESION_VALUES for column in _columns(name)), "use"]
        write_text(self.folder / self.LESIONS, frame_to_csv(pd.DataFrame(lesions, columns=columns)))

    def save_picture(self, png: bytes) -> None:
        """Write the overview."""
        write_bytes(self.folder / self.PICTURE, png)

    def save_page(self, html: str) -> None:
        """Write the page."""
        write_text(self.folder / self.PAGE, html)

    def load_measurements(self) -> dict[str, Any]:
        """Read the measurements. Raises ArtifactError if they are missing or damaged."""
        self._check(self.MEASUREMENTS, Output.JSON)
        try:
            measurements: dict[str, Any] = json.loads((self.folder / self.MEASUREMENTS).read_text())
        except ValueError as error:
            raise ArtifactError(f"{self.folder / self.MEASUREMENTS} is damaged: {one_line(error)}") from None
        return measurements

    def load_mask(self, structure: int) -> sitk.Image:
        """Read the mask of a structure, uint8. Raises ArtifactError if it is missing or damaged."""
        name = self.MASKS[structure]
        self._check(name, Output.MASKS, f", by a model that was taught the {STRUCTURES[structure]}")
        mask = read_image(self.folder / name)
        if not np.isin(to_array(mask), (0, 1)).all():
            raise ArtifactError(f"{self.folder / name} is not a mask of 0 and 1")
        return mask

    def _check(self, name: str, output: Output, by: str = "") -> None:
        if not (self.folder / name).is_file():
            how = f"predict the scan with --only {output} or without --only{by}"
            raise ArtifactError(f"{self.folder} has no {name}: {how}")
        verify_artifact(self.folder, self.KIND, [name], deep=True)


class NotReplaceable(DataError):
    """A folder holds something else than an earlier result of the same scan."""


def check_replaceable(folder: Path, scan_hash: str) -> None:
    """Raise NotReplaceable if a folder is neither empty nor a prediction of the scan with this hash."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        made = read_any_manifest(folder) if (folder / MANIFEST).is_file() else None
    except ArtifactError as error:
        raise NotReplaceable(f"{error}: choose another --out, or delete that folder") from None
    if made is None or made.kind != PredictionFolder.KIND:
        raise NotReplaceable(f"{folder} exists and is not a prediction: choose another --out")
    if made.parents.get(SCAN) != scan_hash:
        raise NotReplaceable(f"{folder} holds the result of another scan: choose another --out, or delete that folder")


def is_prediction(folder: Path) -> bool:
    """Whether a folder is a predicted scan's, whole or not."""
    try:
        return (folder / MANIFEST).is_file() and read_any_manifest(folder).kind == PredictionFolder.KIND
    except ArtifactError:
        return False


def find_prediction(place: Path) -> PredictionFolder:
    """The prediction in a folder, or the only one in the folders below it. Raises ArtifactError if it is not one."""
    if not place.exists():
        raise ArtifactError(f"{place} does not exist")
    if (place / MANIFEST).is_file():
        return PredictionFolder(place)
    found = sorted(path.parent for path in place.glob(f"*/{MANIFEST}"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ArtifactError(f"{place} must be or hold one predicted scan, but holds {names}")
    return PredictionFolder(found[0])


def _columns(name: str) -> list[str]:
    """The columns of a value of a lesion, one for each coordinate: `centre_lps_mm_1` to `_3` for `centre_lps_mm`."""
    count = LESION_VALUES[name]
    return [name] if count == 1 else [f"{name}_{number}" for number in range(1, count + 1)]


def _flat(lesion: dict[str, Any]) -> dict[str, Any]:
    """The values of a lesion by column; those of a value that is missing are missing."""
    flat: dict[str, Any] = {}
    for name, value in lesion.items():
        parts = value if isinstance(value, list) else [value] * LESION_VALUES[name]
        flat |= dict(zip(_columns(name), parts, strict=True))
    return flat
