"""The model as MLflow loads it: `mlflow.pyfunc.load_model(uri).predict("scan.nii.gz")`.

MLflow executes this file when it loads a registered version (models from code), so it imports mlflow. The rest of hepar
reaches MLflow through `hepar.registry.tracking`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel

from hepar.cases import Modality
from hepar.imaging.modality import guess_modality
from hepar.imaging.volumes import Geometry, read_image, to_image, write_image
from hepar.inference.model_folder import ModelFolder
from hepar.inference.prediction import label_file_names, load_ensemble, segment
from hepar.inference.settings import PredictionSettings
from hepar.runtime.device import pick_device


class HeparModel(PythonModel):  # type: ignore[misc]
    """Segments scans given by path; the preprocessing comes with the model."""

    _skip_type_hint_validation = True  # from type hints MLflow would infer a schema, which cannot express a path

    def load_context(self, context: Any) -> None:
        self.models = load_ensemble(Path(context.artifacts[ModelFolder.KIND]), pick_device())
        self.settings = PredictionSettings.from_facts(context.model_config or {})  # that it was evaluated with

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Segment a path, a list of paths, or a table with a column `image` and optionally `modality`.

        Returns for each scan the `modality`, the volumes `liver_ml` and `tumour_ml` (None for a structure that the
        model was not taught), the `lesions`, each a dict of the fields of `PredictedLesion`, and `labels`, uint8 zyx on
        the grid of the scan: 0 background, 1 liver, 2 tumour. With `params={"output": FOLDER}` the labels are also
        written to `SCAN_labels.nii.gz` in that folder, and `mask` is the path. Scans of the same name are prefixed with
        the names of their folders; raises DataError if they still collide. Without `modality` it is guessed from the
        intensities.
        """
        rows, output = _rows(model_input), (params or {}).get("output")
        if not output:
            return [self._segment(row, None) for row in rows]
        names = label_file_names([Path(row["image"]) for row in rows])
        return [self._segment(row, Path(output) / name) for row, name in zip(rows, names, strict=True)]

    def _segment(self, row: Mapping[str, Any], mask: Path | None) -> dict[str, Any]:
        path = Path(row["image"])
        image = read_image(path)
        modality = Modality(row["modality"]) if row.get("modality") else guess_modality(image, path)
        found = segment(self.models, image, modality, self.settings)
        result = {
            "image": str(path),
            "modality": str(modality),
            "liver_ml": found.liver_ml,
            "tumour_ml": found.tumour_ml,
            "lesions": [asdict(lesion) for lesion in found.lesions],
            "labels": found.labels_zyx,
        }
        if mask is not None:
            write_image(to_image(found.labels_zyx, Geometry.of(image)), mask)
            result["mask"] = str(mask)
        return result


def _rows(model_input: Any) -> list[Mapping[str, Any]]:
    if isinstance(model_input, pd.DataFrame):
        if "image" not in model_input.columns:
            raise ValueError(f"the table must have a column 'image' but has {list(model_input.columns)}")
        return [{str(key): value for key, value in row.items()} for row in model_input.to_dict(orient="records")]
    if isinstance(model_input, str | Path):
        return [{"image": model_input}]
    return [{"image": item} if isinstance(item, str | Path) else item for item in model_input]


mlflow.models.set_model(HeparModel())
