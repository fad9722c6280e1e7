"""Promotion and rollback in a registry on SQLite: aliases, tags, and versions that cannot be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from conftest import call
from toy_versions import ToyRegistry, scores, toy_gates

from hepar.errors import DataError, StorageError
from hepar.params import Params, RegisterParams, dump_params
from hepar.registry.champion import DECISION_TAG, RESULT_TAG, Judge, Rollback, promote, rollback, settle
from hepar.registry.lease import Lease
from hepar.registry.model_registry import RegisteredModel, pool_version
from hepar.registry.promotion import Decision
from hepar.registry.registration import Registration
from hepar.registry.tracking import connect
from hepar.registry.version_scores import version_scores
from hepar.runtime.commit import RELEASE

WORSE = "CT liver Dice: change -0.100 [-0.100, -0.100] may lie below -0.020 (n = 6 patients)"


@pytest.fixture
def registry(tmp_path: Path, database: None) -> ToyRegistry:
    return ToyRegistry(tmp_path / "registry")


@pytest.fixture
def params(tiny: Params) -> RegisterParams:
    return toy_gates(tiny)


def test_a_better_version_takes_the_place_of_the_champion(registry: ToyRegistry, params: RegisterParams) -> None:
    first, second = registry.champion(scores(0.8)), registry.add(scores(0.9))
    RegisteredModel(connect(), registry.name).make_challenger(second)
    assert promote(second, params) == Decision(True, ())
    assert registry.aliases == {"champion": second, "previous": first}  # and it is no challenger any more
    assert registry.tag(second, DECISION_TAG) == "promoted"


def test_a_worse_version_stays_and_the_reasons_are_kept(registry: ToyRegistry, params: RegisterParams) -> None:
    first, second = registry.champion(scores(0.9)), registry.add(scores(0.8))
    assert promote(second, params) == Decision(False, (WORSE,))
    assert registry.aliases == {"champion": first}
    assert registry.tag(second, DECISION_TAG) == f"not promoted; {WORSE}"


def test_force_promotes_and_keeps_the_reasons_against_it(registry: ToyRegistry, params: RegisterParams) -> None:
    first, second = registry.champion(scores(0.9)), registry.add(scores(0.8))
    assert promote(second, params, force=True) == Decision(True, ("by force", WORSE))
    assert registry.aliases == {"champion": second, "previous": first}
    assert registry.tag(second, DECISION_TAG) == f"promoted; by force; {WORSE}"


def test_force_replaces_a_champion_that_cannot_be_judged(registry: ToyRegistry, params: RegisterParams) -> None:
    first, second = registry.champion(scores(0.8)), registry.add(scores(0.9))
    for table in registry.folder.rglob("artifacts/**/cases.csv"):
        if "0.8" in table.read_text():
            table.unlink()
    with pytest.raises(StorageError, match=r"^version 1 of hepar-toy: its report cannot be read from sqlite:"):
        promote(second, params)
    for dry_run in (True, False):
        assert registry.aliases == {"champion": first}
        decision = promote(second, params, force=True, dry_run=dry_run)
        assert (decision.promote, decision.reasons[0]) == (True, "by force")
        assert decision.reasons[1].startswith("could not be judged: version 1 of hepar-toy: its report cannot be read")
    assert registry.aliases == {"champion": second, "previous": first}
    assert registry.tag(second, DECISION_TAG) == f"promoted; by force; {decision.reasons[1]}"
    assert promote(registry.add(scores(0.95)), params) == Decision(True, ())  # and the next needs no force


def test_force_makes_no_version_up(registry: ToyRegistry, params: RegisterParams) -> None:
    first = registry.champion(scores(0.8))
    for dry_run in (True, False):
        with pytest.raises(DataError, match=r"^model hepar-toy has no version 7 at sqlite:"):
            promote("7", params, force=True, dry_run=dry_run)
    assert registry.aliases == {"champion": first}


@pytest.mark.parametrize(("liver", "force"), [(0.95, False), (0.8, False), (0.8, True)])
def test_a_dry_run_decides_alike_and_changes_nothing(
    liver: float, force: bool, registry: ToyRegistry, params: RegisterParams
) -> None:
    first, second = registry.champion(scores(0.9)), registry.add(scores(liver))
    before = registry.tags([first, second])
    dry = promote(second, params, force, dry_run=True)
    assert (registry.aliases, registry.tags([first, second])) == ({"champion": first}, before)
    assert promote(second, params, force) == dry
    assert dry.promote == (liver > 0.9 or force)


def test_promoting_the_champion_again_keeps_the_way_back(registry: ToyRegistry, params: RegisterParams) -> None:
    first, second = registry.champion(scores(0.8)), registry.add(scores(0.9))
    promote(second, params)
    assert promote(second, params) == Decision(True, ("it is already the champion",))
    assert registry.aliases == {"champion": second, "previous": first}
    assert registry.tag(second, DECISION_TAG) == "promoted"


def test_a_rollback_undoes_a_promotion_once(registry: ToyRegistry, params: RegisterParams) -> None:
    first, second = registry.champion(scores(0.8)), registry.add(scores(0.9))
    promote(second, params)
    done = rollback(params)
    assert (done.restored, done.replaced) == (first, second)
    assert registry.aliases == {"champion": first}
    assert registry.tag(second, DECISION_TAG) == f"rolled back to version {first}"
    assert registry.tag(first, DECISION_TAG) == f"champion again after version {second}"
    with pytest.raises(DataError, match=r"^model hepar-toy has no previous champion at sqlite:"):
        rollback(params)  # so a repeated rollback does not bring the second version back
    assert registry.aliases == {"champion": first}


@pytest.mark.parametrize("broken", ["set_registered_model_alias", "delete_registered_model_alias"])
def test_a_rollback_that_breaks_off_is_completed_by_the_next(
    broken: str, registry: ToyRegistry, params: RegisterParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = registry.champion(scores(0.8)), registry.add(scores(0.9))
    promote(second, params)

    def fail(*args: object) -> None:
        raise mlflow.MlflowException("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, broken, fail)
        with pytest.raises(StorageError, match=r"out of order$"):
            rollback(params)
    assert rollback(params) == Rollback(first, second if broken == "set_registered_model_alias" else "")
    assert registry.aliases == {"champion": first}
    assert registry.tag(first, DECISION_TAG).startswith("champion again")


@pytest.mark.parametrize("done", range(4))
def test_a_promotion_that_dies_loses_no_way_back(
    done: int, registry: ToyRegistry, params: RegisterParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many changes of aliases; whoever is champion then, a rollback restores the champion before."""
    zero, first, second = registry.champion(scores(0.7)), registry.champion(scores(0.8)), registry.add(scores(0.9))
    left = [done]

    def dying(change: Any) -> Any:
        def act(*words: Any) -> None:
            if left[0] == 0:
                raise mlflow.MlflowException("killed")
            left[0] -= 1
            change(*words)

        return act

    with monkeypatch.context() as patch:
        for name in ("set_registered_model_alias", "delete_registered_model_alias"):
            patch.setattr(mlflow.MlflowClient, name, dying(getattr(mlflow.MlflowClient, name)))
        with pytest.raises(StorageError, match=r"killed$"):
            promote(second, params)
    champion = registry.aliases["champion"]
    before = {first: zero, second: first}[champion]
    assert rollback(params) == Rollback(before, champion)
    assert registry.aliases == {"champion": before}


