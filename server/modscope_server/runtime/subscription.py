"""A subscriber's side of the bus: its queue, its reader, and its end."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from modscope_server.runtime.backlog import Backlog
from modscope_server.runtime.drafts import HookEvent, event_of
from modscope_server.runtime.queues import Queues
from modscope_server.runtime.runs import Block, Run

__all__ = ["Batch", "Counters", "Overflow", "Reader", "Subscription"]

Overflow = Literal["drop_oldest", "drop_newest", "disconnect", "block"]

_CROWD = 2048
_CROWD_BYTES = 1 << 20
"""A batch is large enough at so many events, or bytes of tensors."""
_QUIET = 1.0
"""Seconds without an event after which a stream is quiet."""
_SHARE = 1 / 8
"""Of the time for which busy streams gather a batch: how late what is dealt out may be."""
_BATCH = _CROWD
"""Most events of a batch."""


class Batch(NamedTuple):
    """Events that a subscriber takes from its queue at one time."""

    runs: deque[Run]
    """Oldest first. Who sends them takes them out, so that nothing is held."""
    dropped: int
    """Events that the subscription had lost by then."""


@dataclass(frozen=True)
class Counters:
    """What a subscription has seen."""

    published: int
    dropped: int
    queued: int
    skipped: int = 0
    """Firings that its rate has left out."""
    blocked_seconds: float = 0.0
    """Seconds for which hooks have waited for it."""


class _Source(Protocol):
    """Where a subscription's events come from."""

    def await_events(self, enough: int) -> int:
        """Somebody waits for so many. Gives how many have gathered; under the lock."""

    def await_no_more(self, enough: int) -> None:
        """Somebody who has waited for so many does so no more; under the lock."""

    def spread(self) -> None:
        """Deal out what has gathered; under the lock."""

    def deal(self, pause: float) -> None:
        """The same, where it was not asked for within so many seconds."""


class _Nowhere:
    def await_events(self, enough: int) -> int:
        return 0

    def await_no_more(self, enough: int) -> None: ...
    def spread(self) -> None: ...
    def deal(self, pause: float) -> None: ...


