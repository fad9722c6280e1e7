"""A champion that was scored on other patients is scored anew on those of its challenger, by its own model, once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from toy_cohort import EVERYWHERE, write_cohort
from toy_model import constant_weights, write_model
from toy_versions import ToyRegistry, scores, toy_gates

import hepar.registry.rescoring
import hepar.stages.evaluate
from hepar.cases import Cohort, LabelState, Modality
from hepar.errors import ArtifactError, DataError, StorageError
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.inference.settings import PredictionSettings
from hepar.params import Params, RegisterParams
from hepar.registry.champion import DECISION_TAG, promote
from hepar.registry.model_registry import RegisteredModel
from hepar.registry.promotion import Decision
from hepar.registry.rescoring import HeldOut, rescore
from hepar.registry.tracking import MODEL_TAG, connect
from hepar.runtime.commit import RELEASE

PATIENTS = ("p0", "p1", "p2")


@dataclass
class Scored:
    """A cohort, a model that takes everything for liver and one that finds none, and the report on each."""

    cohort: Path
    models: dict[str, Path]
    reports: dict[str, Report]

    def version(self, registry: ToyRegistry, name: str, liver: float | None = None, **changes: str) -> str:
        """The number of a version of a model with its report, or with other facts and another liver Dice in it."""
        report = self.reports[name]
        facts = {key: value for key, value in report.facts().items() if key != ModelFolder.KIND} | changes
        table = report.cases() if liver is None else report.cases().assign(liver_dice=liver)
        return registry.add(table, facts.pop(Report.TEST_SET), self.models[name], **facts)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tiny: Params) -> Scored:
    folder = tmp_path_factory.mktemp("scored")
    cohort = write_cohort(folder, PATIENTS)
    models, reports = {}, {}
    for name, liver in (("everywhere", 0.9), ("nowhere", 0.1)):
        models[name] = write_model(folder / name, tiny, constant_weights(tiny, liver, 0.1)).folder
        hepar.stages.evaluate.run(cohort, models[name], folder / f"report-{name}", tiny.evaluate)
        reports[name] = Report.load(folder / f"report-{name}")
    return Scored(cohort, models, reports)


@pytest.fixture
def registry(tmp_path: Path, database: None) -> ToyRegistry:
    return ToyRegistry(tmp_path / "registry")


@pytest.fixture
def params(tiny: Params) -> RegisterParams:
    gates = toy_gates(tiny)
    return gates.model_copy(update={"gates": gates.gates.model_copy(update={"min_liver_dice": 0.0})})


def count_predictions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by the modality of each scan that is predicted."""
    predicted: list[str] = []
    segment = hepar.registry.rescoring.segment

    def counting(models: Any, image: Any, modality: Any, settings: Any) -> Any:
        predicted.append(str(modality))
        return segment(models, image, modality, settings)

    monkeypatch.setattr(hepar.registry.rescoring, "segment", counting)
    return predicted


def test_a_challenger_meets_the_champions_own_model_and_not_itself(
    scored: Scored, registry: ToyRegistry, params: RegisterParams
) -> None:
    """The champion's own report, on other patients, is worse: what counts is its model, on those of the challenger."""
    registry.champion(scores(0.0), "earlier", scored.models["everywhere"])
    number = scored.version(registry, "nowhere")
    change = f"change -{EVERYWHERE:.3f} [-{EVERYWHERE:.3f}, -{EVERYWHERE:.3f}]"
    reason = f"CT liver Dice: {change} may lie below -0.020 (n = 3 patients)"
    assert promote(number, params, cohort=scored.cohort) == Decision(False, (reason,))


