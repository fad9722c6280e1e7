"""Settings of a prediction: the model's own, and how reports and registered models record them."""

from __future__ import annotations

import pytest
from toy_model import toy_spec

from hepar.inference.settings import Axis, OperatingPoint, PredictionSettings
from hepar.params import NetworkParams, Params

SPEC = toy_spec(NetworkParams(name="none", config={})).model_copy(
    update={"tumour_threshold": 0.6, "min_lesion_ml": 0.25}
)


def test_what_the_settings_leave_open_is_the_models_own() -> None:
    assert PredictionSettings().operating_point(SPEC) == OperatingPoint(0.6, 0.25)
    assert PredictionSettings(tumour_threshold=0.4).operating_point(SPEC) == OperatingPoint(0.4, 0.25)
    assert PredictionSettings(min_lesion_ml=0).operating_point(SPEC) == OperatingPoint(0.6, 0)
    assert PredictionSettings(overlap=0.25).for_model(SPEC) == PredictionSettings(0.25, 1, (), 0.6, 0.25)


def test_a_lesion_reaches_as_far_as_three_fifths_of_what_it_must_exceed() -> None:
    assert OperatingPoint().outline_threshold == pytest.approx(0.3)
    assert OperatingPoint(0.4).outline_threshold == pytest.approx(0.24)


def test_settings_survive_as_texts_and_come_from_numbers_too() -> None:
    settings = PredictionSettings(0.25, 3, (Axis.Z, Axis.X), 0.4, 0.2)
    assert PredictionSettings.from_facts(settings.facts()) == settings
    assert all(isinstance(text, str) for text in settings.facts().values())
    numbers = {"overlap": 0.25, "variants": 3, "mirror_axes": ["z", "x"], "tumour_threshold": 0.4, "min_lesion_ml": 0.2}
    assert PredictionSettings.from_facts(numbers) == settings
    assert PredictionSettings.from_facts(PredictionSettings().facts()) == PredictionSettings()
    assert PredictionSettings.from_facts({}) == PredictionSettings()


@pytest.mark.parametrize("wrong", [{"mirror_axes": "xq"}, {"overlap": "half"}])
def test_settings_that_cannot_be_read_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"q|half"):
        PredictionSettings.from_facts(wrong)


def test_an_evaluation_predicts_by_its_params(tiny: Params) -> None:
    params = tiny.evaluate.model_copy(update={"variants": 3, "mirror_axes": ("x",), "min_lesion_ml": 0.3})
    expected = PredictionSettings(params.overlap, 3, (Axis.X,), None, 0.3)
    assert PredictionSettings.from_params(params) == expected
