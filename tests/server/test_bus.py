"""Subscriptions are bounded, count what they lose, and never wait for a reader."""

from __future__ import annotations

import threading

import torch

from modscope_server.runtime.bus import Counters, Draft, DraftValue, Subscription


def draft(number: int, elements: int = 0) -> Draft:
    copy = torch.full((elements,), float(number)) if elements else None
    values = (DraftValue("output", "", (elements,), "float32", copy=copy),)
    return Draft(number, "m", "p", "p", "T", "forward", 0, False, 0.0, values)


def test_events_come_in_order_with_sequence_numbers() -> None:
    queue = Subscription("a", overflow="drop_oldest", events=10, size=1000)
    for number in range(5):
        queue.publish(draft(number))
    assert [(event.seq, event.step) for event in queue.drain(0)] == [(n, n) for n in range(5)]
    assert queue.counters() == Counters(5, 0, 0)


def test_drop_oldest_keeps_the_newest_and_shows_the_gap() -> None:
    queue = Subscription("a", overflow="drop_oldest", events=3, size=1000)
    for number in range(10):
        queue.publish(draft(number))
    events = queue.drain(0)
    assert [event.seq for event in events] == [7, 8, 9]
    assert {event.dropped for event in events} == {7}
    assert queue.counters() == Counters(10, 7, 0)


def test_drop_newest_keeps_the_oldest() -> None:
    queue = Subscription("a", overflow="drop_newest", events=3, size=1000)
    for number in range(10):
        queue.publish(draft(number))
    assert [event.seq for event in queue.drain(0)] == [0, 1, 2]
    assert queue.counters() == Counters(10, 7, 0)


def test_the_queue_is_bounded_in_bytes() -> None:
    queue = Subscription("a", overflow="drop_oldest", events=100, size=4 * 100)
    for number in range(10):
        queue.publish(draft(number, elements=40))
    events = queue.drain(0)
    assert [event.seq for event in events] == [8, 9]
    queue.publish(draft(10, elements=101))
    assert queue.drain(0) == []
    assert queue.counters() == Counters(11, 9, 0)
    queue.publish(draft(11, elements=100))
    assert [event.seq for event in queue.drain(0)] == [11]


def test_captured_tensors_come_whole() -> None:
    queue = Subscription("a", overflow="drop_oldest", events=3, size=1000)
    queue.publish(draft(3, elements=2))
    tensor = queue.drain(0)[0].values[0].tensor
    assert tensor is not None
    assert (tensor.dtype, tensor.shape, bytes(tensor.data)) == ("float32", (2,), b"\x00\x00\x40\x40" * 2)


def test_a_waiting_drain_wakes_for_an_event_and_for_the_end() -> None:
    queue = Subscription("a", overflow="drop_oldest", events=3, size=1000)
    drained: list[int] = []

    def reader() -> None:
        while not queue.finished:
            drained.extend(event.seq for event in queue.drain(30))

    thread = threading.Thread(target=reader)
    thread.start()
    for number in range(3):
        queue.publish(draft(number))
    queue.end("stopped")
    thread.join(20)
    assert not thread.is_alive()
    assert drained == [0, 1, 2]
    queue.publish(draft(9))
    assert queue.counters() == Counters(3, 0, 0)


def test_a_batch_gathers_until_it_is_large_or_the_stream_ends() -> None:
    queue = Subscription("a", overflow="drop_oldest", events=40, size=1 << 30)
    is_large: list[bool] = []
    # 10 of 40 events are a batch.
    for number in range(12):
        is_large.append(queue.linger())
        queue.publish(draft(number))
    assert is_large == [False] * 10 + [True] * 2
    queue.drain(0)
    assert not queue.linger()
    queue.publish(draft(0, elements=1 << 18))
    assert queue.linger()
    queue.drain(0)
    assert not queue.linger()
    queue.end("stopped")
    assert queue.linger()


def test_concurrent_publishers_lose_no_count() -> None:
    queue = Subscription("a", overflow="drop_oldest", events=7, size=1000)

    def publish() -> None:
        for number in range(500):
            queue.publish(draft(number))

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen = 0
    while any(thread.is_alive() for thread in threads):
        seen += len(queue.drain(0.001))
    seen += len(queue.drain(0))
    counters = queue.counters()
    assert counters.published == 2000
    assert counters.dropped + seen == 2000