def test_a_better_challenger_wins_on_a_test_set_that_has_grown(
    scored: Scored, registry: ToyRegistry, params: RegisterParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = registry.champion(scores(0.99), "earlier", scored.models["nowhere"])
    number, predicted = scored.version(registry, "everywhere"), count_predictions(monkeypatch)
    dry = promote(number, params, dry_run=True, cohort=scored.cohort)
    assert (dry, len(predicted), registry.aliases) == (Decision(True, ()), 3, {"champion": first})
    assert promote(number, params, cohort=scored.cohort) == dry
    assert len(predicted) == 3  # the scores were kept
    assert registry.aliases == {"champion": number, "previous": first}


@pytest.mark.parametrize("release", ["0.0.1", ""])
def test_scores_of_another_release_are_made_anew_on_the_same_test_set(
    release: str, scored: Scored, registry: ToyRegistry, params: RegisterParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release before 0.1.0, which named itself or did not, found livers that the model of the champion misses."""
    first = scored.version(registry, "nowhere", liver=0.99, **{RELEASE: release})
    RegisteredModel(connect(), registry.name).make_champion(first)
    number, predicted = scored.version(registry, "everywhere"), count_predictions(monkeypatch)
    (reason,) = promote(number, params).reasons
    assert reason.startswith(f"not comparable: version {first}, the champion, was scored by another release of hepar; ")
    assert "pass --cohort with the cohort of version 2" in reason
    assert promote(number, params, cohort=scored.cohort) == Decision(True, ())
    assert len(predicted) == 3


def test_a_challenger_of_another_release_is_scored_anew_beside_the_champion(
    scored: Scored,
    registry: ToyRegistry,
    params: RegisterParams,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    RegisteredModel(connect(), registry.name).make_champion(scored.version(registry, "nowhere"))
    number = scored.version(registry, "everywhere", liver=0.0, **{RELEASE: "0.0.1"})
    predicted = count_predictions(monkeypatch)
    assert promote(number, params, cohort=scored.cohort) == Decision(True, ())
    assert len(predicted) == 6
    before, after = [line for line in capsys.readouterr().err.splitlines() if ": 3/3 cases, " in line]
    assert ", version 1" in before  # whose model is at work
    assert f", version {number}" in after


def test_scores_of_one_release_pair_whichever_it_is(
    scored: Scored, registry: ToyRegistry, params: RegisterParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scored.version(registry, "nowhere", **{RELEASE: "0.0.1"})
    RegisteredModel(connect(), registry.name).make_champion(first)
    number, predicted = scored.version(registry, "everywhere", **{RELEASE: "0.0.1"}), count_predictions(monkeypatch)
    assert promote(number, params) == Decision(True, ())
    assert predicted == []


def test_kept_scores_are_of_one_case_one_model_and_one_setting(
    scored: Scored, registry: ToyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, predicted = RegisteredModel(connect(), registry.name), count_predictions(monkeypatch)
    version = model.version(registry.add(None, model=scored.models["everywhere"]))
    assert version is not None
    cohort = Cohort.load(scored.cohort)
    before = HeldOut(cohort, cohort.cases[:2], PredictionSettings())
    assert [result.liver_dice for result in rescore(model.mlflow, version, before)] == [pytest.approx(EVERYWHERE)] * 2
    known = replace(cohort.cases[0], liver_state=LabelState.UNKNOWN)
    for held_out, more in (
        (before, 0),
        (replace(before, cases=cohort.cases), 1),
        (replace(before, settings=PredictionSettings(min_lesion_ml=0.5)), 2),
        (replace(before, cases=(known,)), 1),
    ):
        count = len(predicted)
        found = rescore(model.mlflow, version, held_out)
        assert len(predicted) - count == more
        assert [result.case_id for result in found] == [case.case_id for case in held_out.cases]
    assert found[0].liver_dice is None


def test_a_modality_that_the_champion_does_not_know_is_not_scored(scored: Scored, registry: ToyRegistry) -> None:
    model = RegisteredModel(connect(), registry.name)
    version = model.version(registry.add(None, model=scored.models["everywhere"]))
    assert version is not None
    cohort = Cohort.load(scored.cohort)
    cases = (replace(cohort.cases[0], modality=Modality.MR), cohort.cases[1])
    mr, ct = rescore(model.mlflow, version, HeldOut(cohort, cases, PredictionSettings()))
    assert (mr.case_id, mr.modality, mr.liver_dice, mr.tumour_dice, mr.lesions) == ("CT-p0", "MR", None, None, None)
    assert ct.liver_dice == pytest.approx(EVERYWHERE)


def test_what_the_champion_can_do_must_have_been_tested(
    scored: Scored, registry: ToyRegistry, params: RegisterParams
) -> None:
    """A challenger that is tested on CT alone does not replace a champion of CT and MR."""
    both = pd.concat([scores(0.9), scores(0.9).assign(modality="MR", case_id=[f"m{n}" for n in range(6)])])
    registry.champion(both, "earlier", scored.models["nowhere"])
    decision = promote(scored.version(registry, "everywhere"), params, cohort=scored.cohort)
    assert decision == Decision(False, ("MR liver Dice: not enough evidence, n = 0 paired patients < 3",))


def test_patients_that_the_champion_learned_from_are_left_out_by_name(
    scored: Scored, registry: ToyRegistry, params: RegisterParams, tiny: Params, tmp_path: Path
) -> None:
    weights = constant_weights(tiny, 0.1, 0.1)
    champion = write_model(tmp_path / "model", tiny, weights, patients=("p1", "somebody else")).folder
    first, number = registry.champion(scores(0.5), "earlier", champion), scored.version(registry, "everywhere")
    left_out = (f"patient p1 is left out: version {first} learned from this patient",)
    names = ("liver Dice", "tumour Dice", "lesion recall", "false lesions")
    few = tuple(f"CT {name}: not enough evidence, n = 2 paired patients < 3" for name in names)
    assert promote(number, params, cohort=scored.cohort) == Decision(False, few, left_out)
    assert registry.tag(number, DECISION_TAG) == "; ".join(["not promoted", *few, *left_out])
    enough = params.model_copy(update={"gates": params.gates.model_copy(update={"min_patients": 2})})
    assert promote(number, enough, cohort=scored.cohort) == Decision(True, (), left_out)
    assert registry.tag(number, DECISION_TAG) == f"promoted; {left_out[0]}"


def test_patients_that_the_challenger_learned_from_are_left_out_by_name(
    registry: ToyRegistry, params: RegisterParams, tiny: Params, tmp_path: Path
) -> None:
    """`evaluate` refuses such a model; a report that was made in another way meets this."""
    cheating = write_model(tmp_path / "model", tiny, patients=("p3",)).folder
    table = scores(0.6)
    table.loc[table["patient_id"] == "p3", "liver_dice"] = 0.0
    number = registry.add(table, model=cheating)
    left_out = (f"patient p3 is left out: version {number} learned from this patient",)
    assert promote(number, toy_gates(tiny), dry_run=True) == Decision(True, (), left_out)


def test_the_same_model_does_not_compete_with_itself(
    scored: Scored, registry: ToyRegistry, params: RegisterParams
) -> None:
    first = registry.champion(scores(0.1), "earlier", scored.models["everywhere"])
    number = scored.version(registry, "everywhere")
    reason = f"version {first}, the champion, is the same model"
    assert promote(number, params, cohort=scored.cohort) == Decision(False, (reason,))


def test_another_cohort_than_that_of_the_report_is_refused(
    scored: Scored, registry: ToyRegistry, params: RegisterParams, tmp_path: Path
) -> None:
    registry.champion(scores(0.1), "earlier", scored.models["nowhere"])
    number, other = scored.version(registry, "everywhere"), write_cohort(tmp_path, PATIENTS[:2])
    known = scored.reports["everywhere"].facts()[Cohort.KIND][:12]
    message = rf"does not hold the test set that version {number} was scored on: .* cohort of its report \({known}\)$"
    with pytest.raises(DataError, match=message):
        promote(number, params, cohort=other)
    assert registry.aliases == {"champion": "1"}
    decision = promote(number, params, force=True, cohort=other)
    assert decision.reasons[1].startswith(f"could not be judged: {other} does not hold the test set")
    assert registry.aliases == {"champion": number, "previous": "1"}


def test_a_champion_whose_model_is_not_the_registered_one_is_refused(
    scored: Scored, registry: ToyRegistry, params: RegisterParams
) -> None:
    registry.champion(scores(0.1), "earlier", scored.models["nowhere"])
    registry.client.set_model_version_tag(registry.name, "1", MODEL_TAG, "f" * 64)
    number = scored.version(registry, "everywhere")
    with pytest.raises(ArtifactError, match=r"holds model [0-9a-f]{12}, but was registered as f{12}$"):
        promote(number, params, cohort=scored.cohort)
    assert registry.aliases == {"champion": "1"}
    decision = promote(number, params, force=True, cohort=scored.cohort)
    assert decision.reasons[1].startswith("could not be judged: models:/hepar-toy/1 holds model ")
    assert registry.aliases == {"champion": number, "previous": "1"}


def test_a_list_of_patients_that_cannot_be_read_is_not_taken_for_empty(
    registry: ToyRegistry, params: RegisterParams
) -> None:
    number = registry.add(scores(0.9))
    next(registry.folder.rglob(f"artifacts/**/{ModelFolder.PATIENTS}")).unlink()
    with pytest.raises(StorageError, match=r"version 1 of hepar-toy: the patients that it learned from cannot be read"):
        promote(number, params)
