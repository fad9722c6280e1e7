"""Promote versions at once, each in a process of its own: `promote_at_once.py PARAMS VERSION…`, with params as JSON.

The processes are forked from one that has imported everything but has not yet connected. Each prints its decision.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from multiprocessing.synchronize import Barrier

from hepar.params import RegisterParams
from hepar.registry.champion import promote


def decide(number: str, params: RegisterParams, start: Barrier) -> None:
    start.wait()
    decision = promote(number, params)
    sys.stdout.write(json.dumps({"version": number, "promoted": decision.promote, "reasons": decision.reasons}) + "\n")


def main() -> None:
    params, numbers = RegisterParams.model_validate_json(sys.argv[1]), sys.argv[2:]
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(len(numbers))
    processes = [fork.Process(target=decide, args=(number, params, start)) for number in numbers]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(process.exitcode or 0 for process in processes))


if __name__ == "__main__":
    main()
