"""The lease: one process at a time, the next after a dead one, and eight promotions at once."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from commands import fork
from promote_at_once import promote_at_once
from services import mlflow_server, postgres_server
from toy_versions import ToyRegistry, scores, toy_gates
from waiting import wait_until

from hepar.errors import StorageError
from hepar.params import Params
from hepar.registry.champion import DECISION_TAG
from hepar.registry.lease import SOURCE, hold_lease
from hepar.registry.tracking import connect

pytestmark = pytest.mark.usefixtures("database")
NAME, TICKETS = "toy", "toy-lease"
DICES = (0.75, 0.6, 0.9, 0.55, 0.8, 0.65, 0.85, 0.7)  # of eight challengers; the margin is 0.02


class Clock:
    """A clock that stands still until a test moves it, and knows how often each thread has read it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.reads: dict[int, int] = {}

    def __call__(self) -> float:
        thread = threading.get_ident()
        self.reads[thread] = self.reads.get(thread, 0) + 1
        return self.now


def tickets() -> list[int]:
    found = mlflow.MlflowClient().search_model_versions(f"name='{TICKETS}'")
    return sorted(int(version.version) for version in found)


def leave_ticket() -> None:
    """The ticket of a process that died."""
    client = connect().MlflowClient()
    client.create_registered_model(TICKETS)
    client.create_model_version(TICKETS, SOURCE)


def test_a_lease_leaves_no_ticket_behind() -> None:
    for number in (1, 2):
        with hold_lease(connect(), NAME) as lease:
            lease.check()
            assert tickets() == [number]  # a number is never given again
        assert tickets() == []
    with pytest.raises(ZeroDivisionError), hold_lease(connect(), NAME):
        _ = 1 / 0
    assert tickets() == []


def test_a_holder_that_took_too_long_stops() -> None:
    clock = Clock()
    with hold_lease(connect(), NAME, seconds=60, clock=clock) as lease:
        clock.now = 29
        lease.check()
        clock.now = 31  # half the time is left to finish what has begun
        with pytest.raises(StorageError, match=r"^the registry at sqlite:.* the lease on toy ran out"):
            lease.check()


def test_those_who_wait_for_a_dead_process_go_on_one_by_one() -> None:
    leave_ticket()
    clock, inside, most, done = Clock(), set[int](), list[int](), list[int]()

    def work() -> None:
        with hold_lease(mlflow, NAME, seconds=60, clock=clock):
            inside.add(threading.get_ident())
            time.sleep(0.05)
            most.append(len(inside))
            inside.remove(threading.get_ident())
        done.append(threading.get_ident())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(clock.reads) == 3 and min(clock.reads.values()) >= 4)
    assert (done, len(tickets())) == ([], 4)
    clock.now = 61.0
    for thread in threads:
        thread.join(60)
    assert (len(done), most, tickets()) == (3, [1, 1, 1], [])


def test_who_loses_the_ticket_while_waiting_says_so() -> None:
    leave_ticket()
    errors: list[str] = []

    def work() -> None:
        try:
            with hold_lease(mlflow, NAME):
                pass
        except StorageError as error:
            errors.append(str(error))

    waiting = threading.Thread(target=work)
    waiting.start()
    wait_until(lambda: len(tickets()) == 2)
    mlflow.MlflowClient().delete_model_version(TICKETS, "2")
    mlflow.MlflowClient().delete_model_version(TICKETS, "1")
    waiting.join(60)
    assert len(errors) == 1
    assert errors[0].startswith("the lease on toy at sqlite:")


def all_are_judged_in_turn(folder: Path, tiny: Params, uri: str) -> None:
    """Eight challengers meet at once: in whatever order, each is judged against the champion of its moment."""
    registry = ToyRegistry(folder)
    first = registry.champion(scores(0.5))
    dice_of = {registry.add(scores(dice)): dice for dice in DICES}
    work = fork(promote_at_once, toy_gates(tiny), list(dice_of), folder=folder, MLFLOW_TRACKING_URI=uri)
    done = work.end()
    assert done.code == 0, done.stderr
    decisions: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert {decision["version"] for decision in decisions} == set(dice_of)
    promoted = sorted((d["version"] for d in decisions if d["promoted"]), key=dice_of.__getitem__)
    before = promoted[-2] if len(promoted) > 1 else first
    assert registry.aliases == {"champion": promoted[-1], "previous": before}
    assert dice_of[promoted[-1]] == max(DICES)
    for number in dice_of:
        assert registry.tag(number, DECISION_TAG).startswith("promoted" if number in promoted else "not promoted; CT")


@pytest.mark.slow
def test_eight_promotions_at_once_on_sqlite(tmp_path: Path, tiny: Params) -> None:
    all_are_judged_in_turn(tmp_path / "toy", tiny, f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.mark.slow
def test_eight_promotions_at_once_on_a_server_with_postgresql(
    tmp_path: Path, tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres_server(tmp_path) as database, mlflow_server(tmp_path, database) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        all_are_judged_in_turn(tmp_path / "toy", tiny, url)
