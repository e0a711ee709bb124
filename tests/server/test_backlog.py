"""A backlog counts exactly whatever happens to it, and what it has given it can give once more."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from hypothesis import given
from hypothesis import strategies as st

from modscope_server.runtime.backlog import Backlog
from modscope_server.runtime.budget import Budget
from modscope_server.runtime.drafts import Draft
from modscope_server.runtime.runs import Run, blocks_of
from tests.server.test_bus import draft


def backlog(events: int = 5, size: int = 1000, *, keeps: bool = True) -> Backlog:
    return Backlog(events=events, size=size, budget=Budget(1 << 30), keeps=keeps)


def numbers(taken: Iterable[Run]) -> list[int]:
    return [number for run in taken for number, _ in run.numbered()]


def add(log: Backlog, *drafts: Draft) -> None:
    for block in blocks_of(drafts):
        log.add(block)


def test_what_was_taken_last_can_be_taken_again() -> None:
    log = backlog()
    for number in range(4):
        add(log, draft(number))
    assert numbers(log.take(3, 1)) == [0, 1, 2]
    assert log.rewind(0) == 0
    assert numbers(log.take(10, 1)) == [1, 2, 3]
    assert log.rewind(3) == 0
    assert not log.waiting
    assert log.oldest == log.published == 4


def test_what_was_taken_gives_way_to_what_comes() -> None:
    log = backlog()
    for number in range(5):
        add(log, draft(number))
    log.take(5, 1)
    add(log, draft(5), draft(6))
    add(log, draft(7))
    assert (log.published, log.dropped, log.oldest) == (8, 0, 3)
    assert log.rewind(0) == 2
    assert log.dropped == 2
    assert numbers(log.take(10, 1)) == [3, 4, 5, 6, 7]


def test_bytes_of_what_was_taken_count_and_give_way_too() -> None:
    log = backlog(size=100)
    for number in range(3):
        add(log, draft(number, elements=10))
    assert (log.bytes, log.dropped) == (80, 1)
    assert numbers(log.take(10, 1000)) == [1, 2]
    assert log.bytes == 80
    add(log, draft(3, elements=20))
    assert (log.bytes, log.dropped, log.oldest) == (80, 1, 3)
    log.clear()
    assert (log.bytes, log.dropped) == (0, 2)


def test_what_has_been_dropped_is_not_counted_again_as_lost() -> None:
    log = backlog(events=2)
    for number in range(5):
        add(log, draft(number))
    assert log.dropped == 3
    assert numbers(log.take(10, 1)) == [3, 4]
    for number in range(5, 7):
        add(log, draft(number))
    # 3 and 4 were taken, and have made room for 5 and 6.
    assert log.rewind(-1) == 2
    assert log.dropped == 5
    assert log.rewind(-1) == 0
    assert numbers(log.take(10, 1)) == [5, 6]


def test_without_keeping_nothing_that_was_taken_is_held() -> None:
    log = backlog(keeps=False)
    add(log, draft(0, elements=10))
    add(log, draft(1))
    log.take(10, 1000)
    assert log.bytes == 0
    assert log.oldest == log.published == 2


def test_more_events_at_once_than_there_is_room_for() -> None:
    log = backlog(events=3)
    add(log, draft(0))
    add(log, *[draft(number) for number in range(1, 8)])
    assert (log.published, log.dropped, log.waiting) == (8, 5, 3)
    assert numbers(log.take(2, 1)) == [5, 6]
    (block,) = blocks_of([draft(number) for number in range(8, 12)])
    assert log.add_some(block) == 2
    assert (log.published, log.dropped) == (10, 5)
    assert numbers(log.take(9, 1)) == [7, 8, 9]


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("tensor"), st.integers(1, 4)),
        st.tuples(st.just("add"), st.integers(1, 9)),
        st.tuples(st.just("add some"), st.integers(1, 9)),
        st.tuples(st.just("refuse"), st.integers(0, 3)),
        st.tuples(st.just("take"), st.integers(1, 6)),
        st.tuples(st.just("give way"), st.just(0)),
        st.tuples(st.just("rewind"), st.integers(0, 8)),
    ),
    max_size=60,
)


@given(ACTIONS, st.booleans(), st.integers(1, 6))
def test_published_is_delivered_and_dropped_and_waiting(
    actions: list[tuple[str, int]], keeps: bool, events: int
) -> None:
    log = backlog(events, 100, keeps=keeps)
    seen: list[int] = []
    published = 0
    for action, number in actions:
        if action == "tensor":
            add(log, draft(0, elements=number * 10))
            published += 1
        elif action == "add":
            add(log, *[draft(0)] * number)
            published += number
        elif action == "add some":
            (block,) = blocks_of([draft(0)] * number)
            published += number - log.add_some(block)
        elif action == "refuse":
            log.refuse(number)
            published += number
        elif action == "take":
            seen += numbers(log.take(number, 60))
        elif action == "give way":
            log.give_way()
        elif keeps:
            # The reader has lost the last few that it got.
            seen = seen[: max(0, len(seen) - number)]
            log.rewind(seen[-1] if seen else -1)
        assert log.published == published == len(seen) + log.dropped + log.waiting
        assert seen == sorted(set(seen))
        assert log.bytes == log._waiting._budget.total <= 100
        assert log.waiting + log._kept.length <= events
        assert keeps or not log._kept.runs


def test_a_draft_of_several_tensors_counts_each_of_them() -> None:
    budget = Budget(1000)
    made = draft(0, elements=10)
    value = made.values[0]
    several = made._replace(values=(value, value._replace(copy=torch.zeros(5)), value))
    budget.hold([several])
    budget.hold([made])
    assert budget.total == 60
    budget.release([several])
    assert budget.total == 40
    budget.release([made])
    assert budget.total == 0
