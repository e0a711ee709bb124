"""Pauses and their leases: whatever else happens as a lease ends, nothing is held without one."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from modscope_server.runtime.leases import Leases
from modscope_server.runtime.pauses import Pauses


class Unwatched(Leases):
    """Leases without a thread, by a clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(lambda: self.now)

    def _keep_time(self) -> None: ...


class Overtaken(threading.Condition):
    """A condition that somebody else gets first, once."""

    overtaking: Callable[[], None] | None = None

    def __enter__(self) -> bool:
        act, self.overtaking = self.overtaking, None
        if act is not None:
            act()
        return super().__enter__()


def asked_as_its_lease_ends(ask: Callable[[Pauses], None]) -> Pauses:
    leases = Unwatched()
    pauses = Pauses(leases, lambda: None)
    changed = pauses._changed = Overtaken(threading.Lock())
    pauses.ask(5.0, "one", 0, own=False)
    leases.now = 6.0
    changed.overtaking = lambda: ask(pauses)
    leases.expire()
    return pauses


def test_a_pause_that_is_asked_for_as_a_lease_ends_has_its_own() -> None:
    pauses = asked_as_its_lease_ends(lambda pauses: pauses.ask(30.0, "another", 0, own=False))
    state = pauses.state()
    assert state is not None
    assert (state.lease.who, state.lease.seconds) == ("another", 30.0)


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_steps_that_are_asked_for_as_a_lease_ends_hold_nothing_without_one(seconds: float) -> None:
    pauses = asked_as_its_lease_ends(lambda pauses: pauses.ask_at(lambda: 7, seconds, "another", own=False))
    assert (pauses.now is None) == (pauses.state() is None) == (seconds == 0.0)
