"""Hooks and readers in many threads: nothing is lost from the count, and a hook waits for a reader alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from modscope_server.runtime.bus import Batch, Counters, Fan, Overflow, Queues, Reader, Subscription
from tests.server.rpc import until
from tests.server.test_bus import alone, draft, subscribed


def numbers(batch: Batch) -> list[int]:
    return [number for run in batch.runs for number, _ in run.numbered()]


def started(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


class Reading:
    """A thread that reads a subscription, and what it got."""

    def __init__(self, subscription: Subscription, most: float = float("inf")) -> None:
        self.subscription = subscription
        self.got: list[int] = []
        self._most = most
        self._reader = Reader(subscription)
        self.thread = started(self._read)

    def _read(self) -> None:
        while not self._reader.finished and len(self.got) < self._most:
            self.got += numbers(self._reader.take(5, limit=37))


@pytest.mark.parametrize("elements", [0, 5])
def test_published_is_delivered_and_dropped_and_queued_at_every_moment(elements: int) -> None:
    queues = Queues(4000)
    fan = Fan(queues, at_once=elements > 0)
    bounds: dict[str, Any] = {"events": 50, "size": 1500}
    policies: list[Overflow] = ["drop_oldest", "drop_newest", "disconnect"]
    kept = [subscribed(fan, queues, "drop_oldest", keep=1.0, **bounds)]
    readings = [Reading(subscribed(fan, queues, policy, **bounds)) for policy in policies]
    readings += [Reading(one) for one in kept]
    killed = Reading(subscribed(fan, queues, **bounds), most=100)
    stopped = subscribed(fan, queues, **bounds)
    everybody = [*readings, killed]

    def publish() -> None:
        for number in range(800):
            fan.publish(draft(number, elements))

    writers = [started(publish) for _ in range(4)]
    while any(writer.is_alive() for writer in writers):
        for subscription in [stopped, *(reading.subscription for reading in everybody)]:
            counters = subscription.counters()
            assert 0 <= counters.queued <= 50
            assert counters.published >= counters.dropped + counters.queued
        assert queues.budget.total <= 4000
        idle = stopped.counters()
        assert idle.published == idle.dropped + idle.queued
    for reading in everybody:
        reading.subscription.end("stopped")
        reading.thread.join(30)
        counters = reading.subscription.counters()
        assert counters.published == len(reading.got) + counters.dropped + counters.queued
        assert reading.got == sorted(set(reading.got))
        if not reading.subscription.has_overflowed:
            assert counters.published == 3200
    assert stopped.counters().published == 3200
    for subscription in [stopped, *(reading.subscription for reading in everybody)]:
        subscription.close()
    assert queues.budget.total == 0


def test_a_hook_waits_until_there_is_room_and_nothing_is_dropped() -> None:
    fan, queue = alone("block", events=3, block=60.0)
    reading = Reading(queue)
    for number in range(500):
        fan.publish(draft(number))
    until(lambda: len(reading.got) == 500)
    assert reading.got == list(range(500))
    assert queue.counters().dropped == 0
    queue.end("stopped")


def test_a_hook_that_waits_lets_the_reader_run_and_is_let_go_by_it() -> None:
    fan, queue = alone("block", events=1, block=60.0)
    reader = Reader(queue)
    fan.publish(draft(0))
    waiting = started(lambda: fan.publish(draft(0)))
    assert numbers(reader.take(0)) == [0]
    waiting.join(30)
    assert not waiting.is_alive()
    assert numbers(reader.take(30)) == [1]


def test_training_waits_no_longer_than_it_may_in_each_step_and_then_the_oldest_goes() -> None:
    fan, queue = alone("block", events=2, block=0.05)
    Reader(queue)
    for step in (7, 8):
        blocked = queue.counters().blocked_seconds
        for _ in range(20):
            fan.publish(draft(step))
        # All twenty together, not each of them.
        assert queue._block_left <= 0
        assert queue.counters().blocked_seconds - blocked == pytest.approx(0.05 - queue._block_left)
    counters = queue.counters()
    assert (counters.published, counters.dropped, counters.queued) == (40, 38, 2)


@pytest.mark.parametrize("how", ["ended", "left", "replaced by none"])
def test_no_hook_waits_for_a_reader_that_is_gone(how: str) -> None:
    fan, queue = alone("block", events=1, block=3600.0)
    reader = Reader(queue)
    fan.publish(draft(0))
    waiting = started(lambda: fan.publish(draft(0)))
    until(lambda: bool(queue._room._waiters))  # type: ignore[attr-defined]  # threading's own
    if how == "ended":
        queue.end("stopped")
    elif how == "left":
        queue.leave(reader)
    else:
        reader.give_up()
        queue.leave(reader)
    waiting.join(30)
    assert not waiting.is_alive()
    fan.publish(draft(0))


def test_a_tensor_for_which_there_is_never_room_is_not_waited_for() -> None:
    fan, queue = alone("block", size=100, block=3600.0)
    Reader(queue)
    fan.publish(draft(0, elements=100))
    assert queue.counters() == Counters(1, 1, 0)


def test_a_new_reader_takes_over_at_once_and_the_old_one_gets_no_more() -> None:
    fan, queue = alone()
    first = Reading(queue)
    second = Reader(queue)
    first.thread.join(30)
    assert not first.thread.is_alive()
    fan.publish(draft(0))
    assert not first.got
    assert numbers(second.take(30)) == [0]
    assert not queue.is_abandoned
    assert queue.leave(second)
    assert queue.is_abandoned
