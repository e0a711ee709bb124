"""What becomes of a watch whose reader does not keep up, and what it is told meanwhile."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

import modscope_server
from modscope.v1 import event_pb2
from tests.server.rpc import refused, serving, until
from tests.server.test_services_hook import armed, events_of, hook_counts, watched

DISCONNECT, BLOCK = event_pb2.OVERFLOW_DISCONNECT, event_pb2.OVERFLOW_BLOCK
X = torch.ones(1, 1)


def test_a_watch_that_asked_for_it_ends_rather_than_lose_an_event() -> None:
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(20)])
    with serving(model) as rpc:
        bare = hook_counts(model)
        stream, created = armed(rpc, queue=5, overflow=DISCONNECT)
        for _ in range(400):
            model(X)
        # The hooks are gone though nobody has read a word of it.
        until(lambda: hook_counts(model) == bare)
        seen: list[int] = []
        refusal = refused(lambda: seen.extend(event.seq for message in stream for event in message.events))
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "LIMIT")
        assert "queue was full" in refusal.message
        assert "drop_oldest" in refusal.hint
        assert seen == list(range(len(seen)))
        assert rpc.StopWatch(watch_id=created.watch_id).published == 0
        until(lambda: not watched(rpc))


@pytest.mark.parametrize(("allowed", "asked"), [(0.0, 5.0), (10.0, 10.5)])
def test_nobody_makes_training_wait_longer_than_the_server_allows(allowed: float, asked: float) -> None:
    model = nn.Linear(1, 1)
    with serving(model, limits=modscope_server.Limits(block_ms=allowed)) as rpc:
        bare = hook_counts(model)
        refusal = refused(lambda: rpc.Watch(overflow=BLOCK, block_ms=asked))
        assert (refusal.reason, refusal.fields) == ("BAD_REQUEST", ["block_ms"])
        assert "limits.block_ms" in refusal.hint
        assert hook_counts(model) == bare


def test_training_waits_for_a_reader_where_the_server_allows_it_and_nothing_is_lost() -> None:
    model = nn.Linear(1, 1)
    with serving(model, limits=modscope_server.Limits(block_ms=60_000, heartbeat=0.05)) as rpc:
        stream, _ = armed(rpc, queue=2, overflow=BLOCK, block_ms=60_000, payload=event_pb2.PAYLOAD_NONE)
        training = threading.Thread(target=lambda: [model(X) for _ in range(2000)], daemon=True)
        training.start()
        events = events_of(stream, 2000)
        training.join(30)
        assert [event.seq for event in events] == list(range(2000))
        beat = next(message.heartbeat for message in stream if message.HasField("heartbeat"))
        assert (beat.published, beat.dropped, beat.queued) == (2000, 0, 0)
        assert beat.blocked_seconds > 0


def test_a_busy_stream_has_its_heartbeats_too() -> None:
    model = nn.Linear(1, 1)
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            model(X)

    with serving(model, limits=modscope_server.Limits(heartbeat=0.1)) as rpc:
        stream, _ = armed(rpc, payload=event_pb2.PAYLOAD_NONE)
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        beats: list[Any] = []
        with_events = 0
        for message in stream:
            if message.HasField("heartbeat"):
                beats.append(message.heartbeat)
            with_events += bool(message.events)
            if len(beats) == 3:
                break
        stop.set()
        thread.join(30)
        assert with_events >= 3
        assert beats[0].published < beats[1].published < beats[2].published
        # As late as a batch and no later: they keep their pace.
        assert beats[2].time.ToSeconds() - beats[0].time.ToSeconds() <= 2


def test_firings_that_a_rate_leaves_out_are_told() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with serving(model, optimizer, limits=modscope_server.Limits(heartbeat=0.05)) as rpc:
        stream, _ = armed(rpc, max_rate=0.001)
        for _ in range(10):
            model(X).sum().backward()
            optimizer.step()
        found = 0
        for message in stream:
            found += len(message.events)
            beat = message.heartbeat
            if beat.published + beat.skipped == 10 and not beat.queued:
                assert found == beat.published < 10
                break
