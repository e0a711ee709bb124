"""Requests that wait for their point."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any, Literal

__all__ = ["Kind", "Place", "Request", "RequestQueue"]

Kind = Literal["read", "grad", "write"]
"""read: values; grad: gradients, which exist from backward to zero_grad; write: any change."""

Place = Literal["optimizer", "mark", "forward"]
"""Where the end of an iteration is noticed: after its last optimizer's step, in scope.step, or as late
as at the next training forward."""


class Request:
    """A function that waits for its point, and then what it gave.

    Args:
        fn: what to run.
        kind: which points will do.
        admits: of those of a running loop, which places will do; None for any.
    """

    def __init__(
        self, fn: Callable[[], Any], kind: Kind, admits: Callable[[Place | None], bool] | None = None
    ) -> None:
        self.fn = fn
        self.kind = kind
        self.admits = admits or (lambda place: True)
        self.done = threading.Event()
        self.answer: Any = None
        self.error: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """End it with an error, where it has not ended yet."""
        if not self.done.is_set():
            self.error = error
            self.done.set()


class RequestQueue:
    """Requests in the order of their coming.

    Args:
        changed: called after each change, on the thread that made it.
    """

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._mutex = threading.Lock()
        self._waiting: list[Request] = []
        self._changed = changed

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: Request) -> None:
        """Let a request wait."""
        with self._mutex:
            self._waiting = [*self._waiting, request]
        self._changed()

    def ready(
        self, kinds: Collection[Kind], place: Place | None = None, *, anywhere: bool = True
    ) -> list[Request]:
        """The requests of these kinds; they wait on. Without `anywhere`, those that admit the place."""
        ready = [request for request in self._waiting if request.kind in kinds]
        return ready if anywhere else [request for request in ready if request.admits(place)]

    def withdraw(self, request: Request) -> bool:
        """Take a request back; False where it has been taken already."""
        with self._mutex:
            waiting = [other for other in self._waiting if other is not request]
            found = len(waiting) < len(self._waiting)
            self._waiting = waiting
        if found:
            self._changed()
        return found
