"""HookService over raw gRPC: armed at once, events of what the hooks saw, and an end without a trace."""

from __future__ import annotations

import threading
from typing import Any

import grpc
import pytest
import torch
from torch import nn

import modscope_server
from modscope.v1 import event_pb2, hook_service_pb2
from modscope_server.inspection.statistics import reduce, statistics
from modscope_server.inspection.tensors import to_data
from tests.plain_models import MLP
from tests.server.rpc import Rpc, refused, serving, until


def hook_counts(model: nn.Module) -> list[int]:
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def armed(rpc: Rpc, **fields: Any) -> tuple[Any, Any]:
    """A stream and what its first message says."""
    stream = rpc.Watch(**fields)
    return stream, next(stream).created


def message_of(stream: Any) -> Any:
    """The next message that is not about hooks: of them is told at the beginning, and as they change."""
    return next(message for message in stream if not message.hooks)


def events_of(stream: Any, count: int) -> list[Any]:
    """The next `count` events."""
    found: list[Any] = []
    while len(found) < count:
        found += next(stream).events
    return found


def test_three_calls_give_three_events_to_each_and_the_last_reader_takes_the_hooks_away() -> None:
    model = MLP()
    x = torch.randn(2, 1)
    with serving(model) as rpc:
        bare = hook_counts(model)
        one, first = armed(rpc, glob="w1")
        two, second = armed(rpc, glob="w1")
        assert (list(first.paths), first.step) == (["w1"], 0)
        assert first.watch_id != second.watch_id
        for _ in range(3):
            model(x)
        for stream in (one, two):
            events = events_of(stream, 3)
            assert [event.seq for event in events] == [0, 1, 2]
            assert [event.call for event in events] == [0, 1, 2]
            assert {(event.path, event.type, event.model) for event in events} == {("w1", "Linear", "model")}
            assert {event.hook for event in events} == {event_pb2.HOOK_KIND_FORWARD}
        one.cancel()
        until(lambda: [list(h.watch_ids) for h in watched(rpc)] == [[second.watch_id]])
        model(x)
        assert [event.seq for event in events_of(two, 1)] == [3]
        counters = rpc.StopWatch(watch_id=second.watch_id)
        assert (counters.published, counters.dropped) == (4, 0)
        assert hook_counts(model) == bare
        last = list(two)[-1]
        assert (last.ended.reason, last.ended.published) == ("stopped", 4)
        assert rpc.StopWatch(watch_id=second.watch_id) == hook_service_pb2.StopWatchResponse()


def watched(rpc: Rpc) -> list[Any]:
    return [hook for hook in rpc.ListHooks().hooks if hook.owner == "watch"]


def test_the_hooks_on_a_model_are_listed() -> None:
    model = MLP()
    with serving(model) as rpc:
        assert {hook.owner for hook in rpc.ListHooks().hooks} == {"safe point"}
        stream, created = armed(rpc, glob="w2", hooks=[1, 2])
        model(torch.ones(1, 1))
        events_of(stream, 2)
        found = {hook.kind: hook for hook in watched(rpc)}
        assert set(found) == {event_pb2.HOOK_KIND_FORWARD_PRE, event_pb2.HOOK_KIND_FORWARD}
        for hook in found.values():
            assert (hook.path, list(hook.watch_ids), hook.fired, hook.last_step) == (
                "w2",
                [created.watch_id],
                1,
                0,
            )


def test_statistics_and_gradients_are_what_the_hooks_saw() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    x = torch.randn(5, 3)
    seen: dict[str, torch.Tensor] = {}
    model[1].register_full_backward_hook(lambda m, gi, go: seen.update(grad_input=gi[0], grad_output=go[0]))
    with serving(model) as rpc:
        stream, _ = armed(rpc, glob="1", hooks=[1, 2, 3, 4])
        model(x).pow(2).sum().backward()
        events = {event.hook: event for event in events_of(stream, 4)}
    hidden = model[0](x)
    pre, forward = events[event_pb2.HOOK_KIND_FORWARD_PRE], events[event_pb2.HOOK_KIND_FORWARD]
    assert told(pre) == {("input", "0"): expected(hidden)}
    assert told(forward) == {("output", ""): expected(model[1](hidden))}
    assert told(events[event_pb2.HOOK_KIND_BACKWARD_PRE]) == {
        ("grad_output", ""): expected(seen["grad_output"])
    }
    backward = told(events[event_pb2.HOOK_KIND_BACKWARD])
    assert backward[("grad_input", "0")] == expected(seen["grad_input"])


