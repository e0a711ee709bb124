"""Watching a model: events as they come, for as long as a `with` lasts."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

from modscope.v1 import event_pb2, hook_service_pb2
from modscope.wire import Frame
from modscope_client.calls import Calls, Stream
from modscope_client.channel import EVENTS_AHEAD, TENSORS_AHEAD
from modscope_client.convert import hook_info
from modscope_client.errors import Internal, ModscopeError, ResourceExhausted, Unavailable
from modscope_client.memory import Memory
from modscope_client.rpcs import STOP_WATCH, WATCH
from modscope_client.transfer import Events
from modscope_client.types import Event, HookInfo, WatchCounters

__all__ = ["Progression", "Subscription", "Watching", "ahead_of", "is_kept"]

_STOPPED = "stopped"


def _ignore(message: object) -> None:
    """Nobody listens in."""


def _nothing() -> None:
    """Nobody waits for it."""


def is_kept(request: hook_service_pb2.WatchRequest) -> bool:
    """Whether a watch goes on without its reader."""
    return bool(request.keep_seconds or request.resume)


def ahead_of(request: hook_service_pb2.WatchRequest) -> int:
    """Bytes of a watch that may be on their way, beyond what is read."""
    is_whole = request.payload == event_pb2.PAYLOAD_TENSOR and not request.index
    return TENSORS_AHEAD if is_whole else EVENTS_AHEAD


class Progression:
    """What the messages of a watch make, as they come; the same for the sync and the async client.

    Args:
        created: the first of them.
        memory: what the arrays of large tensors are made of.
    """

    def __init__(self, created: hook_service_pb2.WatchCreated, memory: Memory) -> None:
        self.watch_id = created.watch_id
        self.paths = tuple(created.paths)
        self.step = created.step
        self.notes = tuple(created.notes)
        self.counters = WatchCounters(published=0, dropped=0, queued=0, step=created.step)
        self.ready: deque[Event] = deque()
        """Events that have come and not been given out."""
        self.hooks: dict[tuple[str, str], HookInfo] = {}
        """The latest of each hook, by path and kind, in the order in which they were first told of."""
        self.ended: str | None = None
        """Why the watch has ended; None while it lasts."""
        self._asked_to_end = False
        self._events = Events(memory)

    @classmethod
    def of(cls, first: Frame[hook_service_pb2.WatchResponse], memory: Memory) -> Progression:
        """Begin with the first message. Raises Internal where it does not say that the watch is armed."""
        if not first.header.HasField("created"):
            raise Internal("the first message of a watch did not say that it is armed")
        return cls(first.header.created, memory)

    def take(self, message: Frame[hook_service_pb2.WatchResponse]) -> list[HookInfo]:
        """One message after the first. Gives the hooks of which it tells something new."""
        head = message.header
        events = list(self._events.take(message))
        self.ready += events
        if events:
            last = events[-1]
            self._tell(last.seq + 1, last.dropped, last.step)
        if head.HasField("heartbeat"):
            beat = head.heartbeat
            self._tell(beat.published, beat.dropped, beat.step)
            self.counters = replace(
                self.counters,
                queued=beat.queued,
                skipped=beat.skipped,
                blocked_seconds=beat.blocked_seconds,
            )
        if head.HasField("ended"):
            self._tell(head.ended.published, head.ended.dropped, self.counters.step)
            self.ended = head.ended.reason or _STOPPED
        return [told for hook in head.hooks if self._is_news(told := hook_info(hook))]

    def stopped(self, last: hook_service_pb2.StopWatchResponse) -> None:
        """The server has ended it as it was asked to; its last counters."""
        self._asked_to_end = True
        self._tell(last.published, last.dropped, self.counters.step)

    def end(self) -> Exception | None:
        """What to raise where no event will come any more: nothing where that was asked for."""
        if self._asked_to_end or self.ended == _STOPPED:
            return None
        return Unavailable(
            f"the watch has ended: {self.ended}", reason="CLOSED", hint="see `modscope ps` for the servers"
        )

    def _tell(self, published: int, dropped: int, step: int) -> None:
        told = self.counters
        self.counters = WatchCounters(
            max(told.published, published),
            max(told.dropped, dropped),
            told.queued,
            max(told.step, step),
            told.skipped,
            told.blocked_seconds,
        )

    def _is_news(self, hook: HookInfo) -> bool:
        before = self.hooks.get((hook.path, hook.kind))
        self.hooks[hook.path, hook.kind] = hook
        # A remedy counts what it costs, and does so all the time.
        told = before and (before.state, before.reason, bool(before.remedy))
        return told != (hook.state, hook.reason, bool(hook.remedy))


class Watching:
    """What a watch tells of itself once it is armed; the same for the sync and the async client."""

    _progression: Progression | None = None
    noticed: Callable[[HookInfo], object] = staticmethod(_ignore)
    """Called with each hook whose state has changed, as it is now; set it before entering."""
    settled: Callable[[], object] = staticmethod(_nothing)
    """Called after the last `noticed` of those that one message brings."""

    @property
    def watch_id(self) -> str:
        """Identifies the watch on its server."""
        return self._armed().watch_id

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the modules that it watches."""
        return self._armed().paths

    @property
    def step(self) -> int:
        """step_count at which it was armed."""
        return self._armed().step

    @property
    def notes(self) -> tuple[str, ...]:
        """What the watcher should know, such as modules whose hooks cannot fire."""
        return self._armed().notes

    @property
    def dropped(self) -> int:
        """Events that this watch has lost so far."""
        return self._armed().counters.dropped

    @property
    def counters(self) -> WatchCounters:
        """Its counters, as the server told them last."""
        return self._armed().counters

    @property
    def states(self) -> tuple[HookInfo, ...]:
        """Its hooks, each as the server told of it last; empty until it has told of one."""
        return tuple(self._armed().hooks.values())

    def _take(self, message: Frame[hook_service_pb2.WatchResponse]) -> None:
        news = self._armed().take(message)
        for hook in news:
            self.noticed(hook)
        if news:
            self.settled()

    def _armed(self) -> Progression:
        if self._progression is None:
            raise RuntimeError("the watch is not armed: enter it with `with`, or `async with`")
        return self._progression


