"""Process many untrusted files in parallel, with results in order and only a few of them in memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Generic, TypeVar

from hepar.ingest.workers import Done, Failed, OutOfMemory, Worker, usable_bytes
from hepar.runtime.device import available_cores

AHEAD_PER_PROCESS = 32  # jobs that may be done before the one whose result is next; bounds the results in memory
WORKER_BYTES = 16 * 2**30  # that a worker may fill even if its share is less: a CT of 512 × 512 × 1000 takes 15 GiB
TOO_LARGE = "reading it takes more memory than there is"
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Died:
    """Why a job has no result: the process that worked on it crashed, hung or ran out of memory."""

    reason: str


@contextmanager
def parallel_map(
    work: Callable[[Job], Result], jobs: Sequence[Job], seconds: Callable[[Job], float]
) -> Iterator[Iterator[Result | Died]]:
    """Yields the results of `work` in the order of `jobs`, made in other processes on all cores.

    A job may take `seconds`, and the memory of a worker. One that dies of anything else than its time is tried once
    more, alone and with all the memory, since others may have caused it. What `work` raises is raised here.
    """
    farm = _Farm(work, jobs, seconds, max(1, min(available_cores(), len(jobs))))
    try:
        yield farm.results()
    finally:
        farm.end()


class _Farm(Generic[Job, Result]):
    """Workers and what is left to do."""

    def __init__(
        self, work: Callable[[Job], Result], jobs: Sequence[Job], seconds: Callable[[Job], float], processes: int
    ) -> None:
        self.work, self.jobs, self.seconds, self.processes = work, jobs, seconds, processes
        self.waiting = deque(range(len(jobs)))
        self.again: deque[int] = deque()  # each to be tried alone
        self.idle: list[Worker] = []
        self.busy: dict[int, tuple[Worker, float, bool]] = {}  # by number of the job: deadline, and whether it is alone
        self.finished: dict[int, Result | Died] = {}

    def results(self) -> Iterator[Result | Died]:
        for number in range(len(self.jobs)):
            while True:
                self._hand_out(number + AHEAD_PER_PROCESS * self.processes)
                if number in self.finished:
                    break
                self._collect()
            yield self.finished.pop(number)

    def end(self) -> None:
        """Kill all workers."""
        for worker in [*self.idle, *(worker for worker, *_ in self.busy.values())]:
            worker.end()
        self.idle.clear()
        self.busy.clear()

    def _hand_out(self, before: int) -> None:
        """Give jobs with numbers below `before` to free workers."""
        whole = usable_bytes()
        share = min(whole, max(WORKER_BYTES, whole // self.processes))
        while self.waiting and self.waiting[0] < before and len(self.busy) < self.processes and not self._one_is_alone:
            self._start(self.waiting.popleft(), share, alone=self.processes == 1)
        if self.again and not self.busy:
            self._start(self.again.popleft(), whole, alone=True)

    @property
    def _one_is_alone(self) -> bool:
        return self.processes > 1 and any(alone for _, _, alone in self.busy.values())

    def _start(self, number: int, memory_bytes: int, alone: bool) -> None:
        worker = self.idle.pop() if self.idle else Worker(self.work, max(1, available_cores() // self.processes))
        self.busy[number] = (worker, time.monotonic() + self.seconds(self.jobs[number]), alone)
        worker.start(self.jobs[number], memory_bytes)

    def _collect(self) -> None:
        """Wait until a job is finished or out of time."""
        earliest = min(deadline for _, deadline, _ in self.busy.values())
        ready = wait([worker.connection for worker, *_ in self.busy.values()], max(0.0, earliest - time.monotonic()))
        for number, (worker, deadline, alone) in list(self.busy.items()):
            if worker.connection in ready:
                self._finish(number, worker, alone)
            elif time.monotonic() > deadline:
                del self.busy[number]
                worker.end()
                self.finished[number] = Died(f"reading it takes longer than {self.seconds(self.jobs[number]):.0f} s")

    def _finish(self, number: int, worker: Worker, alone: bool) -> None:
        outcome = worker.outcome()
        del self.busy[number]
        if isinstance(outcome, Done):
            self.idle.append(worker)
            self.finished[number] = outcome.value
            return
        how = worker.end()  # also after an error: who knows what it left behind
        if isinstance(outcome, Failed):
            outcome.error.add_note(outcome.trace)
            raise outcome.error
        if alone:
            died = TOO_LARGE if isinstance(outcome, OutOfMemory) else f"the process that read it died of {how}"
            self.finished[number] = Died(died)
        else:
            self.again.append(number)
