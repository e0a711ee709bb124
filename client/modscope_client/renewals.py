"""Keeping a lease alive in the background, for as long as somebody holds the client that took it."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable

from modscope_client.errors import ModscopeError, NotFound
from modscope_client.types import Lease

__all__ = ["Held", "Renewals"]

_CLOSED = "CLOSED"


class Held:
    """The lease that a client holds, when it is due for renewal, and what became of the ones before."""

    def __init__(self) -> None:
        self._lease: Lease | None = None
        self._due = 0.0
        self._expires = 0.0
        self._lost: list[str] = []

    def take(self, lease: Lease) -> None:
        """The client holds this lease from now on, and no other."""
        self._lease = lease
        self._begin(lease.seconds)

    def drop(self) -> None:
        """The client holds none any more."""
        self._lease = None

    def news(self) -> tuple[str, ...]:
        """What became of leases that were lost since it was asked last."""
        lost, self._lost = tuple(self._lost), []
        return lost

    def left(self) -> float | None:
        """Seconds until a renewal is due; None where there is nothing to renew."""
        return None if self._lease is None else max(0.0, self._due - time.monotonic())

    def answered(self, lease: Lease, error: ModscopeError | None) -> None:
        """A renewal has been made, or has failed: then it is tried again until the lease must have ended."""
        if self._lease is not lease:
            return
        if error is None:
            self._begin(lease.seconds)
        elif error.reason == _CLOSED:
            self.drop()
        elif isinstance(error, NotFound) or time.monotonic() >= self._expires:
            self.drop()
            self._lost.append(f"the lease {lease.id} of this client's pause has ended: {error.message}")
        else:
            self._due = time.monotonic() + lease.seconds / 6

    def _begin(self, seconds: float) -> None:
        now = time.monotonic()
        self._due, self._expires = now + seconds / 3, now + seconds


class Renewals(Held):
    """A lease renewed by one daemon thread, which is there while there is something to renew.

    The thread does not hold the client: what nobody can resume any more ends with its lease.
    """

    def __init__(self, renew: Callable[[str], object]) -> None:
        super().__init__()
        self._renew = renew
        self._mutex = threading.RLock()
        self._changed = threading.Event()
        self._running = False

    def take(self, lease: Lease) -> None:
        """Renew this lease from now on."""
        with self._mutex:
            super().take(lease)
            if not self._running:
                self._running = True
                watched = (weakref.ref(self), self._changed)
                threading.Thread(target=_run, args=watched, name="modscope-lease", daemon=True).start()
        self._changed.set()

    def drop(self) -> None:
        """Renew nothing any more."""
        with self._mutex:
            super().drop()
        self._changed.set()

    def turn(self) -> float | None:
        """Renew what is due; seconds until the next turn, None where there will be none."""
        with self._mutex:
            lease, left = self._lease, self.left()
            if lease is None:
                self._running = False
                return None
        if left:
            return left
        failure: ModscopeError | None = None
        try:
            self._renew(lease.id)
        except ModscopeError as error:
            failure = error
        with self._mutex:
            self.answered(lease, failure)
        return self.turn()


def _run(watched: weakref.ref[Renewals], changed: threading.Event) -> None:
    while (renewals := watched()) is not None:
        changed.clear()
        pause = renewals.turn()
        del renewals
        if pause is None:
            return
        changed.wait(pause)
