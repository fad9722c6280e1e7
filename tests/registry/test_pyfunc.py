"""The model as MLflow loads it: it predicts with all members, by the settings it was registered with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toy_case import write_noise
from toy_model import constant_weights, write_model

from hepar.errors import DataError
from hepar.inference.model_folder import ModelFolder
from hepar.inference.settings import PredictionSettings
from hepar.params import Params

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning")  # by mlflow, when it is imported


def predict(folder: Path, tiny: Params, config: dict[str, Any] | None, modality: str = "CT") -> dict[str, Any]:
    """The prediction of a scan by two members, of which one finds liver everywhere and the other tumour everywhere."""
    from hepar.registry.pyfunc import HeparModel

    write_noise(folder / "scan.nii.gz")
    liver, tumour = constant_weights(tiny, 0.9, 0.2), constant_weights(tiny, 0.2, 0.9)
    write_model(folder / "model", tiny, liver, members=[tumour], tumour_threshold=0.52)
    model = HeparModel()
    model.load_context(SimpleNamespace(artifacts={ModelFolder.KIND: str(folder / "model")}, model_config=config))
    (found,) = model.predict(None, [{"image": folder / "scan.nii.gz", "modality": modality}])
    return dict(found)


def test_it_predicts_with_all_members_and_by_its_own_threshold(tiny: Params, tmp_path: Path) -> None:
    found = predict(tmp_path, tiny, None)
    assert (found["labels"] == 2).all()
    (lesion,) = found["lesions"]
    assert lesion["confidence"] == pytest.approx(0.55, abs=1e-5)
    assert lesion["volume_ml"] == pytest.approx(found["tumour_ml"])


def test_it_predicts_as_it_was_evaluated(tiny: Params, tmp_path: Path) -> None:
    found = predict(tmp_path, tiny, dict(PredictionSettings(tumour_threshold=0.6).facts()))
    assert (found["labels"] == 1).all()
    assert (found["tumour_ml"], found["lesions"]) == (0, [])


def test_it_refuses_a_modality_that_it_was_not_trained_on_and_asks_for_one_that_is_not_clear(
    tiny: Params, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"^the scan is MR, but the model was trained on CT only$"):
        predict(tmp_path, tiny, None, modality="MR")
    with pytest.raises(DataError, match=r"/scan\.nii\.gz may be CT or MR by its values, .*, the column modality\)$"):
        predict(tmp_path, tiny, None, modality="")
