"""Feeding a sink through a connection that breaks while the server lives, and through ends that mean it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from modscope_client import connect
from modscope_client.client import Client
from modscope_client.errors import ModscopeError, ResourceExhausted, Unavailable
from modscope_client.feed import Feed
from modscope_client.types import Event
from tests.client.fake_server import Hold
from tests.client.fake_watch import CREATED, BreakOff, Response, Watches, event
from tests.client.line import line
from tests.client.test_feed import TOKEN, Job, Kept

BROKEN = BreakOff(grpc.StatusCode.UNAVAILABLE)
GONE = BreakOff(grpc.StatusCode.NOT_FOUND, "no watch is watch-7")


class Told:
    """A feed with a sink that keeps all, and who was told what."""

    def __init__(self, connect: Callable[[], Client], **watch: Any) -> None:
        self.sink = Kept()
        self.calls: list[str] = []
        self.feed = Feed(
            connect,
            self.sink,
            model="m",
            watch={"glob": "a", **watch},
            armed=lambda events: self.calls.append("armed"),
            lost=lambda error, seconds: self._lost(error),
            resumed=lambda events: self.calls.append("resumed"),
        )

    def _lost(self, error: ModscopeError) -> None:
        assert isinstance(error, Unavailable)
        self.calls.append("lost")


@contextmanager
def told(watches: Watches, **watch: Any) -> Iterator[Told]:
    with watches.served() as endpoint:
        yield Told(lambda: Client(endpoint, 30), **watch)


def test_a_broken_connection_costs_only_what_the_server_has_let_go_of() -> None:
    watches = Watches(
        [CREATED, Response(events=[event(0), event(1)]), BROKEN],
        [BROKEN],
        [CREATED, Response(events=[event(2), event(5, dropped=2)]), Hold()],
    )
    with told(watches) as it:
        it.feed.run(count=4)
    assert [event.seq for event in it.sink.events] == [0, 1, 2, 5]
    assert it.calls == ["armed", "lost", "lost", "resumed"]
    assert it.sink.opened == [2], "a watch that goes on is no other"
    last = it.sink.told[-1]
    assert (last.published, last.dropped, last.reconnects, last.connected) == (6, 2, 0, True)
    assert (it.feed.published, it.feed.dropped, it.feed.delivered) == (6, 2, 4)
    assert [told.connected for told in it.sink.told].count(False) >= 1
    assert [(asked.resume, asked.resume_after) for asked in watches.asked] == [
        ("", 0), ("watch-7", 1), ("watch-7", 1),
    ]  # fmt: skip
    assert watches.asked[0].keep_seconds > 0
    assert watches.stopped == ["watch-7"]


def test_before_the_first_event_all_that_is_held_is_asked_for() -> None:
    watches = Watches([CREATED, BROKEN], [CREATED, Response(events=[event(0)]), Hold()])
    with told(watches) as it:
        it.feed.run(count=1)
    assert watches.asked[1].resume == "watch-7" and not watches.asked[1].HasField("resume_after")


def test_a_watch_that_is_gone_is_armed_anew_and_counted_from_there() -> None:
    watches = Watches(
        [CREATED, Response(events=[event(0), event(3, dropped=2)]), BROKEN],
        [GONE],
        [CREATED, Response(events=[event(0), event(1)]), Hold()],
    )
    with told(watches) as it:
        it.feed.run(count=4)
    assert it.calls == ["armed", "lost", "armed"]
    assert it.sink.opened == [2, 2]
    assert (it.sink.told[-1].published, it.sink.told[-1].dropped, it.sink.told[-1].reconnects) == (6, 2, 1)
    assert watches.asked[2].glob == "a" and watches.asked[2].keep_seconds > 0


def test_a_server_that_says_that_it_closes_is_not_asked_for_its_watch() -> None:
    closed = Response(ended={"reason": "server closed", "published": 1})  # type: ignore[arg-type]
    watches = Watches(
        [CREATED, Response(events=[event(0)]), closed],
        [CREATED, Response(events=[event(0)]), Hold()],
    )
    with told(watches) as it:
        it.feed.run(count=2)
    assert [asked.resume for asked in watches.asked] == ["", ""]
    assert it.calls == ["armed", "lost", "armed"]


def test_an_overflow_that_disconnects_ends_it() -> None:
    full = BreakOff(grpc.StatusCode.RESOURCE_EXHAUSTED, "more events wait than the queue holds")
    watches = Watches([CREATED, Response(events=[event(0)]), full])
    with told(watches, overflow="disconnect") as it, pytest.raises(ResourceExhausted, match="more events"):
        it.feed.run()
    assert it.calls == ["armed"] and it.sink.closed == 1 and len(it.sink.events) == 1


def test_a_line_to_a_real_server_that_is_cut(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.serve()

    class Cutting(Kept):
        def emit(self, event: Event) -> None:
            super().emit(event)
            if event.seq == 2:
                wire.cut()

    with line(tmp_path / "line", job.address) as wire:
        sink = Cutting()
        feed = Feed(
            lambda: connect(wire.address, token=TOKEN, timeout=30), sink, watch={"glob": "1"},
            armed=lambda events: job.train(3), lost=lambda error, seconds: job.train(2),
        )  # fmt: skip
        feed.run(count=5)
    assert [(event.seq, event.step) for event in sink.events] == [(seq, seq) for seq in range(5)]
    assert (sink.opened, feed.published, feed.dropped) == ([0], 5, 0)
    assert job.module[1]._forward_hooks == {}
    job.leave()
