"""Versions that are promoted at once, each by a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier

from hepar.params import RegisterParams
from hepar.registry.champion import Judge, promote
from hepar.registry.promotion import Decision

SECONDS = 300  # that one process waits for the others


def promote_after_all_have_decided(number: str, params: RegisterParams, decided: Barrier) -> None:
    decide_on, first = Judge.decide_on, True

    def decide_and_wait(judge: Judge, version: str) -> tuple[Decision, str]:
        nonlocal first
        found = decide_on(judge, version)
        if first:
            decided.wait(SECONDS)
        first = False
        return found

    Judge.decide_on = decide_and_wait  # type: ignore[method-assign]
    decision = promote(number, params)
    sys.stdout.write(json.dumps({"version": number, "promoted": decision.promote}) + "\n")


def promote_at_once(params: RegisterParams, numbers: Sequence[str]) -> None:
    """Promote versions in forks of this process, which must not have connected yet.

    None acts before all have decided against the same champion. Each prints its last decision.
    """
    fork = multiprocessing.get_context("fork")
    decided = fork.Barrier(len(numbers))
    processes = [
        fork.Process(target=promote_after_all_have_decided, args=(number, params, decided)) for number in numbers
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in processes))
