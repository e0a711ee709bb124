"""What a watch is told of its hooks: the latest of each, and a call for each change; live and recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modscope.v1 import hook_service_pb2
from modscope_client.client import Client
from modscope_client.recording import Recorder, Recording
from modscope_client.types import HookInfo, ModelInfo, WatchCounters
from tests.client.both import CLIENTS, entered, next_of, over, settle
from tests.client.fake_server import Hold
from tests.client.fake_watch import CREATED, Response, Watches, event, hook

COMPILED = "compiled before the hook came"
TOLD = [
    CREATED,
    Response(hooks=[hook("b", "armed"), hook("a", "armed")]),
    Response(events=[event(0)], hooks=[hook("a", "fired", fired=1, last_step=0)]),
    Response(hooks=[hook("a", "fired", fired=2, last_step=1), hook("b", "blind", COMPILED)]),
    Response(events=[event(1)]),
    Response(hooks=[hook("b", "fired", remedy="runs uncompiled while it is watched", fired=1)]),
    Response(events=[event(2)]),
]
CHANGES = [("b", "armed"), ("a", "armed"), ("a", "fired"), ("b", "blind"), ("b", "fired")]


def noticed(watch: Any) -> list[HookInfo]:
    """What it calls from now on."""
    calls: list[HookInfo] = []
    watch.noticed = calls.append
    return calls


@pytest.mark.parametrize("kind", CLIENTS)
def test_the_latest_of_each_and_a_call_for_each_change(kind: Any) -> None:
    async def body(client: Any) -> None:
        watch = (await settle(client.model("m"))).watch()
        calls = noticed(watch)
        with pytest.raises(RuntimeError, match="not armed"):
            _ = watch.states
        async with entered(watch) as events:
            assert events.states == ()
            seqs, states = [], []
            for _ in range(3):
                seqs.append((await next_of(events)).seq)
                states.append([(hook.path, hook.state) for hook in events.states])
            assert seqs == [0, 1, 2]
            assert states == [
                [("b", "armed"), ("a", "fired")],
                [("b", "blind"), ("a", "fired")],
                [("b", "fired"), ("a", "fired")],
            ]
            last = events.states
        assert [(hook.path, hook.state) for hook in calls] == CHANGES
        assert (last[1].fired, last[1].last_step) == (2, 1), "also what is no change of state is the latest"
        assert calls[3].reason == COMPILED and "uncompiled" in calls[4].remedy
        assert calls[3] == HookInfo("b", "forward", "watch", ("watch-7",), 0, None, "", "blind", COMPILED, "")

    with Watches([*TOLD, Hold()]).served() as endpoint:
        over(kind, endpoint, body)


def test_a_recording_replays_them(tmp_path: Path) -> None:
    with Watches([*TOLD, Hold()]).served() as endpoint, Client(endpoint, 30) as client:
        watch = client.model("m").watch()
        live = noticed(watch)
        info = ModelInfo("m", "Net", True, 0, 3, 1, 1, 0, False)
        with Recorder(tmp_path / "r", info, watch.request, count=2) as recorder:
            watch.tap = recorder.take
            with watch as events:
                for _ in range(3):
                    next(events)
                states = events.states
    with Recording(tmp_path / "r") as recording:
        calls = noticed(recording)
        assert [event.seq for event in recording] == [0, 1]
        assert calls == live and recording.states == states and len(calls) == len(CHANGES)


@pytest.mark.parametrize("kind", CLIENTS)
def test_what_its_rate_has_left_out_and_how_long_training_has_waited(kind: Any) -> None:
    beat = hook_service_pb2.WatchHeartbeat(
        published=5, dropped=1, queued=3, step=8, skipped=40, blocked_seconds=0.25
    )

    async def body(client: Any) -> None:
        async with entered((await settle(client.model("m"))).watch()) as events:
            await next_of(events)
            assert events.counters == WatchCounters(6, 1, 3, 8, 40, 0.25)

    with Watches(
        [CREATED, Response(heartbeat=beat), Response(events=[event(5)]), Hold()]
    ).served() as endpoint:
        over(kind, endpoint, body)
