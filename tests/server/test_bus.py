"""Subscriptions are bounded, count what they lose, and never wait for a reader."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modscope_server.runtime.bus import (
    Counters,
    Draft,
    DraftValue,
    Fan,
    Overflow,
    Queues,
    Reader,
    Subscription,
)
from tests.server.rpc import until


def draft(number: int, elements: int = 0) -> Draft:
    copy = torch.full((elements,), float(number)) if elements else None
    values = (DraftValue("output", "", (elements,), "float32", copy=copy),)
    return Draft(number, "m", "p", "p", "T", "forward", 0, False, 0.0, values)


def subscribed(fan: Fan, queues: Queues, overflow: Overflow = "drop_oldest", **bounds: Any) -> Subscription:
    bounds = {"events": 10, "size": 1000, **bounds}
    subscription = Subscription("a", overflow=overflow, queues=queues, **bounds)
    fan.add(subscription)
    return subscription


def alone(overflow: Overflow = "drop_oldest", **bounds: Any) -> tuple[Fan, Subscription]:
    """A fan and its only subscription."""
    queues = Queues(1 << 30)
    fan = Fan(queues)
    return fan, subscribed(fan, queues, overflow, **bounds)


def test_what_hooks_deal_out_is_packed_and_what_a_reader_fetches_is_not() -> None:
    queues = Queues(1 << 30)
    fan = Fan(queues, pack=lambda draft: b"%d" % draft.step)
    queue = subscribed(fan, queues, events=1000)
    reader = Reader(queue)
    reader.take(0)
    for number in range(130):
        fan.publish(draft(number))
    items = [item for run in reader.take(0).runs for _, item in run.numbered()]
    assert items == [*(b"%d" % number for number in range(128)), draft(128), draft(129)]


def test_what_holds_tensors_is_dealt_out_at_once_and_never_packed() -> None:
    queues = Queues(1 << 30)
    fan = Fan(queues, at_once=True, pack=lambda draft: pytest.fail("packed"))
    queue = subscribed(fan, queues, size=1 << 20)
    reader = Reader(queue)
    for number in range(3):
        reader.take(0)
        fan.publish(draft(number, elements=4))
        assert queue.backlog.waiting == 1
    assert queue.counters().published == 3


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_no_draft_is_lost_where_packing_breaks_off(fault: type[BaseException]) -> None:
    def pack(one: Draft) -> bytes:
        if one.step == 100:
            raise fault
        return b"%d" % one.step

    queues = Queues(1 << 30)
    fan = Fan(queues, pack=pack)
    queue = subscribed(fan, queues, events=1000)
    reader = Reader(queue)
    reader.take(0)
    with contextlib.nullcontext() if fault is ValueError else pytest.raises(KeyboardInterrupt):
        for number in range(128):
            fan.publish(draft(number))
    taken = [item for run in reader.take(0).runs for item in run.numbered()]
    assert [number for number, _ in taken] == list(range(128))
    assert [item for _, item in taken] == [draft(number) for number in range(128)]
    assert queue.counters() == Counters(128, 0, 0)


def test_what_nobody_reads_is_not_packed() -> None:
    queues = Queues(1 << 30)
    fan = Fan(queues, pack=lambda draft: pytest.fail("packed"))
    queue = subscribed(fan, queues, events=1000)
    for number in range(300):
        fan.publish(draft(number))
    assert len(queue.drain(0, 1000)) == 300


def test_events_come_in_order_with_sequence_numbers() -> None:
    fan, queue = alone()
    for number in range(5):
        fan.publish(draft(number))
    assert [(event.seq, event.step) for event in queue.drain(0)] == [(n, n) for n in range(5)]
    assert queue.counters() == Counters(5, 0, 0)


def test_drop_oldest_keeps_the_newest_and_shows_the_gap() -> None:
    fan, queue = alone(events=3)
    for number in range(10):
        fan.publish(draft(number))
    events = queue.drain(0)
    assert [event.seq for event in events] == [7, 8, 9]
    assert {event.dropped for event in events} == {7}
    assert queue.counters() == Counters(10, 7, 0)


def test_drop_newest_keeps_the_oldest() -> None:
    fan, queue = alone("drop_newest", events=3)
    for number in range(10):
        fan.publish(draft(number))
    assert [event.seq for event in queue.drain(0)] == [0, 1, 2]
    assert queue.counters() == Counters(10, 7, 0)


def test_the_queue_is_bounded_in_bytes() -> None:
    fan, queue = alone(events=100, size=4 * 100)
    for number in range(10):
        fan.publish(draft(number, elements=40))
    events = queue.drain(0)
    assert [event.seq for event in events] == [8, 9]
    fan.publish(draft(10, elements=101))
    assert queue.drain(0) == []
    assert queue.counters() == Counters(11, 9, 0)
    fan.publish(draft(11, elements=100))
    assert [event.seq for event in queue.drain(0)] == [11]


def test_captured_tensors_come_whole() -> None:
    fan, queue = alone()
    fan.publish(draft(3, elements=2))
    tensor = queue.drain(0)[0].values[0].tensor
    assert tensor is not None
    assert (tensor.dtype, tensor.shape, bytes(tensor.data)) == ("float32", (2,), b"\x00\x00\x40\x40" * 2)


def test_no_more_bytes_are_taken_at_once_than_make_a_batch() -> None:
    fan, queue = alone(size=1 << 30)
    for number in range(10):
        fan.publish(draft(number, elements=1 << 17))
    taken = [[event.seq for event in queue.drain(0)] for _ in range(5)]
    assert taken == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_a_waiting_drain_wakes_for_an_event_and_for_the_end() -> None:
    fan, queue = alone()
    drained: list[int] = []

    def read() -> None:
        while not queue.finished:
            drained.extend(event.seq for event in queue.drain(30))

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(3):
        fan.publish(draft(number))
        until(lambda: queue.counters().queued == 0)
    queue.end("stopped")
    thread.join(20)
    assert not thread.is_alive()
    assert drained == [0, 1, 2]
    fan.publish(draft(9))
    assert queue.counters() == Counters(3, 0, 0)


def test_who_has_just_taken_some_is_not_woken_for_one_but_for_many() -> None:
    fan, queue = alone(events=40, size=1 << 30)
    reader = Reader(queue)
    waking: list[float] = []

    def woken(after: int) -> bool:
        """Whether a reader that lets a batch gather is woken after so many events."""
        reader.enough = queue.crowd
        for _ in range(after):
            fan.publish(draft(0))
        queue.counters()
        waking.append(reader.enough)
        return reader.enough > queue.crowd

    assert not woken(9)
    assert woken(1)
    reader.take(0)
    reader.enough = queue.crowd
    fan.publish(draft(0, elements=1 << 18))
    queue.counters()
    assert reader.enough > queue.crowd


@pytest.mark.parametrize(
    ("watches", "seconds"), [(1, 0.05), (2, 0.08), (5, 0.2), (40, 1.6), (50, 2.0), (500, 2.0)]
)
def test_busy_streams_share_how_often_they_wake(watches: int, seconds: float) -> None:
    queues = Queues(1)
    fan = Fan(queues)
    for _ in range(watches):
        subscribed(fan, queues)
    assert queues.pace == pytest.approx(seconds)


def test_a_stream_is_busy_until_nothing_has_come_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    fan, queue = alone(events=40)
    reader = Reader(queue)
    waits: list[tuple[float, float]] = []
    now = 0.0

    def wait(enough: float, timeout: float) -> None:
        """Time passes; an event comes at 3 and at 3.7."""
        nonlocal now
        waits.append((enough, timeout))
        before, now = now, now + timeout
        for moment in (3.0, 3.7):
            if before < moment <= now:
                fan.publish(draft(0))
                if enough == 1:
                    now = moment

    monkeypatch.setattr(reader, "_wait", wait)
    clock = SimpleNamespace(monotonic=lambda: now)
    for module in ("bus", "subscription"):
        monkeypatch.setattr(f"modscope_server.runtime.{module}.time", clock)
    assert len(reader.take(10).runs) == 1
    assert waits == [(1, 10.0)]
    waits.clear()
    assert len(reader.take(10).runs) == 1
    assert set(waits) == {(10, 0.05)}
    assert 3.7 <= now < 3.8
    waits.clear()
    assert not reader.take(10).runs
    assert now == pytest.approx(13.7, abs=0.1)
    assert [enough for enough, _ in waits] == [10] * (len(waits) - 1) + [1]
    assert 19 <= len(waits) <= 22


def test_a_busy_reader_leaves_what_has_gathered_where_another_was_dealt_out_to_just_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queues = Queues(1 << 30)
    fan = Fan(queues)
    queue, other = (subscribed(fan, queues, events=1000) for _ in range(2))
    now = 100.0
    monkeypatch.setattr("modscope_server.runtime.bus.time", SimpleNamespace(monotonic=lambda: now))
    reader, second = Reader(queue), Reader(other)

    def taken(subscription: Subscription, by: Reader, pause: float) -> int:
        return sum(run.length for run in subscription.take(by, 100, pause).runs)

    fan.publish(draft(0))
    assert taken(queue, reader, 0.1) == 1
    fan.publish(draft(1))
    now += 0.05
    # The first was dealt out to both.
    assert [taken(queue, reader, 0.1), taken(other, second, 0.1)] == [0, 1]
    now += 0.06
    assert [taken(queue, reader, 0.1), taken(other, second, 0.1)] == [1, 1]
    fan.publish(draft(2))
    assert taken(queue, reader, 0.1) == 0
    assert taken(queue, reader, 0.0) == 1
    assert queue.counters() == Counters(3, 0, 0)


def test_a_fan_deals_out_what_has_gathered_before_one_joins_and_before_one_leaves() -> None:
    queues = Queues(1 << 30)
    fan = Fan(queues)
    first = subscribed(fan, queues)
    fan.publish(draft(0))
    second = subscribed(fan, queues)
    fan.publish(draft(1))
    fan.remove(first)
    fan.publish(draft(2))
    assert [event.step for event in first.drain(0)] == [0, 1]
    assert [event.step for event in second.drain(0)] == [1, 2]
    assert [queue.counters().published for queue in (first, second)] == [2, 2]


def test_all_subscribers_of_a_form_are_given_the_same_draft() -> None:
    queues = Queues(1 << 30)
    fan = Fan(queues)
    subscriptions = [subscribed(fan, queues) for _ in range(3)]
    fan.publish(draft(7))
    found = {id(Reader(one).take(0).runs[0].block) for one in subscriptions}
    assert len(found) == 1


def test_disconnect_ends_the_watch_and_tells_the_one_who_must_take_its_hooks_away() -> None:
    fan, queue = alone("disconnect", events=3)
    told: list[str] = []
    queue.on_overflow = lambda: told.append(queue.ended or "")
    for number in range(3):
        fan.publish(draft(number))
    assert queue.counters() == Counters(3, 0, 3)
    assert (queue.ended, told) == (None, [])
    for number in range(5):
        fan.publish(draft(number))
    assert queue.counters() == Counters(4, 1, 3)
    fan.publish(draft(9))
    assert queue.has_overflowed
    assert queue.ended == "its queue was full"
    until(lambda: told)
    assert [event.seq for event in queue.drain(0)] == [0, 1, 2]
    assert queue.finished


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest", "disconnect", "block"])
def test_a_tensor_is_free_once_the_queue_has_let_it_go(overflow: Overflow) -> None:
    queues = Queues(1 << 30)
    fan = Fan(queues, at_once=True)
    queue = subscribed(fan, queues, overflow, events=2, size=1 << 20)
    alive: list[weakref.ref[torch.Tensor]] = []
    for number in range(4):
        made = draft(number, elements=10)
        alive.append(weakref.ref(made.values[0].copy))  # type: ignore[arg-type]  # it has one
        fan.publish(made)
        del made
    held = [number for number, reference in enumerate(alive) if reference() is not None]
    assert held == ([2, 3] if overflow in ("drop_oldest", "block") else [0, 1])
    assert queues.budget.total == 2 * 40
    batch = Reader(queue).take(0)
    assert queues.budget.total == 0
    batch.runs.popleft()
    assert sum(reference() is not None for reference in alive) == 1
    del batch
    assert not any(reference() for reference in alive)
    gc.collect()


def test_a_tensor_that_several_hold_counts_once() -> None:
    queues = Queues(1000)
    fan = Fan(queues, at_once=True)
    one, two = (subscribed(fan, queues) for _ in range(2))
    for number in range(2):
        fan.publish(draft(number, elements=100))
    assert queues.budget.total == 800
    assert [queue.counters() for queue in (one, two)] == [Counters(2, 0, 2)] * 2
    one.drain(0)
    assert queues.budget.total == 800
    two.drain(0)
    assert queues.budget.total == 0


def test_where_all_hold_too_much_together_the_fullest_gives_way() -> None:
    queues = Queues(1000)
    greedy, modest = Fan(queues, at_once=True), Fan(queues, at_once=True)
    stopped = subscribed(greedy, queues)
    reading = subscribed(modest, queues)
    for number in range(10):
        greedy.publish(draft(number, elements=30))
        modest.publish(draft(number, elements=30))
        assert queues.budget.total <= 1000
        assert [event.seq for event in reading.drain(0)] == [number]
    counters = stopped.counters()
    assert (counters.published, counters.dropped + counters.queued) == (10, 10)
    assert stopped.bytes == queues.budget.total == 120 * counters.queued
    assert counters.dropped > 0


def test_who_would_rather_end_than_lose_an_event_ends_where_others_press() -> None:
    queues = Queues(1000)
    fan, other = Fan(queues, at_once=True), Fan(queues, at_once=True)
    strict = subscribed(fan, queues, "disconnect")
    subscribed(other, queues, "drop_newest")
    for number in range(6):
        fan.publish(draft(number, elements=40))
    assert strict.ended is None
    other.publish(draft(0, elements=20))
    assert strict.has_overflowed
    assert strict.counters() == Counters(6, 1, 5)


def test_what_is_closed_holds_nothing_and_counts_what_waited_as_dropped() -> None:
    queues = Queues(1000)
    fan = Fan(queues)
    queue = subscribed(fan, queues)
    fan.publish(draft(0, elements=40))
    fan.publish(draft(1, elements=40))
    queue.close()
    queue.close()
    assert queues.budget.total == 0
    assert queue.counters() == Counters(2, 2, 0)
