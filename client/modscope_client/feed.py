"""Feeding a sink from a watch, for as long as it is wanted: a server or a connection that goes is awaited."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import TYPE_CHECKING, Any

from modscope_client.errors import (
    DeadlineExceeded,
    ModscopeError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from modscope_client.sinks import Metrics, Sink

if TYPE_CHECKING:
    from modscope_client.client import Client
    from modscope_client.handles import RemoteModel
    from modscope_client.subscription import Subscription
    from modscope_client.types import Metric

__all__ = ["Feed"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 15.0
"""Seconds between two tries to reach a server that is away; each pause is twice the one before."""

_KEEP_SECONDS = 30.0
"""For how long a watch goes on without its connection; longer than several tries to have it back."""

_METRICS_SECONDS = 5.0
"""How often the sink is told what is known beside the events."""

_PASSING = (Unavailable, DeadlineExceeded, ResourceExhausted)
"""What another try may mend."""


class Feed:
    """Events from a watch into a sink.

        Feed(connect, TensorBoard("runs/1"), watch={"glob": "*"}).run(count=1000)

    Where the connection breaks while the server lives, the watch is resumed, and only what the server has
    let go of meanwhile is lost, and counted. Where the server goes, the watch is armed anew as soon as one
    answers there again, and the sink is opened anew. `run` closes the sink.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractContextManager[Client]],
        sink: Sink,
        *,
        model: str | None = None,
        watch: Mapping[str, Any],
        wait: bool = False,
        armed: Callable[[Subscription], None] = lambda events: None,
        lost: Callable[[ModscopeError, float], None] = lambda error, seconds: None,
        resumed: Callable[[Subscription], None] = lambda events: None,
        prepared: Callable[[Subscription], None] = lambda events: None,
    ) -> None:
        """Prepare it.

        connect: called for each connection, so that it finds the server anew. model: its name, or None
        for the only one. watch: arguments of RemoteModel.watch. wait: also wait for the first server.
        armed: told of each watch that begins; lost: why a connection ended, and in how many seconds
        another is tried; resumed: told of a watch that goes on with another connection; prepared: given
        each of both kinds before it is entered.
        """
        self._connect, self._sink, self._model = connect, sink, model
        self._watch = {"keep": _KEEP_SECONDS, **watch}
        self._wait, self._armed, self._lost = wait, armed, lost
        self._resumed, self._prepared = resumed, prepared
        self.published = 0
        """Events published to the watch, the dropped ones included."""
        self.dropped = 0
        """Events lost."""
        self.delivered = 0
        """Events that the sink has taken."""
        self._before = (0, 0)
        self._step = 0
        self._watches = self._connections = 0
        self._broken: str | None = None
        """The watch to resume, which has lost its connection."""
        self._seq: int | None = None
        """The last event that has come of it."""
        self._name = model or ""
        self._reported: tuple[Metric, ...] = ()
        self._failure: BaseException | None = None
        self._stopping = threading.Event()
        self._events: Subscription | None = None
        self._one_at_a_time = threading.RLock()

    def stop(self) -> None:
        """Let `run` return after what has come. Idempotent, and safe in any thread."""
        self._stopping.set()
        with self._one_at_a_time:
            events = self._events
        if events is not None:
            try:
                events.stop()
            except ModscopeError:
                events.close()

    def run(self, count: int | None = None) -> None:
        """Feed the sink until `stop`, or until it has taken `count` events; then close it.

        Raises what the first watch raises where it cannot be armed (unless `wait`), what no other try
        would mend, and what the sink raises.
        """
        pause = _FIRST_PAUSE
        try:
            while not self._stopping.is_set():
                connections = self._connections
                try:
                    self._one_watch(count)
                    break
                except _PASSING as error:
                    is_new = self._connections > connections
                    if self._failure is not None or not (self._watches or self._wait):
                        raise
                    if is_new and isinstance(error, ResourceExhausted):
                        raise  # what overflow "disconnect" has asked for
                    pause = _FIRST_PAUSE if is_new else min(2 * pause, _LONGEST_PAUSE)
                    self._lost(error, pause)
                    self._tell(connected=False)
                self._stopping.wait(pause)
            if self._failure is not None:
                raise self._failure
        finally:
            self._sink.close()

    def _one_watch(self, count: int | None) -> None:
        """Feed from one connection. Returns where no more is wanted; raises where the connection ends."""
        with self._connect() as client, ExitStack() as stack:
            events = self._enter(client.model(self._model), stack)
            with self._one_at_a_time:
                self._events = events
            if self._stopping.is_set():
                return
            poll = _Poll(lambda: self._ask(client, events))
            try:
                self._pass_on(events, count)
                self._ask(client, events)
            finally:
                poll.end()
                with self._one_at_a_time:
                    self._events = None
                    self._count(events)

    def _enter(self, model: RemoteModel, stack: ExitStack) -> Subscription:
        """The watch whose connection has broken, where the server still has it; else a new one."""
        if self._broken is not None:
            with suppress(NotFound):
                again = model.watch(resume=self._broken, resume_after=self._seq)
                self._prepared(again)
                events = stack.enter_context(again)
                self._connections += 1
                self._resumed(events)
                return events
        self._broken = self._seq = None
        watch = model.watch(**self._watch)
        self._prepared(watch)
        events = stack.enter_context(watch)
        with self._one_at_a_time:
            self._name = model.name
            self._connections += 1
            self._watches += 1
            self._before = (self.published, self.dropped)
            self._step = events.step
            self._reported = ()
            self._sink.open(events)
        if not self._stopping.is_set():
            self._armed(events)
        return events

    def _pass_on(self, events: Subscription, count: int | None) -> None:
        """Give the sink what comes. Raises where the connection ends."""
        try:
            for event in events:
                with self._one_at_a_time:
                    self._sink.emit(event)
                self._seq = event.seq
                self.delivered += 1
                if self.delivered == count:
                    return
        except ModscopeError as error:
            is_over = error.reason == "CLOSED" or isinstance(error, ResourceExhausted)
            self._broken = None if is_over else events.watch_id
            raise

    def _ask(self, client: Client, events: Subscription) -> None:
        """Tell the sink what is known beside the events; the loop's own metrics where they can be had."""
        status = None
        with suppress(ModscopeError):
            status = client.run.status(history=-1)
        with self._one_at_a_time:
            if self._events is not events or self._failure is not None:
                return
            self._count(events)
            if status is not None:
                self._reported = status.metrics
                self._step = max(self._step, status.step)
            try:
                self._tell(connected=True)
            except BaseException as error:
                self._failure = error
        if self._failure is not None:
            self.stop()

    def _count(self, events: Subscription) -> None:
        counters = events.counters
        self.published = max(self.published, self._before[0] + counters.published)
        self.dropped = max(self.dropped, self._before[1] + counters.dropped)
        self._step = max(self._step, counters.step)

    def _tell(self, *, connected: bool) -> None:
        with self._one_at_a_time:
            if not self._watches:
                return
            self._sink.metrics(
                Metrics(
                    model=self._name,
                    connected=connected,
                    reconnects=self._watches - 1,
                    published=self.published,
                    dropped=self.dropped,
                    step=self._step,
                    reported=self._reported,
                )
            )


class _Poll:
    """A thread that calls a function at once, and then every few seconds, until it is ended."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="modscope-feed", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._ask()
            self._ended.wait(_METRICS_SECONDS)

    def end(self) -> None:
        """Let the call that is under way end, and make no more."""
        self._ended.set()
        self._thread.join()
