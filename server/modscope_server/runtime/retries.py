"""Request ids: a call that is sent again is carried out once, also where both arrive together."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from modscope_server.errors import BadRequest, NoSafePoint
from modscope_server.runtime.entries import Entry
from modscope_server.runtime.safepoint import Cancelled

__all__ = ["Attempt", "Retries"]

_LONGEST = 128
_LOOK_AGAIN = 0.05
_REMEMBERED = 10_000


class Patience(Protocol):
    """How long a caller waits."""

    @property
    def timeout(self) -> float | None: ...
    @property
    def cancelled(self) -> Cancelled | None: ...


class Attempt:
    """A call with a request id."""

    def __init__(self, kind: str, model: str) -> None:
        self.kind = kind
        self.model = model
        self.first: Entry | None = None
        """The operation of the first call that took effect; None while there is none."""
        self.ended = False
        """Whether that call is over, and all that can be known of its operation is."""


class Retries:
    """The calls with a request id that took effect, or are on their way."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Attempt] = OrderedDict()
        self._changed = threading.Condition()

    @contextmanager
    def once(self, request_id: str, kind: str, model: str, patience: Patience) -> Iterator[Attempt]:
        """The attempt, alone with this id: `first` is set where it is done; whoever does it sets it.

        Raises BadRequest for an id that is too long or was another call's, NoSafePoint where the first
        call with it does not end in time.
        """
        if len(request_id) > _LONGEST:
            raise BadRequest(
                f"a request id has at most {_LONGEST} characters, not {len(request_id)}",
                hint="a UUID will do",
                field="options.request_id",
            )
        attempt = self._begin(request_id, kind, model, patience) if request_id else Attempt(kind, model)
        if attempt.first is not None:
            yield attempt
            return
        try:
            yield attempt
        finally:
            if request_id:
                self._end(request_id, attempt)

    def earlier(self, request_id: str, kind: str, model: str) -> Entry | None:
        """The operation of the call with this id, where that was of this kind and is done."""
        with self._changed:
            known = self._known.get(request_id)
        return known.first if known is not None and (known.kind, known.model) == (kind, model) else None

    def _begin(self, request_id: str, kind: str, model: str, patience: Patience) -> Attempt:
        deadline = None if patience.timeout is None else time.monotonic() + patience.timeout
        with self._changed:
            while (known := self._known.get(request_id)) is not None:
                if (known.kind, known.model) != (kind, model):
                    raise BadRequest(
                        f"request id {request_id!r} was that of a {known.kind} of {known.model}",
                        hint="choose a new one for each new change",
                        field="options.request_id",
                    )
                if known.ended:
                    return known
                late = deadline is not None and time.monotonic() >= deadline
                if late or (patience.cancelled is not None and patience.cancelled.is_set()):
                    raise NoSafePoint(
                        f"the first call with request id {request_id!r} is still under way",
                        hint="call again with the same id and a longer --timeout",
                    )
                self._changed.wait(_LOOK_AGAIN)
            attempt = self._known[request_id] = Attempt(kind, model)
            return attempt

    def _end(self, request_id: str, attempt: Attempt) -> None:
        with self._changed:
            attempt.ended = True
            if attempt.first is None:
                self._known.pop(request_id, None)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
            self._changed.notify_all()
