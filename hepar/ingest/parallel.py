"""Work on many cases over processes, with results in order and only a few of them in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

import SimpleITK as sitk

from hepar.runtime.device import available_cores

MIN_PARALLEL_CASES = 16  # with fewer, starting processes takes longer than the work
QUEUED_PER_PROCESS = 2  # bounds the results in memory
Job = TypeVar("Job")
Result = TypeVar("Result")


@contextmanager
def parallel_map(work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Iterator[Result]]:
    """Yields the results of `work` in the order of `jobs`, made by all cores; by this process if the jobs are few."""
    processes = available_cores()
    if len(jobs) < MIN_PARALLEL_CASES or processes == 1:
        yield map(work, jobs)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_use_one_thread) as executor:

        def results() -> Iterator[Result]:
            queue: deque[Future[Result]] = deque()
            for job in jobs:
                queue.append(executor.submit(work, job))
                if len(queue) >= QUEUED_PER_PROCESS * processes:
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()

        yield results()


def _use_one_thread() -> None:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
