"""A backlog counts exactly whatever happens to it, and what it has given it can give once more."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from modscope_server.runtime.backlog import Backlog
from modscope_server.runtime.budget import Budget
from tests.server.test_bus import draft


def backlog(events: int = 5, size: int = 1000, *, keeps: bool = True) -> Backlog:
    return Backlog(events=events, size=size, budget=Budget(1 << 30), keeps=keeps)


def numbers(taken: object) -> list[int]:
    return [entry[0] for entry in taken]  # type: ignore[attr-defined]


def test_what_was_taken_last_can_be_taken_again() -> None:
    log = backlog()
    for number in range(4):
        log.add(draft(number), 0)
    assert numbers(log.take(3, 1)) == [0, 1, 2]
    assert log.rewind(0) == 0
    assert numbers(log.take(10, 1)) == [1, 2, 3]
    assert log.rewind(3) == 0
    assert not log.waiting
    assert log.oldest == log.published == 4


def test_what_was_taken_gives_way_to_what_comes() -> None:
    log = backlog()
    for number in range(5):
        log.add(draft(number), 0)
    log.take(5, 1)
    assert log.extend([draft(5), draft(6)])
    log.add(draft(7), 0)
    assert (log.published, log.dropped, log.oldest) == (8, 0, 3)
    assert log.rewind(0) == 2
    assert log.dropped == 2
    assert numbers(log.take(10, 1)) == [3, 4, 5, 6, 7]


def test_bytes_of_what_was_taken_count_and_give_way_too() -> None:
    log = backlog(size=100)
    for number in range(3):
        log.add(draft(number, elements=10), 40)
    assert (log.bytes, log.dropped) == (80, 1)
    assert numbers(log.take(10, 1000)) == [1, 2]
    assert log.bytes == 80
    log.add(draft(3, elements=20), 80)
    assert (log.bytes, log.dropped, log.oldest) == (80, 1, 3)
    log.clear()
    assert (log.bytes, log.dropped) == (0, 2)


def test_what_has_been_dropped_is_not_counted_again_as_lost() -> None:
    log = backlog(events=2)
    for number in range(5):
        log.add(draft(number), 0)
    assert log.dropped == 3
    assert numbers(log.take(10, 1)) == [3, 4]
    for number in range(5, 7):
        log.add(draft(number), 0)
    # 3 and 4 were taken, and have made room for 5 and 6.
    assert log.rewind(-1) == 2
    assert log.dropped == 5
    assert log.rewind(-1) == 0
    assert numbers(log.take(10, 1)) == [5, 6]


def test_without_keeping_nothing_that_was_taken_is_held() -> None:
    log = backlog(keeps=False)
    log.add(draft(0, elements=10), 40)
    log.add(draft(1), 0)
    log.take(10, 1000)
    assert log.bytes == 0
    assert log.oldest == log.published == 2


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 4)),
        st.tuples(st.just("extend"), st.integers(1, 4)),
        st.tuples(st.just("refuse"), st.just(0)),
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
    budget = log._budget
    seen: list[int] = []
    for action, number in actions:
        if action == "add":
            log.add(draft(0, elements=number * 10), number * 40)
        elif action == "extend":
            if not log.extend([draft(0)] * number):
                assert len(log.waiting) + number > events
        elif action == "refuse":
            log.refuse()
        elif action == "take":
            seen += numbers(log.take(number, 60))
        elif action == "give way":
            log.give_way()
        elif keeps:
            # The reader has lost the last few that it got.
            seen = seen[: max(0, len(seen) - number)]
            log.rewind(seen[-1] if seen else -1)
        assert log.published == len(seen) + log.dropped + len(log.waiting)
        assert seen == sorted(set(seen))
        assert log.bytes == budget.total <= 100
        assert len(log.waiting) + len(log._kept) <= events
        assert keeps or not log._kept


def test_a_draft_of_several_tensors_counts_each_of_them() -> None:
    budget = Budget(1000)
    made = draft(0, elements=10)
    value = made.values[0]
    several = made._replace(values=(value, value._replace(copy=torch.zeros(5)), value))
    budget.hold(several)
    budget.hold(made)
    assert budget.total == 60
    budget.release(several)
    assert budget.total == 40
    budget.release(made)
    assert budget.total == 0
