"""How many calls are open: bounds streams, and lets a closing server wait for what is under way."""

from __future__ import annotations

import threading

from modscope_server.errors import Closed, LimitExceeded

__all__ = ["SPARE_WORKERS", "Gate"]

SPARE_WORKERS = 8
"""Worker threads beyond the most streams: what unary calls can count on."""


class Gate:
    """Counts the calls that are open."""

    def __init__(self, streams: int) -> None:
        self._limit = streams
        self._streams = 0
        self._open = 0
        self._closed = False
        self._changed = threading.Condition(threading.Lock())

    def enter(self, *, stream: bool) -> None:
        """Count a call in. Raises LimitExceeded for a stream too many, Closed after `close`."""
        with self._changed:
            if self._closed:
                raise Closed
            if stream:
                if self._streams >= self._limit:
                    raise LimitExceeded(
                        f"{self._limit} streams are open, as many as limits.streams admits",
                        hint="end a watch or a transfer, or raise limits.streams in attach",
                    )
                self._streams += 1
            self._open += 1

    def leave(self, *, stream: bool) -> None:
        """Count a call out that `enter` let in."""
        with self._changed:
            self._open -= 1
            self._streams -= stream
            if self._closed:
                self._changed.notify_all()

    def close(self, timeout: float) -> bool:
        """Let nobody in any more; wait so many seconds for those inside. True when all have left."""
        with self._changed:
            self._closed = True
            return self._changed.wait_for(lambda: self._open == 0, timeout)