ROLES = {1: "input", 2: "output", 3: "grad_input", 4: "grad_output"}


def told(event: Any) -> dict[tuple[str, str], tuple[Any, ...]]:
    return {
        (ROLES[value.role], value.key): (tuple(value.shape), value.dtype, value.stats.count, value.stats.norm)
        for value in event.values
    }


def expected(tensor: torch.Tensor) -> tuple[Any, ...]:
    record = statistics(tensor.detach())
    return tuple(tensor.shape), "float32", record.count, record.norm


def test_tensors_follow_their_event_in_chunks() -> None:
    model = nn.Linear(700, 600)
    x = torch.randn(1000, 700)
    with serving(model) as rpc:
        stream, _ = armed(rpc, hooks=[1, 2], payload=event_pb2.PAYLOAD_TENSOR)
        output = model(x)
        for tensor in (x, output):
            message = message_of(stream)
            (event,) = message.events
            (value,) = event.values
            assert value.tensor.byte_size == tensor.numel() * 4
            chunks = [message.data]
            while sum(map(len, chunks)) < value.tensor.byte_size:
                message = message_of(stream)
                assert not message.events
                chunks.append(message.data)
            assert all(0 < len(chunk) <= 1 << 20 for chunk in chunks)
            assert b"".join(chunks) == bytes(to_data(tensor).data)


def test_small_tensors_come_together() -> None:
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(5)])
    with serving(model) as rpc:
        stream, _ = armed(rpc, hooks=[1, 2], payload=event_pb2.PAYLOAD_TENSOR)
        x = torch.randn(2, 3)
        events: list[Any] = []
        data = b""
        messages = 0
        for _ in range(20):
            model(x)
        while len(events) < 20 * 12:
            message = message_of(stream)
            events += message.events
            data += message.data
            messages += 1
        assert len(data) == sum(value.tensor.byte_size for event in events for value in event.values)
        first, last = bytes(to_data(x).data), bytes(to_data(model(x)).data)
        assert (data[: len(first)], data[-len(last) :]) == (first, last)
        assert messages < len(events) / 2


def test_a_histogram_is_that_of_the_value_and_comes_with_its_statistics() -> None:
    model = nn.Linear(30, 40)
    x = torch.randn(50, 30)
    with serving(model) as rpc:
        whole, _ = armed(rpc, payload=event_pb2.PAYLOAD_HISTOGRAM)
        part, _ = armed(rpc, payload=event_pb2.PAYLOAD_HISTOGRAM, sample=100)
        bare, _ = armed(rpc)
        output = model(x).detach()
        values = [events_of(stream, 1)[0].values[0] for stream in (whole, part, bare)]
    expected = reduce(output, histogram=True).histogram()
    assert expected is not None
    assert tuple(values[0].histogram.edges) == expected.edges
    assert tuple(values[0].histogram.counts) == expected.counts
    assert [value.HasField("histogram") for value in values] == [True, True, False]
    assert [value.HasField("sample") for value in values] == [False, True, False]
    sample = values[1].sample
    assert values[1].stats.count == sum(values[1].histogram.counts) == sample.elements <= 100
    assert sample.mean_error > 0
    assert values[0].stats == values[2].stats
    assert values[0].stats.norm == statistics(output).norm


def test_none_payload_carries_shape_and_dtype_alone() -> None:
    model = nn.Linear(3, 2)
    with serving(model) as rpc:
        stream, _ = armed(rpc, payload=event_pb2.PAYLOAD_NONE)
        model(torch.ones(4, 3))
        (event,) = events_of(stream, 1)
        (value,) = event.values
        assert (list(value.shape), value.dtype) == ([4, 2], "float32")
        assert not value.HasField("stats")
        assert not value.HasField("tensor")


def test_every_nth_step() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with serving(model, optimizer) as rpc:
        stream, _ = armed(rpc, every=3)
        for _ in range(10):
            model(torch.ones(1, 1)).sum().backward()
            optimizer.step()
        assert [event.step for event in events_of(stream, 4)] == [0, 3, 6, 9]