class Subscription(Watching):
    """A watch: armed when its `with` is entered, its hooks gone when it is left.

    Iterating gives each Event as it comes; it ends after `stop`, and raises Unavailable where the server
    closes or the connection breaks, ResourceExhausted where overflow "disconnect" has ended it. Iterate in
    one thread; `stop` may be called in any.
    """

    def __init__(self, calls: Calls, request: hook_service_pb2.WatchRequest) -> None:
        self._calls = calls
        self.request = request
        """What is asked for."""
        self.tap: Callable[[Frame[hook_service_pb2.WatchResponse]], object] = _ignore
        """Called with each message as it comes, before its events are given out: a recorder's `take`."""
        self._own: Calls | None = None
        self._stream: Stream[Frame[hook_service_pb2.WatchResponse]] | None = None
        self._left = False
        self._broken = False

    def __enter__(self) -> Subscription:
        """Arm it: from now on every event is delivered or counted as dropped.

        Raises NotFound where nothing matches or the watch to resume is gone, DeadlineExceeded where the
        model comes to no step boundary.
        """
        if self._own is not None:
            raise RuntimeError("a watch is entered once: call watch() anew")
        self._own = Calls(self._calls.endpoint, self._calls.timeout, ahead=ahead_of(self.request))
        try:
            self._stream = self._own.watch(WATCH, self.request)
            self._progression = Progression.of(self._stream.first, self._own.memory)
            self.tap(self._stream.first)
        except BaseException:
            self._own.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Subscription:
        return self

    def __next__(self) -> Event:
        progression = self._armed()
        while not progression.ready:
            if self._left or self._stream is None:
                raise StopIteration
            if progression.ended is not None:
                raise progression.end() or StopIteration
            try:
                message = self._stream.read()
            except ModscopeError as error:
                self._broken = not isinstance(error, ResourceExhausted)
                if self._left:
                    raise StopIteration from None
                raise
            if message is None:
                progression.ended = progression.ended or "the server ended the stream"
            else:
                self.tap(message)
                self._take(message)
        return progression.ready.popleft()

    def stop(self) -> None:
        """End the watch: its hooks are gone when this returns, and iterating ends after what has come.

        Idempotent, and safe in any thread.
        """
        progression = self._armed()
        if progression.ended is None and not self._left:
            request = hook_service_pb2.StopWatchRequest(watch_id=progression.watch_id)
            progression.stopped(self._calls.unary(STOP_WATCH, request))

    def leave(self) -> None:
        """End its connection alone: the watch goes on for its seconds of `keep`. Idempotent."""
        self._close(stop=False)

    def close(self) -> None:
        """End the watch and its connection. Idempotent; never fails.

        Where the connection has broken, a watch with `keep` is left as it is, to be resumed.
        """
        self._close(stop=not (self._broken and is_kept(self.request)))

    def _close(self, *, stop: bool) -> None:
        if self._own is None or self._left:
            return
        try:
            if self._progression is not None:
                with contextlib.suppress(ModscopeError):
                    if stop:
                        self.stop()
                self._progression.ready.clear()
        finally:
            self._left = True
            self._own.close()
