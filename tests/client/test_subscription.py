"""Watches: armed on entering, gone on leaving, and how they end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import modscope_server
from modscope.v1 import hook_service_pb2
from modscope_client import connect, rpcs, watch_request
from modscope_client.calls import Calls
from modscope_client.channel import EVENTS_AHEAD, TENSORS_AHEAD
from modscope_client.errors import InvalidArgument, NotFound, Unavailable
from modscope_client.subscription import Subscription, ahead_of
from modscope_client.types import Event, WatchCounters
from tests.client.fake_server import Hold, serving
from tests.end_to_end.serving import Served, bits, served, until

Response = hook_service_pb2.WatchResponse


def counts(module: nn.Module) -> list[int]:
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return [len(getattr(part, kind)) for part in module.modules() for kind in kinds]


def watchers(live: Served) -> list[str]:
    return [hook.path for hook in live.model.hooks() if hook.owner == "watch"]


@pytest.fixture
def live() -> Iterator[Served]:
    torch.manual_seed(0)
    with served(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))) as made:
        yield made


def test_armed_on_entering_gone_on_leaving(live: Served) -> None:
    before = counts(live.module)
    watch = live.model.watch("0")
    assert counts(live.module) == before
    with watch as events:
        assert counts(live.module) != before and watchers(live) == ["0"]
        assert events.paths == ("0",) and events.watch_id and events.step == 0
        live.module(torch.zeros(1, 4))
        assert next(events).path == "0"
    assert counts(live.module) == before and watchers(live) == []


def test_events_tell_what_the_hook_saw(live: Served) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    module = live.module.get_submodule("2")
    hook = module.register_forward_hook(
        lambda _, args, output: seen.append((args[0].clone(), output.clone()))
    )
    with live.model.watch("2", hooks=("forward_pre", "forward"), payload="tensor") as events:
        for _ in range(3):
            live.module(torch.randn(5, 4))
        got = [next(events) for _ in range(6)]
    hook.remove()
    assert [(event.seq, event.hook, event.call) for event in got] == [
        (index, ("forward_pre", "forward")[index % 2], index // 2) for index in range(6)
    ]
    for index, (given, output) in enumerate(seen):
        (before,), (after,) = got[2 * index].values, got[2 * index + 1].values
        assert (before.role, before.key, after.role, after.key) == ("input", "0", "output", "")
        assert bits(before.array) == bits(given) and bits(after.array) == bits(output)
        assert after.shape == tuple(output.shape) and after.dtype == "float32"


def test_a_payload_larger_than_a_chunk() -> None:
    module = nn.Identity()
    with served(module) as live, live.model.watch(payload="tensor") as events:
        given = [torch.randn(700_000), torch.randn(3)]
        for value in given:
            module(value)
        for value in given:
            assert bits(next(events).values[0].array) == bits(value)


def test_statistics_and_no_payload(live: Served) -> None:
    x = torch.randn(5, 4)
    with live.model.watch("0") as stats, live.model.watch("0", payload="none") as none:
        expected = live.module.get_submodule("0")(x).detach().double()
        (value,) = next(stats).values
        assert value.stats is not None and value.array is None
        assert value.stats.mean == pytest.approx(expected.mean().item(), rel=1e-5)
        assert value.stats.norm == pytest.approx(expected.norm().item(), rel=1e-5)
        (bare,) = next(none).values
        assert bare.stats is None and bare.shape == (5, 3)


def test_two_watches_are_independent(live: Served) -> None:
    before = counts(live.module)
    with live.model.watch("0") as first:
        with live.model.watch("0") as second:
            for _ in range(3):
                live.module(torch.zeros(1, 4))
            assert [next(first).seq for _ in range(3)] == [next(second).seq for _ in range(3)] == [0, 1, 2]
        assert watchers(live) == ["0"]
        live.module(torch.zeros(1, 4))
        assert next(first).seq == 3
    assert counts(live.module) == before


def test_stop_in_another_thread_ends_the_iteration_after_what_has_come(live: Served) -> None:
    got: list[Event] = []
    before = counts(live.module)
    with live.model.watch("0") as events:
        reader = threading.Thread(target=lambda: got.extend(events))
        reader.start()
        live.module(torch.zeros(1, 4))
        live.module(torch.zeros(1, 4))
        until(lambda: len(got) == 2, "both events have come")
        events.stop()
        assert counts(live.module) == before
        reader.join(30)
        assert not reader.is_alive()
        events.stop()
        assert list(events) == []
        assert events.counters == WatchCounters(published=2, dropped=0, queued=0, step=0)


def test_leaving_while_another_thread_iterates(live: Served) -> None:
    with live.model.watch("0") as events:
        reader = threading.Thread(target=lambda: list(events))
        reader.start()
    reader.join(30)
    assert not reader.is_alive()
    assert list(events) == []


def test_an_error_in_the_body_is_the_callers_and_the_hooks_are_gone(live: Served) -> None:
    before = counts(live.module)
    with pytest.raises(ZeroDivisionError), live.model.watch("*", hooks=("forward", "backward")):
        raise ZeroDivisionError
    assert counts(live.module) == before


def test_what_is_dropped_is_told(live: Served) -> None:
    with live.model.watch("0", queue=2, payload="tensor") as events:
        for _ in range(2000):
            live.module(torch.zeros(1, 4))
        got = [next(events)]
        while got[-1].seq < 1999:
            got.append(next(events))
        assert len(got) + got[-1].dropped == 2000
        assert events.dropped == got[-1].dropped and events.counters.published == 2000


def test_a_reader_that_stops_holds_little_on_the_way(live: Served) -> None:
    total = 20_000
    with live.model.watch("0", queue=16, payload="none") as events:
        module = live.module.get_submodule("0")
        module(torch.zeros(1, 4))
        first = next(events)
        for _ in range(total):
            module(torch.zeros(1, 4))
        rest = [next(events)]
        while rest[-1].seq < total:
            rest.append(next(events))
        assert first.seq == 0
        assert len(rest) < total / 4, "most of what a slow reader misses is dropped at the server, not queued"
        assert rest[-1].dropped + len(rest) == total


def test_a_server_that_closes_ends_the_iteration_with_an_error() -> None:
    module = nn.Linear(2, 2)
    with modscope_server.attach(module) as scope:
        client = connect(scope.address, token=scope.token, timeout=10)
        watch = client.model().watch()
        events = watch.__enter__()
        module(torch.zeros(1, 2))
        assert next(events).seq == 0
    with pytest.raises(Unavailable):
        next(events)
    watch.__exit__(None, None, None)
    client.close()


@pytest.mark.parametrize(
    ("options", "kind", "reason"),
    [
        ({"glob": "nowhere"}, NotFound, "NO_MATCH"),
        ({"type": "Conv2d"}, NotFound, "NO_MATCH"),
        ({"glob": "["}, InvalidArgument, "BAD_GLOB"),
    ],
)
def test_a_watch_that_cannot_be_armed(live: Served, options: dict[str, Any], kind: Any, reason: str) -> None:
    before = counts(live.module)
    watch = live.model.watch(**options)
    with pytest.raises(kind) as refusal:
        watch.__enter__()
    assert refusal.value.reason == reason
    watch.close()
    assert counts(live.module) == before


def test_it_is_used_in_with_and_once(live: Served) -> None:
    watch = live.model.watch("0")
    for use in (lambda: next(watch), lambda: watch.dropped, lambda: watch.counters, watch.stop):
        with pytest.raises(RuntimeError, match="not armed"):
            use()
    watch.close()
    with watch:
        pass
    with pytest.raises(RuntimeError, match="once"):
        watch.__enter__()


@contextmanager
def subscription(messages: list[Response], hold: Hold | None = None) -> Iterator[Subscription]:
    """A watch on a server that sends just these messages, and then waits at `hold`."""

    def behaviour(request: bytes, context: Any) -> Iterator[Response]:
        yield from messages
        if hold is not None:
            hold.wait(context)

    def stop(request: bytes, context: Any) -> hook_service_pb2.StopWatchResponse:
        return hook_service_pb2.StopWatchResponse(published=9, dropped=4)

    with serving({rpcs.WATCH: behaviour, rpcs.STOP_WATCH: stop}) as endpoint:
        calls = Calls(endpoint, 10)
        with Subscription(calls, hook_service_pb2.WatchRequest()) as watch:
            yield watch
        calls.close()


@pytest.mark.parametrize(
    ("options", "ahead"),
    [
        ({}, EVENTS_AHEAD),
        ({"payload": "histogram"}, EVENTS_AHEAD),
        ({"payload": "tensor"}, TENSORS_AHEAD),
        ({"payload": "tensor", "index": "[:, -1]"}, EVENTS_AHEAD),
    ],
)
def test_whole_tensors_may_be_on_their_way_and_events_may_not(options: dict[str, Any], ahead: int) -> None:
    assert ahead_of(watch_request.watch("", **options)) == ahead


CREATED = Response(created=hook_service_pb2.WatchCreated(watch_id="7", paths=["a"], step=2, notes=["b"]))


def test_counters_follow_what_the_server_tells() -> None:
    beat = hook_service_pb2.WatchHeartbeat(published=5, dropped=1, queued=3, step=8)
    with subscription([CREATED, Response(heartbeat=beat)], hold := Hold()) as watch:
        assert (watch.watch_id, watch.paths, watch.step, watch.notes) == ("7", ("a",), 2, ("b",))
        assert watch.counters == WatchCounters(0, 0, 0, 2)
        reader = threading.Thread(target=lambda: list(watch))
        reader.start()
        until(lambda: watch.counters == WatchCounters(5, 1, 3, 8), "the heartbeat has come")
        watch.stop()
        assert watch.counters == WatchCounters(9, 4, 3, 8) and watch.dropped == 4
        hold.let_go()
        reader.join(30)


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ([], "the server ended the stream"),
        ([Response(ended=hook_service_pb2.WatchEnded(reason="server closed", dropped=6))], "server closed"),
    ],
)
def test_an_end_that_nobody_asked_for_is_an_error(last: list[Response], told: str) -> None:
    with subscription([CREATED, *last]) as watch:
        for _ in range(2):
            with pytest.raises(Unavailable, match=told) as ended:
                next(watch)
            assert ended.value.reason == "CLOSED"


def test_an_end_that_was_asked_for_is_the_end() -> None:
    ended = hook_service_pb2.WatchEnded(reason="stopped", dropped=6)
    with subscription([CREATED, Response(ended=ended)]) as watch:
        assert list(watch) == [] == list(watch)
        assert watch.dropped == 6


def test_events_are_of_numpy(live: Served) -> None:
    with live.model.watch("1", payload="tensor", hooks="forward") as events:
        live.module(torch.zeros(1, 4))
        array = next(events).values[0].array
    assert isinstance(array, numpy.ndarray) and array.flags.writeable
