"""When a lease is due for renewal, and what a failure means."""

from __future__ import annotations

import pytest

from modscope_client import renewals
from modscope_client.errors import NotFound, Unavailable
from modscope_client.renewals import Held
from modscope_client.types import Lease

LEASE = Lease("lease-1", 30.0, 0.0, "pause", "operator")


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(renewals, "time", made)
    return made


def test_it_is_due_after_a_third(clock: Clock) -> None:
    held = Held()
    assert held.left() is None
    held.take(LEASE)
    assert held.left() == 10.0
    clock.now += 4
    assert held.left() == 6.0
    clock.now += 20
    assert held.left() == 0.0
    held.answered(LEASE, None)
    assert held.left() == 10.0 and held.news() == ()
    held.drop()
    assert held.left() is None


def test_a_failure_is_tried_again_until_the_lease_must_have_ended(clock: Clock) -> None:
    held = Held()
    held.take(LEASE)
    clock.now += 10
    held.answered(LEASE, Unavailable("gone for a moment"))
    assert held.left() == 5.0 and held.news() == ()
    clock.now += 20
    held.answered(LEASE, Unavailable("gone for good"))
    assert held.left() is None
    (news,) = held.news()
    assert "lease-1" in news and "gone for good" in news
    assert held.news() == ()


def test_a_lease_that_is_unknown_is_lost_at_once_and_a_closed_client_says_nothing(clock: Clock) -> None:
    held = Held()
    held.take(LEASE)
    held.answered(LEASE, NotFound("no such lease", reason="UNKNOWN_LEASE"))
    assert held.left() is None and len(held.news()) == 1
    held.take(LEASE)
    held.answered(LEASE, Unavailable("closed", reason="CLOSED"))
    assert held.left() is None and held.news() == ()


def test_the_answer_about_a_lease_of_before_is_no_matter(clock: Clock) -> None:
    held = Held()
    held.take(LEASE)
    other = Lease("lease-2", 60.0, 0.0, "pause", "operator")
    held.take(other)
    held.answered(LEASE, NotFound("no such lease"))
    assert held.left() == 20.0 and held.news() == ()
