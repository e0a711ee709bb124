"""A watch that is kept outlives its reader, and gives the next one what it had sent last."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import modscope_server
from modscope.v1 import event_pb2
from tests.server.rpc import Rpc, refused, serving, until
from tests.server.test_services_hook import armed, events_of, hook_counts, message_of, watched

X = torch.ones(1, 1)
KEEP = {"keep_seconds": 3600.0}


def sequence(events: list[Any]) -> list[int]:
    return [event.seq for event in events]


def resumed(rpc: Rpc, watch_id: str, after: int | None = None) -> tuple[Any, Any]:
    fields: dict[str, Any] = {"resume": watch_id}
    return armed(rpc, **fields if after is None else {**fields, "resume_after": after})


def test_nothing_is_missed_by_a_reader_that_comes_back() -> None:
    model = nn.Linear(1, 1)
    with serving(model) as rpc:
        stream, created = armed(rpc, **KEEP)
        for _ in range(5):
            model(X)
        assert sequence(events_of(stream, 5)) == [0, 1, 2, 3, 4]
        stream.cancel()
        for _ in range(3):
            model(X)
        stream, again = resumed(rpc, created.watch_id, 2)
        assert again == created
        model(X)
        assert sequence(events_of(stream, 6)) == [3, 4, 5, 6, 7, 8]
        stream.cancel()
        stream, _ = resumed(rpc, created.watch_id)
        assert sequence(events_of(stream, 6)) == [3, 4, 5, 6, 7, 8]
        counters = rpc.StopWatch(watch_id=created.watch_id)
        assert (counters.published, counters.dropped) == (9, 0)


def test_tensors_come_again_whole() -> None:
    model = nn.Linear(2, 3)
    with serving(model) as rpc:
        stream, created = armed(rpc, payload=event_pb2.PAYLOAD_TENSOR, **KEEP)
        model(torch.ones(1, 2))
        first = message_of(stream)
        stream.cancel()
        stream, _ = resumed(rpc, created.watch_id, -1)
        again = message_of(stream)
        assert (again.events, again.data) == (first.events, first.data)
        assert len(first.data) == 12


def test_what_is_held_no_more_is_counted_as_dropped_and_told() -> None:
    model = nn.Linear(1, 1)
    with serving(model) as rpc:
        stream, created = armed(rpc, queue=4, **KEEP)
        for number in range(3):
            model(X)
            assert sequence(events_of(stream, 1)) == [number]
        stream.cancel()
        until(lambda: not stream.is_active())
        for _ in range(4):
            model(X)
        stream, again = resumed(rpc, created.watch_id, 0)
        assert again.notes[-1] == "2 events that came after number 0 are held no more"
        events = events_of(stream, 4)
        assert sequence(events) == [3, 4, 5, 6]
        assert {event.dropped for event in events} == {2}


def test_a_reader_that_has_not_gone_is_sent_away_by_the_next() -> None:
    model = nn.Linear(1, 1)
    with serving(model) as rpc:
        first, created = armed(rpc)
        model(X)
        events_of(first, 1)
        second, _ = resumed(rpc, created.watch_id, 0)
        last = list(first)[-1]
        assert last.ended.reason == "another reader has resumed it"
        model(X)
        assert sequence(events_of(second, 1)) == [1]
        assert len(watched(rpc)) == 1
        second.cancel()
        until(lambda: not watched(rpc))


def test_without_keeping_a_watch_ends_with_its_reader_and_cannot_be_resumed() -> None:
    model = nn.Linear(1, 1)
    with serving(model) as rpc:
        bare = hook_counts(model)
        stream, created = armed(rpc)
        stream.cancel()
        until(lambda: hook_counts(model) == bare)
        refusal = refused(lambda: rpc.Watch(resume=created.watch_id))
        assert (refusal.code, refusal.reason, refusal.fields) == ("NOT_FOUND", "UNKNOWN_WATCH", ["resume"])
        assert refusal.hint


def test_stop_watch_ends_a_watch_that_nobody_reads() -> None:
    model = nn.Linear(1, 1)
    with serving(model) as rpc:
        bare = hook_counts(model)
        stream, created = armed(rpc, **KEEP)
        model(X)
        events_of(stream, 1)
        stream.cancel()
        model(X)
        assert hook_counts(model) != bare
        counters = rpc.StopWatch(watch_id=created.watch_id)
        assert (counters.published, counters.dropped) == (2, 0)
        assert hook_counts(model) == bare
        assert refused(lambda: rpc.Watch(resume=created.watch_id)).reason == "UNKNOWN_WATCH"


def test_a_watch_that_nobody_resumes_in_time_ends() -> None:
    model = nn.Linear(1, 1)
    with serving(model) as rpc:
        bare = hook_counts(model)
        stream, created = armed(rpc, keep_seconds=1.0)
        stream.cancel()
        until(lambda: hook_counts(model) == bare)
        assert refused(lambda: rpc.Watch(resume=created.watch_id)).reason == "UNKNOWN_WATCH"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"resume": "watch-99"}, "UNKNOWN_WATCH"),
        ({"model": "other"}, "UNKNOWN_WATCH"),
        ({"resume_after": 7}, "BAD_REQUEST"),
        ({"resume_after": -2}, "BAD_REQUEST"),
    ],
)
def test_what_cannot_be_resumed_is_refused_and_leaves_the_reader_alone(
    fields: dict[str, Any], reason: str
) -> None:
    model = nn.Linear(1, 1)
    with serving({"one": model, "other": nn.Linear(1, 1)}) as rpc:
        stream, created = armed(rpc, model="one", **KEEP)
        model(X)
        events_of(stream, 1)
        refusal = refused(lambda: rpc.Watch(**{"model": "one", "resume": created.watch_id, **fields}))
        assert refusal.reason == reason
        assert refusal.hint
        model(X)
        assert sequence(events_of(stream, 1)) == [1]


@pytest.mark.parametrize("seconds", [-1.0, 0.5, 1e6])
def test_a_watch_is_kept_for_a_second_to_a_day(seconds: float) -> None:
    with serving(nn.Linear(1, 1)) as rpc:
        refusal = refused(lambda: rpc.Watch(keep_seconds=seconds))
        assert (refusal.reason, refusal.hint != "") == ("BAD_REQUEST", True)


def test_a_viewer_may_resume_and_nobody_without_a_token() -> None:
    model = nn.Linear(1, 1)
    with modscope_server.attach(model) as scope, Rpc(scope.address, scope.token) as rpc:
        stream, created = armed(rpc, **KEEP)
        stream.cancel()
        with Rpc(scope.address, "wrong") as stranger, Rpc(scope.address, scope.viewer_token) as viewer:
            assert refused(lambda: stranger.Watch(resume=created.watch_id)).reason == "BAD_TOKEN"
            stream, _ = resumed(viewer, created.watch_id)
            model(X)
            assert sequence(events_of(stream, 1)) == [0]


_READER = """
import sys
import grpc
from modscope.v1 import hook_service_pb2 as messages