def test_a_promotion_that_breaks_off_is_completed_by_the_next(
    registry: ToyRegistry, params: RegisterParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = registry.champion(scores(0.8)), registry.add(scores(0.9))
    RegisteredModel(connect(), registry.name).make_challenger(second)
    point: Any = mlflow.MlflowClient.set_registered_model_alias

    def fail(client: Any, name: str, alias: str, number: str) -> None:
        if alias == "champion":
            raise mlflow.MlflowException("out of order")
        point(client, name, alias, number)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", fail)
        with pytest.raises(StorageError, match=r"out of order$"):
            promote(second, params)
    assert registry.aliases["champion"] == first
    promote(second, params)
    assert registry.aliases == {"champion": second, "previous": first}  # nothing is outgoing any more


def test_a_champion_has_its_decision_however_soon_the_promotion_dies(
    registry: ToyRegistry, params: RegisterParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, then promoted by force, which dies as soon as the alias is moved."""
    registry.champion(scores(0.9))
    second = registry.add(scores(0.8))
    assert not promote(second, params).promote
    move = RegisteredModel.make_champion

    def move_and_die(model: RegisteredModel, number: str) -> None:
        move(model, number)
        raise mlflow.MlflowException("killed")

    with monkeypatch.context() as patch:
        patch.setattr(RegisteredModel, "make_champion", move_and_die)
        with pytest.raises(StorageError, match=r"killed$"):
            promote(second, params, force=True)
    promote(second, params)
    assert registry.aliases["champion"] == second
    assert registry.tag(second, DECISION_TAG) == f"promoted; by force; {WORSE}"


@pytest.mark.parametrize("change", ["make_champion", "make_challenger"])
def test_no_alias_changes_once_the_lease_ran_out(change: str, registry: ToyRegistry) -> None:
    first, second = registry.champion(scores(0.8)), registry.add(scores(0.9))
    late = RegisteredModel(connect(), registry.name, Lease(registry.name, end=30.0, clock=lambda: 31.0))
    with pytest.raises(StorageError, match=r"the lease on hepar-toy ran out"):
        getattr(late, change)(second)
    assert registry.aliases == {"champion": first}


def test_without_a_cohort_scores_on_another_test_set_are_not_compared(
    registry: ToyRegistry, params: RegisterParams
) -> None:
    first, second = registry.champion(scores(0.8), test_set="a"), registry.add(scores(0.99), test_set="b")
    reason = (
        f"not comparable: version {first}, the champion, was scored on another test set; pass --cohort with the cohort"
        f" of version {second} to score it on the same patients"
    )
    assert promote(second, params) == Decision(False, (reason,))
    assert registry.aliases == {"champion": first}


@pytest.mark.parametrize("release", ["0.0.1", ""])
def test_without_a_cohort_scores_of_another_release_are_not_compared(
    release: str, registry: ToyRegistry, params: RegisterParams
) -> None:
    first, second = registry.champion(scores(0.8), **{RELEASE: release}), registry.add(scores(0.99))
    (reason,) = promote(second, params).reasons
    assert reason.startswith(f"not comparable: version {first}, the champion, was scored by another release of hepar; ")
    assert registry.aliases == {"champion": first}


def test_a_champion_without_its_scores_by_case_is_not_compared(registry: ToyRegistry, params: RegisterParams) -> None:
    first, second = registry.champion(None), registry.add(scores(0.99))
    reason = f"not comparable: version {first}, the champion, was registered without its scores by case"
    assert promote(second, params) == Decision(False, (reason,))
    assert promote(second, params, force=True).promote


def test_a_version_without_its_scores_by_case_is_not_promoted(registry: ToyRegistry, params: RegisterParams) -> None:
    number = registry.add(None)
    reason = f"version {number} was registered without its scores by case"
    assert promote(number, params) == Decision(False, (reason,))


def test_scores_that_cannot_be_read_are_not_taken_for_missing(registry: ToyRegistry, params: RegisterParams) -> None:
    registry.champion(scores(0.8).drop(columns="specific"))
    with pytest.raises(StorageError, match=r"^version 1 of hepar-toy: its report cannot be read from sqlite:"):
        promote(registry.add(scores(0.9)), params)


def test_a_version_that_does_not_exist_is_named(registry: ToyRegistry, params: RegisterParams) -> None:
    with pytest.raises(DataError, match=r"^model hepar-toy has no version 7 at sqlite:"):
        promote("7", params)
    with pytest.raises(DataError, match=r"^model nobody has no previous champion at sqlite:"):
        rollback(params.model_copy(update={"model_name": "nobody"}))


def test_no_registry_is_made_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: RegisterParams
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'none.db'}")
    version = f"models:/{params.model_name}/1"
    for work in (
        lambda: promote("1", params),
        lambda: rollback(params),
        lambda: version_scores(version),
        lambda: pool_version(version),
    ):
        with pytest.raises(DataError, match=r"^there is no registry at sqlite:///"):
            work()
    assert not (tmp_path / "none.db").exists()


def test_a_first_version_below_a_floor_stays_challenger(registry: ToyRegistry, params: RegisterParams) -> None:
    number = registry.add(scores(0.01))
    result = settle(number, Judge(RegisteredModel(connect(), registry.name), params.gates))
    assert result == Registration(registry.name, number, "challenger", ("CT liver Dice 0.010 < 0.500 (n = 6 scans)",))
    assert registry.aliases == {"challenger": number}
    assert Registration.from_json(registry.tag(number, RESULT_TAG)) == result


def test_the_commands_print_decisions_and_reasons(tiny: Params, tmp_path: Path, registry: ToyRegistry) -> None:
    gates = dump_params(tiny) | {"register": toy_gates(tiny).model_dump(mode="json")}
    del gates["cluster"]  # as in the params of a run of an older release
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(gates))
    first, second = registry.champion(scores(0.9)), registry.add(scores(0.8))
    (tmp_path / second).mkdir()  # digits are never taken for a folder of pointers
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    commands = (
        f"promote {second}",
        f"promote 0{second} --force --dry-run",
        f"promote {second} --force",
        f"promote {second} --dry-run",
        f"promote {second}",
        *["rollback"] * 2,
    )
    ended = [
        call("hepar", *command.split(), "--params", "own.yaml", cwd=tmp_path, MLFLOW_TRACKING_URI=uri)
        for command in commands
    ]
    assert [(done.returncode, done.stdout) for done in ended] == [
        (1, f"version {second}: not promoted; {WORSE}\n"),
        (0, f"version {second}: would become champion; by force; {WORSE}\n"),
        (0, f"version {second}: champion; by force; {WORSE}\n"),
        (0, f"version {second} is the champion already; nothing would change\n"),
        (0, f"version {second} is the champion already; nothing changed\n"),
        (0, f"version {first}: champion again; it replaces version {second}\n"),
        (2, ""),
    ]
    assert ended[-1].stderr.startswith("hepar: model hepar-toy has no previous champion at sqlite:")
