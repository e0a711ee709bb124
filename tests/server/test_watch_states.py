"""A reader is told of each hook once, then of those that change, and nobody looks too often."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modscope_server.runtime.hook_states import HookState
from modscope_server.runtime.watch_states import Changes

ARMED = HookState("a", "forward", "watch", ("watch-1",), 0, None)
FIRED = replace(ARMED, state="fired", fired=1, last_step=0)
OTHER = replace(FIRED, path="b")


class World:
    """Hooks, and a clock that a look takes some seconds of."""

    def __init__(self, *states: HookState, watches: int = 1) -> None:
        self.now = 100.0
        self.states = states
        self.looks = 0
        self.cost = 0.0
        self.changes = Changes(self.look, 5.0, lambda: self.now, watches=lambda: watches)

    def look(self) -> tuple[HookState, ...]:
        self.looks += 1
        self.now += self.cost
        return self.states

    def news_after(self, seconds: float) -> list[HookState]:
        self.now += seconds
        return self.changes.news()


def test_all_once_then_what_has_changed() -> None:
    world = World(ARMED, OTHER)
    assert world.news_after(0) == [ARMED, OTHER]
    assert world.news_after(2) == []
    world.states = FIRED, OTHER
    assert world.news_after(2) == [FIRED]
    # A count is no news, and neither is what the remedy has cost; that there is one, is.
    world.states = replace(FIRED, fired=2, last_step=1), OTHER
    assert world.news_after(5) == []
    blind = replace(FIRED, state="blind", reason="why")
    for states in ((blind, OTHER), (replace(blind, reason="why else"), OTHER), (FIRED, OTHER)):
        world.states = states
        assert world.news_after(10) == [states[0]]
    world.states = replace(FIRED, remedy="eager steps: 1"), OTHER
    assert world.news_after(5) == [world.states[0]]
    world.states = replace(FIRED, remedy="eager steps: 2"), OTHER
    assert world.news_after(5) == []


def test_looks_are_a_second_apart_and_further_where_nothing_changes() -> None:
    world = World(ARMED)
    looked = []
    for tick in range(60):
        before = world.looks
        if tick == 40:
            world.states = (FIRED,)
        world.news_after(0.5)
        if world.looks > before:
            looked.append(tick / 2)
    assert looked == [0.0, 1.0, 3.0, 7.0, 12.0, 17.0, 22.0, 23.0, 25.0, 29.0]


def test_a_look_that_takes_long_is_rare() -> None:
    world = World(ARMED)
    world.cost = 1.0
    for _ in range(100):
        world.news_after(1)
    assert world.looks <= 6


def test_many_watches_share_the_time_that_looking_may_take() -> None:
    for watches, seconds in ((1, 1.0), (64, 12.8)):
        world = World(ARMED, watches=watches)
        world.cost = 0.001
        world.news_after(0)
        assert world.changes.due - world.now == pytest.approx(seconds)


def test_now_means_now() -> None:
    world = World(ARMED)
    world.news_after(0)
    world.states = (FIRED,)
    assert world.news_after(0.1) == []
    assert world.changes.news(now=True) == [FIRED]


def test_a_model_that_is_taken_apart_meanwhile_is_looked_at_again() -> None:
    world = World(ARMED)

    def fails() -> tuple[HookState, ...]:
        raise RuntimeError("dictionary changed size during iteration")

    changes = Changes(fails, 5.0, lambda: world.now)
    assert changes.news() == []
    assert changes.due > world.now