channel = grpc.insecure_channel(sys.argv[1])
watch = channel.unary_stream(
    "/modscope.v1.HookService/Watch",
    request_serializer=messages.WatchRequest.SerializeToString,
    response_deserializer=messages.WatchResponse.FromString,
)
request = messages.WatchRequest(keep_seconds=3600)
for message in watch(request, metadata=[("authorization", "Bearer " + sys.argv[2])]):
    print(message.created.watch_id, flush=True)
"""


def test_a_watch_outlives_a_reader_that_is_killed() -> None:
    model = nn.Linear(1, 1)
    with (
        modscope_server.attach(model) as scope,
        Rpc(scope.address, scope.token) as rpc,
        subprocess.Popen(
            [sys.executable, "-c", _READER, scope.address, scope.token], stdout=subprocess.PIPE, text=True
        ) as reader,
    ):
        assert reader.stdout is not None
        watch_id = reader.stdout.readline().strip()
        model(X)
        assert reader.stdout.readline() == "\n"
        reader.kill()
        reader.wait()
        model(X)
        stream, _ = resumed(rpc, watch_id, -1)
        assert sequence(events_of(stream, 2)) == [0, 1]


def test_the_end_of_the_server_ends_a_watch_that_nobody_reads() -> None:
    model = nn.Linear(1, 1)
    bare = hook_counts(model)
    scope = modscope_server.attach(model)
    with Rpc(scope.address, scope.token) as rpc:
        stream, _ = armed(rpc, **KEEP)
        stream.cancel()
        assert hook_counts(model) != bare
        scope.close()
        assert hook_counts(model) == bare
