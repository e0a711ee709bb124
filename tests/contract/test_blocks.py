"""Free blocks by size, and loans that come back once nobody can see them."""

from __future__ import annotations

import threading
from typing import Any

import numpy

from modscope.blocks import FreeBlocks, lent


def block(size: int) -> Any:
    return numpy.zeros(size, numpy.uint8)


def test_a_block_is_taken_by_its_size_and_once() -> None:
    free = FreeBlocks()
    one, two, other = block(10), block(10), block(20)
    for each in (one, two, other):
        free.put(each)
    assert free.bytes == 40
    assert {id(free.take(10)), id(free.take(10))} == {id(one), id(two)}
    assert free.take(10) is None and free.take(30) is None
    assert free.take(20) is other
    assert free.bytes == 0


def test_what_gives_way_is_no_more_than_is_asked_for_and_of_what_most_is_free() -> None:
    free = FreeBlocks()
    for size in (10, 10, 10, 20):
        free.put(block(size))
    free.give_way(15)
    assert free.bytes == 30 and free.take(20) is not None
    free.put(block(20))
    for size in (5, 5, 5, 5):
        free.put(block(size))
    free.give_way(20)
    assert free.bytes == 30, "four of 5, or one of 20"
    free.give_way(0)
    free.give_way(-5)
    assert free.bytes == 30
    free.give_way(1000)
    assert free.bytes == 0


def test_sizes_that_are_gone_are_forgotten() -> None:
    free = FreeBlocks()
    for size in range(1, 100):
        free.put(block(size))
        free.take(size)
    assert not free._by_size


def test_a_loan_comes_back_with_the_last_view_of_it() -> None:
    given: list[Any] = []
    owner = block(8)
    loan = lent(owner, given.append)
    view: Any = loan[2:4].data
    loan[:] = 7
    del loan
    assert not given
    assert bytes(view) == b"\7\7"
    del view
    assert [id(one) for one in given] == [id(owner)]


def test_threads_take_and_put_at_the_same_time() -> None:
    free = FreeBlocks()
    twice: list[int] = []
    in_use: set[int] = set()

    def work() -> None:
        for _ in range(2000):
            taken = free.take(8)
            if taken is None:
                taken = block(8)
            if id(taken) in in_use:
                twice.append(id(taken))
            in_use.add(id(taken))
            in_use.discard(id(taken))
            free.put(taken)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not twice and not any(thread.is_alive() for thread in threads)
