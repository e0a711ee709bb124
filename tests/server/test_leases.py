"""Leases end when nobody renews them, tell why, and need a thread only while there are any."""

from __future__ import annotations

import logging
import threading

import pytest

from modscope_server.errors import BadRequest, UnknownLease
from modscope_server.runtime.leases import Lease, Leases
from tests.server.rpc import until


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Unwatched(Leases):
    """Without its thread, whose own look would come at any moment."""

    def _keep_time(self) -> None: ...


@pytest.fixture
def leases(clock: Clock) -> Leases:
    return Unwatched(clock, lambda: 1000.0 + clock.now)


def taken(leases: Leases, ends: list[str], seconds: float = 30.0, **options: bool) -> Lease:
    return leases.take(seconds, holds="pause", who="operator here", on_end=ends.append, **options)


def timers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "modscope-leases"]


def test_a_lease_holds_for_its_seconds_from_its_last_renewal(leases: Leases, clock: Clock) -> None:
    ends: list[str] = []
    lease = taken(leases, ends)
    assert lease == Lease("lease-1", 30.0, 1030.0, "pause", "operator here")
    clock.now = 29.0
    leases.expire()
    assert leases.renew(lease.id).expires == 1059.0
    clock.now = 58.0
    leases.expire()
    assert not ends
    assert leases.get(lease.id).expires == 1059.0
    clock.now = 59.0
    leases.expire()
    leases.expire()
    assert ends == ["lease-1 of operator here ended: nobody renewed it for 30 s"]


def test_what_has_ended_is_unknown(leases: Leases, clock: Clock) -> None:
    ends: list[str] = []
    late, released = taken(leases, ends), taken(leases, ends, 60)
    clock.now = 30.0
    for id in (late.id, "lease-9"):
        for act in (leases.renew, leases.get, lambda id: leases.release(id, "me")):
            with pytest.raises(UnknownLease, match=id):
                act(id)
    leases.release(released.id, "operator there")
    assert ends == [f"{released.id} was released by operator there"]
    with pytest.raises(UnknownLease):
        leases.renew(released.id)
    leases.expire()
    assert len(ends) == 2


def test_a_forgotten_lease_tells_nobody(leases: Leases, clock: Clock) -> None:
    ends: list[str] = []
    lease = taken(leases, ends)
    leases.forget(lease.id)
    leases.forget(lease.id)
    clock.now = 100.0
    leases.expire()
    assert not ends
    assert len(leases) == 0


def test_renewing_can_change_its_length_and_may_be_of_no_use(leases: Leases, clock: Clock) -> None:
    lease, fixed = taken(leases, []), taken(leases, [], renewable=False)
    clock.now = 10.0
    assert leases.renew(lease.id, 600.0).expires == 1610.0
    assert leases.renew(lease.id).seconds == 600.0
    assert leases.renew(fixed.id) == fixed


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.99, 86_400.1, float("inf"), float("nan")])
def test_a_lease_lasts_a_second_at_least_and_a_day_at_most(leases: Leases, seconds: float) -> None:
    with pytest.raises(BadRequest, match="a lease of") as caught:
        taken(leases, [], seconds)
    assert caught.value.field == "lease_seconds"
    assert len(leases) == 0


def test_an_error_in_what_is_told_stops_no_other(
    leases: Leases, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    ends: list[str] = []
    leases.take(1, holds="x", who="me", on_end=lambda reason: 1 / 0)  # type: ignore[arg-type, return-value]
    taken(leases, ends, 1)
    clock.now = 1.0
    with caplog.at_level(logging.ERROR, "modscope_server"):
        leases.expire()
    assert "lease-1" in caplog.text
    assert len(ends) == 1


def test_the_thread_ends_leases_in_time_and_ends_with_the_last() -> None:
    before = len(timers())
    leases = Leases()
    ended = threading.Event()
    reasons: list[str] = []

    def heard(reason: str) -> None:
        reasons.append(threading.current_thread().name)
        ended.set()

    long = leases.take(600, holds="x", who="me", on_end=heard)
    leases.take(1, holds="x", who="me", on_end=heard)
    assert len(timers()) == before + 1
    assert ended.wait(30)
    assert reasons == ["modscope-leases"]
    leases.forget(long.id)
    until(lambda: len(timers()) == before)
    again = leases.take(600, holds="x", who="me", on_end=heard)
    assert len(timers()) == before + 1
    leases.close()
    until(lambda: len(timers()) == before)
    with pytest.raises(UnknownLease):
        leases.get(again.id)


def test_without_a_thread_whoever_is_held_looks_by_itself(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = Leases(clock)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    before = len(timers())
    ends: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        taken(leases, ends)
    assert len(timers()) == before
    clock.now = 31.0
    leases.expire()
    assert len(ends) == 1
    taken(leases, ends)
    assert len(timers()) == before + 1
    leases.close()


def test_one_that_is_told_may_take_a_new_lease(leases: Leases, clock: Clock) -> None:
    def takes_another(reason: str) -> None:
        taken(leases, [], 5)

    leases.take(1, holds="x", who="me", on_end=takes_another)
    clock.now = 1.0
    leases.expire()
    assert len(leases) == 1
