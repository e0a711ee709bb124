"""From hooks to subscribers: bounded queues that never make the training thread wait.

A hook publishes drafts; a subscriber drains events. What does not fit is dropped and counted, and
sequence numbers show the gaps.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Literal, NamedTuple

from modscope_server.runtime.drafts import Draft, DraftValue, HookEvent, HookValue, event_of

__all__ = ["Batch", "Counters", "Draft", "DraftValue", "HookEvent", "HookValue", "Overflow", "Subscription"]

Overflow = Literal["drop_oldest", "drop_newest", "disconnect", "block"]

_LINGER = 0.02
"""Seconds for which a busy stream gathers a batch."""
_CROWD = 256
_CROWD_BYTES = 1 << 20
"""A batch is large enough at so many events, or bytes of tensors."""


class Batch(NamedTuple):
    """Events that a subscriber takes from its queue at one time."""

    drafts: deque[tuple[int, Draft]]
    """Sequence number and draft, oldest first. Who sends them takes them out, so that nothing is held."""
    dropped: int
    """Events that the subscription had lost by then."""


@dataclass(frozen=True)
class Counters:
    """What a subscription has seen."""

    published: int
    dropped: int
    queued: int


class Subscription:
    """One subscriber's queue.

    Args:
        id: identifies it on this server.
        overflow: what gives way when the queue is full.
        events: bound of the queue in events.
        size: bound of the captured tensors in the queue, in bytes.
    """

    def __init__(self, id: str, *, overflow: Overflow, events: int, size: int) -> None:
        self.id = id
        self.paths: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()
        self.step = 0
        self.ended: str | None = None
        """Why no more events come; None while they may."""
        self._overflow = overflow
        self._max_events = events
        self._max_size = size
        self._mutex = threading.Lock()
        self._queue: deque[tuple[int, Draft, int]] = deque()
        self._size = 0
        self._published = 0
        self._dropped = 0
        self._wake = threading.Event()
        self._crowd = min(_CROWD, max(1, events // 4))
        self._crowded = threading.Event()

    def publish(self, draft: Draft) -> None:
        """Queue a draft or count it as dropped. Called by hooks: holds a lock for a few instructions only."""
        size = 0
        for value in draft.values:
            if value.copy is not None:
                size += value.copy.nbytes
        with self._mutex:
            if self.ended is not None:
                return
            sequence = self._published
            self._published += 1
            full = len(self._queue) >= self._max_events or self._size + size > self._max_size
            if full and (self._overflow == "drop_newest" or size > self._max_size):
                self._dropped += 1
                return
            while self._queue and (
                len(self._queue) >= self._max_events or self._size + size > self._max_size
            ):
                self._size -= self._queue.popleft()[2]
                self._dropped += 1
            self._queue.append((sequence, draft, size))
            self._size += size
            is_crowded = len(self._queue) >= self._crowd or self._size >= _CROWD_BYTES
        if not self._wake.is_set():
            self._wake.set()
        if is_crowded and not self._crowded.is_set():
            self._crowded.set()

    def take(self, timeout: float, limit: int = 512) -> Batch:
        """Drafts that wait, oldest first, at most `limit`; none where `timeout` seconds bring none."""
        if not self._queue and self.ended is None:
            self._wake.wait(timeout)
        with self._mutex:
            taken = [self._queue.popleft() for _ in range(min(limit, len(self._queue)))]
            self._size -= sum(size for _, _, size in taken)
            dropped = self._dropped
            if self.ended is None:
                if not self._queue:
                    self._wake.clear()
                if len(self._queue) < self._crowd and self._size < _CROWD_BYTES:
                    self._crowded.clear()
        return Batch(deque((sequence, draft) for sequence, draft, _ in taken), dropped)

    def drain(self, timeout: float, limit: int = 512) -> list[HookEvent]:
        """What `take` gives, as events with their values in host memory."""
        drafts, dropped = self.take(timeout, limit)
        return [event_of(sequence, draft, dropped) for sequence, draft in drafts]

    def linger(self) -> bool:
        """Let a batch gather, for a moment at most: who wakes for each event stops training for each.

        Gives whether it is large. For a stream that has just sent something: one that was quiet sends its
        first event at once.
        """
        return self._crowded.wait(_LINGER)

    def counters(self) -> Counters:
        """What it has seen so far."""
        with self._mutex:
            return Counters(self._published, self._dropped, len(self._queue))

    @property
    def finished(self) -> bool:
        """Whether it has ended and everything was drained."""
        return self.ended is not None and not self._queue

    def end(self, reason: str) -> None:
        """Take no more events and wake the drain. Idempotent; what is queued can still be drained."""
        with self._mutex:
            self.ended = self.ended or reason
        self._wake.set()
        self._crowded.set()
