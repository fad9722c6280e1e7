"""Work on several items at a time, without holding more of them than that."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def bounded_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """The results of a function for each item, in the order of the items, computed by `workers` threads.

    The caller's thread takes the next item only when fewer than `workers` are waiting or under way. An exception ends
    the iteration; what is under way is waited for, what waits is dropped.
    """
    with ThreadPoolExecutor(workers) as executor:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(executor.submit(function, item))
                if len(pending) == workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)
