"""A lease on a registered model: of all processes that reach the registry, one at a time changes the model's aliases.

Setting an alias is not compare-and-swap, but adding a version is: the registry gives each version a number of its own,
never again, even if the version is deleted. So a lease is a ticket, a version of the registered model `NAME-lease`.
Whoever has the lowest ticket holds the lease, and deletes the ticket at the end. A ticket that stays the lowest for too
long is that of a dead process: those who wait delete it, and the next one holds the lease. Each process measures that
time by its own clock from when it first saw the ticket, so clocks need not agree.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hepar.errors import StorageError
from hepar.registry.tracking import reason_of, server, tag_name

LEASE_SECONDS = 60.0  # after which a ticket is that of a dead process; what is done under a lease takes about a second
MARGIN = 0.5  # the share of that time after which the holder itself stops
POLL_SECONDS = 0.2
ATTEMPTS = 20  # to get a ticket, where several processes ask for one at once
SOURCE = "ticket:/none"  # a version must name a source
OWNER = tag_name("owner")  # of a ticket: who to ask
GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
THERE = "RESOURCE_ALREADY_EXISTS"


@dataclass(frozen=True)
class Lease:
    """The right to change the aliases of a model until `end`, a time of `clock`."""

    model: str
    end: float
    clock: Callable[[], float]

    def check(self) -> None:
        """Raise StorageError if so much time has passed that another process may soon hold the lease."""
        if self.clock() >= self.end:
            raise StorageError(f"the registry at {server()} is too slow: the lease on {self.model} ran out; try again")


@contextlib.contextmanager
def hold_lease(
    mlflow: Any, model: str, seconds: float = LEASE_SECONDS, clock: Callable[[], float] = time.monotonic
) -> Iterator[Lease]:
    """Hold the lease on a registered model; waits while another process does, at most `seconds` for a dead one.

    Raises StorageError if the registry gives no ticket; other errors of MLflow pass.
    """
    client, name = mlflow.MlflowClient(), f"{model}-lease"
    free_since = clock()
    ticket = _draw(mlflow, client, name)
    try:
        first, seen = "", free_since
        while True:
            asked = clock()
            lowest = _lowest(client, name)
            if lowest == ticket:
                break
            if not lowest or int(lowest) > int(ticket):
                raise StorageError(f"the lease on {model} at {server()} was lost while waiting for it; try again")
            if lowest != first:
                first, seen = lowest, clock()
            elif clock() - seen > seconds:
                _discard(mlflow, client, name, lowest)
                continue
            free_since = asked  # until then it was not the lowest, and nobody counted its time
            time.sleep(POLL_SECONDS)
        yield Lease(model, free_since + seconds * MARGIN, clock)
    finally:
        with contextlib.suppress(mlflow.MlflowException):  # it runs out
            _discard(mlflow, client, name, ticket)


def _draw(mlflow: Any, client: Any, name: str) -> str:
    """The number of a new ticket."""
    description = "Tickets of processes that promote or roll back; do not delete."
    owner = {OWNER: f"{socket.gethostname()} {os.getpid()}"}
    failure = ""
    for _ in range(ATTEMPTS):
        try:
            with _ignoring(mlflow, THERE):
                client.create_registered_model(name, description=description)
            return str(client.create_model_version(name, SOURCE, tags=owner).version)
        except mlflow.MlflowException as error:  # MLflow itself tries thrice when another process is faster
            failure = reason_of(error)
            time.sleep(POLL_SECONDS)
    raise StorageError(f"{server()} gives no lease on {name}: {failure}")


def _lowest(client: Any, name: str) -> str:
    """The lowest ticket that has not been deleted; empty if there is none."""
    return str(min((int(found.version) for found in client.search_model_versions(f"name='{name}'")), default=""))


def _discard(mlflow: Any, client: Any, name: str, ticket: str) -> None:
    with _ignoring(mlflow, *GONE):
        client.delete_model_version(name, ticket)


@contextlib.contextmanager
def _ignoring(mlflow: Any, *codes: str) -> Iterator[None]:
    try:
        yield
    except mlflow.MlflowException as error:
        if error.error_code not in codes:
            raise
