"""Feeding a sink: what it is given, and what happens when the server goes, or the sink fails."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import nn

import modscope_server
from modscope_client import Client, connect
from modscope_client.errors import ModscopeError, NotFound, Unavailable
from modscope_client.feed import Feed
from modscope_client.sinks import Metrics, Watched
from modscope_client.subscription import Subscription
from modscope_client.types import Event
from tests.end_to_end.serving import TIMEOUT, until

TOKEN = "t" * 32


class Kept:
    """A sink that keeps all that it is given."""

    serves = False
    place = "memory"

    def __init__(self) -> None:
        self.opened: list[int] = []
        self.events: list[Event] = []
        self.told: list[Metrics] = []
        self.closed = 0

    def open(self, watch: Watched) -> None:
        self.opened.append(watch.step)

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def metrics(self, metrics: Metrics) -> None:
        self.told.append(metrics)

    def close(self) -> None:
        self.closed += 1


class Job:
    """A model served at an address of its own, which outlives the server."""

    def __init__(self, folder: Path) -> None:
        self.module = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
        self.address = f"unix:{folder}/s"
        self.scope: modscope_server.Scope | None = None

    def serve(self) -> None:
        self.scope = modscope_server.attach(self.module, address=self.address, token=TOKEN)

    def leave(self) -> None:
        assert self.scope is not None
        self.scope.close()

    def train(self, steps: int = 1) -> None:
        assert self.scope is not None
        for step in range(steps):
            self.module(torch.ones(1, 2))
            self.scope.step(loss=float(step))

    def connect(self) -> AbstractContextManager[Client]:
        return connect(self.address, token=TOKEN, timeout=TIMEOUT)


@pytest.fixture
def job(tmp_path: Path):  # type: ignore[no-untyped-def]
    made = Job(tmp_path)
    made.serve()
    yield made
    made.leave()


def test_events_and_what_the_loop_reports(job: Job) -> None:
    sink = Kept()
    feed = Feed(job.connect, sink, watch={"glob": "1"}, armed=lambda events: job.train(3))
    feed.run(count=3)
    assert [(event.path, event.step) for event in sink.events] == [("1", 0), ("1", 1), ("1", 2)]
    last = sink.told[-1]
    assert (last.model, last.connected, last.reconnects) == ("model", True, 0)
    assert (last.published, last.dropped, last.step) == (3, 0, 3)
    (loss,) = last.reported
    assert (loss.name, [(point.step, point.value) for point in loss.points]) == (
        "loss", [(1, 0.0), (2, 1.0), (3, 2.0)],
    )  # fmt: skip
    assert (sink.opened, sink.closed, feed.delivered) == ([0], 1, 3)


def test_a_server_that_comes_back_is_watched_again(job: Job) -> None:
    sink = Kept()
    why: list[ModscopeError] = []

    def armed(events: Subscription) -> None:
        job.train(2)
        if len(sink.opened) == 1:
            job.leave()

    def lost(error: ModscopeError, seconds: float) -> None:
        why.append(error)
        if len(why) == 3:
            job.serve()

    feed = Feed(job.connect, sink, watch={"glob": "1"}, armed=armed, lost=lost)
    feed.run(count=4)
    assert [event.step for event in sink.events] == [0, 1, 0, 1]
    assert all(isinstance(error, Unavailable) for error in why)
    assert (sink.opened, sink.closed) == ([0, 0], 1)
    states = [(told.connected, told.reconnects) for told in sink.told]
    assert states.index((False, 0)) < states.index((True, 1))
    assert (sink.told[-1].published, feed.published) == (4, 4)


def test_pauses_grow_to_a_bound_and_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def connect_() -> AbstractContextManager[Client]:
        raise Unavailable("away")

    def lost(error: ModscopeError, seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 9:
            feed.stop()

    feed = Feed(connect_, Kept(), watch={}, wait=True, lost=lost)
    monkeypatch.setattr(feed._stopping, "wait", lambda seconds: None)
    feed.run()
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0, 15.0]


def test_the_first_server_is_awaited_only_on_demand(job: Job) -> None:
    job.leave()
    sink = Kept()
    with pytest.raises(Unavailable):
        Feed(job.connect, sink, watch={}).run()
    assert (sink.opened, sink.closed) == ([], 1)
    patient = Feed(
        job.connect, Kept(), watch={"glob": "1"}, wait=True,
        lost=lambda error, seconds: job.serve(), armed=lambda events: job.train(),
    )  # fmt: skip
    patient.run(count=1)
    assert patient.delivered == 1


def test_what_no_other_try_would_mend(job: Job) -> None:
    sink = Kept()
    with pytest.raises(NotFound):
        Feed(job.connect, sink, watch={"glob": "nope"}, wait=True).run()
    assert sink.closed == 1


def test_stop_in_another_thread(job: Job) -> None:
    sink = Kept()
    feed = Feed(job.connect, sink, watch={"glob": "1"}, armed=lambda events: job.train(2))
    runner = threading.Thread(target=feed.run)
    runner.start()
    until(lambda: len(sink.events) == 2, "both events have come")
    feed.stop()
    runner.join(30)
    assert not runner.is_alive() and sink.closed == 1
    assert job.module[1]._forward_hooks == {}
    feed.stop()


@pytest.mark.parametrize("method", ["open", "emit", "metrics"])
def test_a_sink_that_fails_ends_it(method: str, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(given: object) -> None:
        raise OSError("disk full")

    sink = Kept()
    monkeypatch.setattr(sink, method, fail)
    with pytest.raises(OSError, match="disk full"):
        Feed(job.connect, sink, watch={"glob": "1"}, armed=lambda events: job.train()).run()
    assert sink.closed == 1
    assert job.module[1]._forward_hooks == {}