def test_what_is_dropped_is_counted_and_gaps_show_it() -> None:
    model = nn.Linear(1, 1)
    limits = modscope_server.Limits(heartbeat=0.1)
    with serving(model, limits=limits) as rpc:
        streams = {
            overflow: armed(rpc, queue=1, overflow=overflow, payload=event_pb2.PAYLOAD_NONE)
            for overflow in (1, 2)
        }
        for _ in range(5000):
            model(torch.ones(1, 1))
        for overflow, (stream, created) in streams.items():
            sequence: list[int] = []
            beat = None
            while beat is None or beat.published < 5000 or beat.queued:
                message = message_of(stream)
                sequence += [event.seq for event in message.events]
                beat = message.heartbeat if message.HasField("heartbeat") else beat
            assert beat.published == 5000
            assert beat.dropped == 5000 - len(sequence)
            assert beat.dropped > 0
            assert sequence == sorted(set(sequence))
            if overflow == 1:
                assert sequence[-1] == 4999
            rpc.StopWatch(watch_id=created.watch_id)
            assert list(stream)[-1].ended.dropped == beat.dropped


def test_a_quiet_watch_sends_heartbeats() -> None:
    with serving(nn.Linear(1, 1), limits=modscope_server.Limits(heartbeat=0.05)) as rpc:
        stream, _ = armed(rpc)
        beats = [message_of(stream).heartbeat for _ in range(3)]
        assert all((beat.published, beat.dropped, beat.queued) == (0, 0, 0) for beat in beats)
        assert beats[0].time.ToNanoseconds() < beats[2].time.ToNanoseconds()


def test_a_reader_that_leaves_takes_its_hooks_along() -> None:
    model = MLP()
    with serving(model) as rpc:
        bare = hook_counts(model)
        stream, _ = armed(rpc)
        assert hook_counts(model) != bare
        stream.cancel()
        until(lambda: hook_counts(model) == bare)
        stream, _ = armed(rpc, timeout=1.0)
        with pytest.raises(grpc.RpcError) as raised:
            list(stream)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: hook_counts(model) == bare)


def test_a_client_that_vanishes_takes_its_hooks_along() -> None:
    model = MLP()
    with modscope_server.attach(model) as scope:
        bare = hook_counts(model)
        rpc = Rpc(scope.address, scope.token)
        armed(rpc)
        assert hook_counts(model) != bare
        rpc.close()
        until(lambda: hook_counts(model) == bare)


def test_the_end_of_the_server_is_told() -> None:
    model = nn.Linear(1, 1)
    scope = modscope_server.attach(model)
    with Rpc(scope.address, scope.token) as rpc:
        stream, _ = armed(rpc)
        model(torch.ones(1, 1))
        scope.close()
        *messages, last = stream
        assert [event.seq for message in messages for event in message.events] == [0]
        assert (last.ended.reason, last.ended.published) == ("server closed", 1)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"glob": "w9"}, "NO_MATCH"),
        ({"type": "Conv2d"}, "NO_MATCH"),
        ({"glob": "["}, "BAD_GLOB"),
        ({"every": -1}, "BAD_REQUEST"),
        ({"queue": -1}, "BAD_REQUEST"),
        ({"hooks": [9]}, "BAD_REQUEST"),
        ({"payload": 9}, "BAD_REQUEST"),
        ({"sample": -1}, "BAD_REQUEST"),
        ({"overflow": 9}, "BAD_REQUEST"),
    ],
)
def test_a_watch_that_is_refused_leaves_no_hook(fields: dict[str, Any], reason: str) -> None:
    model = MLP()
    with serving(model) as rpc:
        bare = hook_counts(model)
        refusal = refused(lambda: rpc.Watch(**fields))
        assert refusal.reason == reason
        assert refusal.fields
        assert refusal.hint
        assert hook_counts(model) == bare


def test_many_watches_come_and_go_while_the_model_runs() -> None:
    model = MLP()
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            model(torch.ones(1, 1))

    thread = threading.Thread(target=run, daemon=True)
    with serving(model) as rpc:
        bare = hook_counts(model)
        thread.start()
        for number in range(10):
            stream, _ = armed(rpc, glob=f"w{number % 3 + 1}")
            for event in events_of(stream, 3):
                assert event.path == f"w{number % 3 + 1}"
            stream.cancel()
        until(lambda: hook_counts(model) == bare)
        stop.set()
        thread.join(30)