class Subscription:
    """One subscriber's queue.

    Args:
        id: identifies it on this server.
        overflow: what gives way when the queue is full.
        events: bound of the queue in events.
        size: bound of the captured tensors in the queue, in bytes.
        queues: what it shares with the server's others.
        block: overflow "block": seconds for which hooks wait for room at most, in each step.
        keep: seconds for which it may wait for another reader; 0 where it ends with its first.
    """

    def __init__(
        self,
        id: str,
        *,
        overflow: Overflow,
        events: int,
        size: int,
        queues: Queues | None = None,
        block: float = 0.0,
        keep: float = 0.0,
    ) -> None:
        self.id = id
        self.paths: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()
        self.step = 0
        self.keep = keep
        self.overflow = overflow
        self.ended: str | None = None
        """Why no more events come; None while they may."""
        self.has_overflowed = False
        """Whether it has ended because its queue was full."""
        self.skipped: Callable[[], int] = int
        """Tells how many firings its rate has left out."""
        self.on_overflow: Callable[[], object] = _nothing
        """Called, on a thread of its own, where it has ended because its queue was full."""
        self.source: _Source = _Nowhere()
        """The fan that it is in."""
        self.queues = queues or Queues(1 << 62)
        self.backlog = Backlog(events=events, size=size, budget=self.queues.budget, keeps=keep > 0)
        self.crowd = min(_CROWD, max(1, events // 4))
        self.crowd_bytes = min(_CROWD_BYTES, max(1, size // 4))
        self.reader: Reader | None = None
        self.is_abandoned = False
        """Whether it had a reader and has none."""
        self._room = threading.Condition(self.queues.mutex)
        self._block = block
        self._blocked_in: int | None = None
        self._block_left = 0.0
        self._blocked_seconds = 0.0
        self.queues.join(self)

    @property
    def bytes(self) -> int:
        """Bytes of tensors that it holds on to."""
        return self.backlog.bytes

    def accept(self, blocks: Sequence[Block]) -> None:
        """Queue drafts; under the lock."""
        for block in blocks:
            if self.ended is not None:
                return
            if self.overflow == "drop_newest":
                self.backlog.refuse(self.backlog.add_some(block))
            elif self.overflow != "disconnect":
                self.backlog.add(block)
            elif self.backlog.add_some(block):
                self.backlog.refuse(1)
                self._overflow()
        self.ring()

    def ring(self) -> None:
        """Wake the reader where there is enough for it; under the lock."""
        reader, backlog = self.reader, self.backlog
        if reader is not None and (
            backlog.waiting >= reader.enough
            or (backlog.waiting_bytes >= self.crowd_bytes and reader.enough < math.inf)
            or self.ended is not None
        ):
            reader.wake()

    def await_room(self, step: int, size: int) -> None:
        """Wait until an event fits, for as long as this step may be held up yet; lets go of the lock."""
        if self._blocked_in != step:
            self._blocked_in, self._block_left = step, self._block
        while self._block_left > 0 and not self._admits(size):
            begun = time.monotonic()
            self._room.wait(self._block_left)
            waited = time.monotonic() - begun
            self._block_left -= waited
            self._blocked_seconds += waited

    def give_way(self) -> None:
        """Let go of the oldest event; where it ends rather than lose one, it ends. Under the lock."""
        if self.overflow == "disconnect":
            self._overflow()
        self.backlog.give_way()

    def tell_of_overflow(self) -> None:
        """Have somebody take the hooks away, once. Not in the hook that calls this: torch walks over them."""
        act, self.on_overflow = self.on_overflow, _nothing
        if act is not _nothing:
            # As the interpreter exits no thread can be started, and no hook matters any more.
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=act, name="modscope-overflow", daemon=True).start()

    def take(self, reader: Reader, limit: int, pause: float = 0.0) -> Batch:
        """What a reader takes; nothing where another one has come.

        Nothing is dealt out for it where somebody did so less than `pause` seconds ago: where many read, each
        would find a few events dealt out by each of the others.
        """
        with self.queues.mutex:
            if reader is not self.reader or reader.is_gone:
                return Batch(deque(), 0)
            self.source.deal(pause)
            taken = self.backlog.take(limit, _CROWD_BYTES)
            self._room.notify_all()
            return Batch(taken, self.backlog.dropped)

    def drain(self, timeout: float, limit: int = _BATCH) -> list[HookEvent]:
        """Events with their values in host memory, for a reader in this process: to it nothing is packed."""
        reader = self.reader or Reader(self)
        runs, dropped = reader.take(timeout, limit)
        return [event_of(number, item, dropped) for run in runs for number, item in run.numbered()]

    def counters(self) -> Counters:
        """What it has seen so far."""
        with self.queues.mutex:
            self.source.spread()
            log = self.backlog
            return Counters(log.published, log.dropped, log.waiting, self.skipped(), self._blocked_seconds)

    @property
    def finished(self) -> bool:
        """Whether it has ended and everything was drained."""
        return self.ended is not None and not self.backlog.waiting

    def end(self, reason: str) -> None:
        """Take no more events and wake the reader. Idempotent; what is queued can still be drained."""
        with self.queues.mutex:
            self.source.spread()
            self._end(reason)

    def close(self) -> None:
        """Let go of all that it holds: nobody will read it. Idempotent."""
        self.end("closed")
        with self.queues.mutex:
            self.backlog.clear()
        self.queues.leave(self)

    def hand_to(self, reader: Reader) -> None:
        """Give it a reader; one that it has gets no more."""
        with self.queues.mutex:
            before, self.reader = self.reader, reader
            self.is_abandoned = False
            if before is not None:
                before.wake()

    def leave(self, reader: Reader) -> bool:
        """The reader goes. Gives whether nobody reads now, rather than another one."""
        with self.queues.mutex:
            if self.reader is reader:
                self.reader = None
                self.is_abandoned = True
                self._room.notify_all()
            return self.reader is None

    def rewind(self, after: int | None) -> int:
        """Give what came after that sequence number once more. Gives how many of these events are lost.

        None gives all that is held.
        """
        with self.queues.mutex:
            return self.backlog.rewind(self.backlog.oldest - 1 if after is None else after)

    def _admits(self, size: int) -> bool:
        """Whether a hook need not wait: there is room, or nobody who will make some."""
        backlog = self.backlog
        is_hopeless = self.ended is not None or self.reader is None or size > backlog.size
        return is_hopeless or backlog.room(size) > 0

    def _overflow(self) -> None:
        self.has_overflowed = True
        self._end("its queue was full")

    def _end(self, reason: str) -> None:
        self.ended = self.ended or reason
        self._room.notify_all()
        self.ring()


class Reader:
    """Who takes a subscription's events: one at a time, the one that has come last.

    One that is quiet wakes for the first event; one that has taken some a moment ago lets a batch gather.
    """

    def __init__(self, subscription: Subscription) -> None:
        self.enough = math.inf
        """So many events are worth waking it for."""
        self._subscription = subscription
        self._bell = threading.Event()
        self._last = -math.inf
        """When it has taken some, by the monotonic clock."""
        self.is_gone = False
        """Whether it wants no more."""
        subscription.hand_to(self)

    @property
    def is_replaced(self) -> bool:
        """Whether another reader has come."""
        return self._subscription.reader is not self

    @property
    def finished(self) -> bool:
        """Whether nothing more will come to it."""
        return self.is_gone or self.is_replaced or self._subscription.finished

    def take(self, timeout: float, limit: int = _BATCH) -> Batch:
        """Drafts that wait, oldest first, at most `limit`; none where `timeout` seconds bring none."""
        subscription = self._subscription
        now = time.monotonic()
        deadline = now + timeout
        while True:
            if now - self._last < _QUIET:
                self._wait(subscription.crowd, min(deadline - now, subscription.queues.pace))
            else:
                self._wait(1, deadline - now)
            pause = subscription.queues.pace * _SHARE if time.monotonic() < deadline else 0.0
            batch = subscription.take(self, limit, pause)
            now = time.monotonic()
            if batch.runs:
                self._last = now
            if batch.runs or now >= deadline or self.finished:
                return batch

    def give_up(self) -> None:
        """Take nothing more, and wake whoever waits in `take`: where it sent to is gone."""
        with self._subscription.queues.mutex:
            self.is_gone = True
            self.wake()

    def wake(self) -> None:
        """There is enough for it; under the lock."""
        self.enough = math.inf
        self._bell.set()

    def _wait(self, enough: int, timeout: float) -> None:
        """Wait until so many events are there, the subscription has ended, or the time is over."""
        subscription = self._subscription
        mutex, source = subscription.queues.mutex, subscription.source
        with mutex:
            self._bell.clear()
            self.enough = enough
            # First say what is waited for, then look: a hook appends first, then looks what is waited for.
            if source.await_events(enough) + subscription.backlog.waiting >= enough:
                source.spread()
            subscription.ring()
            if self.is_gone or self.is_replaced:
                self.wake()
        if timeout <= 0 or not self._bell.wait(timeout):
            with mutex:
                self.enough = math.inf
                source.await_no_more(enough)


def _nothing() -> None:
    """Nobody wants to know."""
