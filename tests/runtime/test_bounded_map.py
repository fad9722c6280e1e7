"""Results in order, and never more items at a time than workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from hepar.runtime.bounded_map import bounded_map


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    def later_for_the_first(number: int) -> int:
        time.sleep(0.002 * (4 - number))
        return number * number

    assert list(bounded_map(later_for_the_first, range(5), workers)) == [0, 1, 4, 9, 16]


def test_an_item_is_taken_only_when_a_worker_is_free() -> None:
    done: list[int] = []
    ahead: list[int] = []

    def items() -> Iterator[int]:
        for number in range(8):
            ahead.append(number - len(done))
            yield number

    done.extend(bounded_map(lambda number: number, items(), 3))
    assert max(ahead) == 2  # two wait while the third is made


def test_two_items_are_worked_on_at_a_time() -> None:
    meeting = threading.Barrier(2, timeout=10)
    assert len(list(bounded_map(lambda _: meeting.wait(), range(4), 2))) == 4


def test_an_exception_ends_the_iteration() -> None:
    taken: list[int] = []

    def fail(number: int) -> int:
        taken.append(number)
        raise ValueError(f"item {number}")

    with pytest.raises(ValueError, match="item 0"):
        list(bounded_map(fail, range(100), 2))
    assert len(taken) <= 3
