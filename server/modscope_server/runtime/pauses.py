"""The wish to hold the run, of which there is one at most, and the lease that it belongs to.

Threads of the server make it and end it, the training thread finds it at its boundaries. A wish that
goes on after some steps is a new one, so that whoever is held for the old one sees that this is over.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from modscope_server.errors import Closed, UnknownLease
from modscope_server.runtime.leases import Leases
from modscope_server.runtime.run_status import PauseState
from modscope_server.runtime.safepoint import Cancelled

__all__ = ["Grip", "Pause", "Pauses"]

_LOG = logging.getLogger("modscope_server")
_SECONDS = 30.0
_LOOK = 0.25
"""Seconds after which one that waits looks again by itself."""


class Grip:
    """What a lease holds a pause by; goes from a pause to the one that follows its steps."""

    def __init__(self, *, own: bool) -> None:
        self.lease_id = ""
        self.own = own
        """Whether the training thread itself has asked: it could not renew the lease while it is held."""


@dataclass(slots=True, eq=False)
class Pause:
    """A wish to hold the run; with `since` it is held."""

    grip: Grip
    reason: str
    at: int = 0
    """The step from which on it is held; 0 means the next boundary."""
    break_id: str = ""
    since: float | None = None
    late: int | None = None
    """The step at which it would have been held, had that been a point for writes."""


class Pauses:
    """Holds the present wish, or none.

    Args:
        changed: called with the lock held when a wish has come or gone.
    """

    def __init__(self, leases: Leases, changed: Callable[[], None]) -> None:
        self._leases = leases
        self._told = changed
        self._changed = threading.Condition(threading.Lock())
        self.now: Pause | None = None
        self.last_end = ""
        """Why the last one ended; empty where none has."""
        self.closed = False

    def ask(self, seconds: float, who: str, step: int, *, own: bool) -> None:
        """Wish for a pause at the next boundary; one that is there gets this lease. 0 seconds mean 30.

        Raises BadRequest, Closed.
        """
        with self._changed:
            grip = self._take(seconds or _SECONDS, who, own=own)
            pause = self.now
            if pause is None:
                self.now = Pause(grip, "pause")
            else:
                self._leases.forget(pause.grip.lease_id)
                pause.grip = grip
                if pause.at > step:
                    pause.at, pause.reason = 0, "pause"
            self._told()

    def ask_at(self, step: Callable[[], int], seconds: float, who: str, *, own: bool) -> None:
        """Wish for a pause at a step, which is asked for when this is sure to come. Ends one that is held.

        The lease is that of the present pause, or a new one where there is none or `seconds` are given.
        Raises BadRequest, Closed.
        """
        with self._changed:
            pause = self.now
            if pause is None or seconds:
                grip = self._take(seconds or _SECONDS, who, own=own)
                if pause is not None:
                    self._leases.forget(pause.grip.lease_id)
            else:
                grip = pause.grip
                self.renew(pause)
            self.now = Pause(grip, "step", at=step())
            self._told()

    def hit(self, reason: str, break_id: str, seconds: float, who: str) -> None:
        """A break wants a pause now: by the lease that is there, for its seconds at least, or a new one."""
        with self._changed:
            if not self.closed:
                kept = self.now is not None and self.renew(self.now, seconds)
                grip = self.now.grip if self.now and kept else self._take(seconds, who, own=False)
                self.now = Pause(grip, reason, break_id=break_id)

    def hold(self, pause: Pause) -> bool:
        """The training thread is held for this one; False where it is over. Its lease counts from here."""
        with self._changed:
            if self.now is pause:
                pause.since = time.time()
                self.renew(pause)
                self._changed.notify_all()
        return self.now is pause

    def goes_on(self, pause: Pause) -> bool:
        """Whether this one is over. Looks at its lease, too, since no thread may be there to do so."""
        self._leases.expire()
        return self.now is not pause

    def end(self, pause: Pause | None, why: str) -> bool:
        """This one is over; False where it was before."""
        return pause is not None and self._end(lambda now: now is pause, why)

    def renew(self, pause: Pause, seconds: float = 0.0) -> bool:
        """Let its lease hold from now on, for other seconds where they are more; False where it has ended."""
        with contextlib.suppress(UnknownLease):
            lease = self._leases.get(pause.grip.lease_id)
            self._leases.renew(lease.id, max(lease.seconds, seconds))
            return True
        return False

    def state(self) -> PauseState | None:
        """The present one, for whoever asks."""
        self._leases.expire()
        with self._changed, contextlib.suppress(UnknownLease):
            pause = self.now
            if pause is not None:
                lease = self._leases.get(pause.grip.lease_id)
                return PauseState(lease, pause.reason, pause.break_id, pause.since)
        return None

    @property
    def held(self) -> bool:
        """Whether the run is held."""
        pause = self.now
        return pause is not None and pause.since is not None

    def wait(self, settled: Callable[[], bool], seconds: float, cancelled: Cancelled) -> None:
        """Wait until `settled`, at most so long. Raises Closed."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not settled() and not cancelled.is_set():
                self.check_open()
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(min(left, _LOOK))

    def wake(self) -> None:
        """Have those that wait look again."""
        with self._changed:
            self._changed.notify_all()

    def tell(self) -> None:
        """Have `changed` called, because of something else."""
        with self._changed:
            self._told()

    def close(self, why: str) -> None:
        """End the present one, and take no more. Idempotent."""
        with self._changed:
            self.closed = True
        self.end(self.now, why)
        self.wake()

    def check_open(self) -> None:
        """Raises Closed after `close`."""
        if self.closed:
            raise Closed

    def _take(self, seconds: float, who: str, *, own: bool) -> Grip:
        self.check_open()
        grip = Grip(own=own)
        lost = partial(self._lost, grip)
        lease = self._leases.take(seconds, holds="pause", who=who, on_end=lost, renewable=not own)
        grip.lease_id = lease.id
        return grip

    def _end(self, meant: Callable[[Pause], bool], why: str) -> bool:
        """The present one is over, where it is the one that is meant; False where it is not."""
        with self._changed:
            pause = self.now
            if pause is None or not meant(pause):
                return False
            self.now = None
            self._leases.forget(pause.grip.lease_id)
            early = "" if pause.since is not None else "it was not held yet when the wish for it ended: "
            self.last_end = early + why
            self._told()
            self._changed.notify_all()
        _LOG.info("the run goes on: %s", self.last_end)
        return True

    def _lost(self, grip: Grip, why: str) -> None:
        """A lease has ended. What it holds by now may be another pause, or nothing."""
        self._end(lambda now: now.grip is grip, why)
