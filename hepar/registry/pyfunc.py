"""The model as MLflow loads it: `mlflow.pyfunc.load_model(uri).predict("scan.nii.gz")`.

MLflow executes this file when it loads a registered version (models from code), so it imports mlflow; the rest of
hepar reaches MLflow through `hepar.registry.tracking`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel

from hepar.cases import Modality
from hepar.imaging.preprocessing import guess_modality
from hepar.imaging.volumes import Geometry, read_image, to_image, write_image
from hepar.inference.prediction import load_model, mask_names, segment
from hepar.runtime.device import pick_device

OVERLAP = 0.5
MIN_LESION_ML = 0.1


class HeparModel(PythonModel):  # type: ignore[misc]
    """Segments scans given by path; preprocessing and plan come with the model."""

    _skip_type_hint_validation = True  # `predict` has none: MLflow would make a schema that has no room for a path

    def load_context(self, context: Any) -> None:
        self.model = load_model(Path(context.artifacts["model"]), pick_device())

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Segment one path, a list of paths, or a table with a column `image` and optionally `modality`.

        Gives for each scan the `modality`, volumes `liver_ml` and `tumour_ml`, and `labels`, uint8 zyx on the scan's
        own grid: 0 background, 1 liver, 2 tumour. With `params={"output": FOLDER}` the labels are also written there
        as `SCAN_labels.nii.gz` and `mask` names the file; scans of one name in several folders get their folder's name
        in front, and a DataError tells which would still be one file. An undeclared modality is told by the
        intensities.
        """
        rows, output = _rows(model_input), (params or {}).get("output")
        if not output:
            return [self._segment(row, None) for row in rows]
        names = mask_names([Path(row["image"]) for row in rows])
        return [self._segment(row, Path(output) / name) for row, name in zip(rows, names, strict=True)]

    def _segment(self, row: Mapping[str, Any], mask: Path | None) -> dict[str, Any]:
        path = Path(row["image"])
        image = read_image(path)
        modality = Modality(row["modality"]) if row.get("modality") else guess_modality(image)
        found = segment(self.model, image, modality, OVERLAP, MIN_LESION_ML)
        result = {
            "image": str(path),
            "modality": str(modality),
            "liver_ml": found.liver_ml,
            "tumour_ml": found.tumour_ml,
            "labels": found.labels,
        }
        if mask is not None:
            write_image(to_image(found.labels, Geometry.of(image)), mask)
            result["mask"] = str(mask)
        return result


def _rows(model_input: Any) -> list[Mapping[str, Any]]:
    if isinstance(model_input, pd.DataFrame):
        if "image" not in model_input.columns:
            raise ValueError(f"the table has columns {list(model_input.columns)}, a column 'image' is needed")
        return [{str(key): value for key, value in row.items()} for row in model_input.to_dict(orient="records")]
    if isinstance(model_input, str | Path):
        return [{"image": model_input}]
    return [{"image": item} if isinstance(item, str | Path) else item for item in model_input]


mlflow.models.set_model(HeparModel())
