"""Leases: what somebody holds for as long as they say so. They belong to no connection."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from modscope_server.errors import BadRequest, UnknownLease

__all__ = ["LONGEST", "SHORTEST", "Lease", "Leases"]

SHORTEST, LONGEST = 1.0, 86_400.0
"""Seconds that a lease may last."""

_LOG = logging.getLogger("modscope_server")


@dataclass(frozen=True, slots=True)
class Lease:
    """Something that ends by itself when nobody renews it."""

    id: str
    """Identifies it on this server."""
    seconds: float
    """Seconds for which one renewal holds."""
    expires: float
    """When it ends unless it is renewed, in Unix seconds."""
    holds: str
    """What ends with it, such as "pause"."""
    who: str
    """Who took it."""


@dataclass(slots=True)
class _Held:
    lease: Lease
    until: float
    """When it ends, by the clock."""
    renewable: bool
    on_end: Callable[[str], None]


class Leases:
    """The leases of one server, and one daemon thread while there are any, which ends those that expire.

    What a lease holds is told of its end by a function that gets the reason, on the thread that ends
    it and without a lock; an error in it is logged.

    Args:
        clock: seconds that only go forward.
        wall: Unix seconds, for people.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._numbers = itertools.count(1)
        self._held: dict[str, _Held] = {}
        self._changed = threading.Condition(threading.Lock())
        self._timer: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._held)

    @staticmethod
    def check(seconds: float) -> None:
        """Raises BadRequest where it is no number from SHORTEST to LONGEST."""
        if not SHORTEST <= seconds <= LONGEST:
            raise BadRequest(
                f"a lease of {seconds:g} s", hint="give seconds from 1 to 86,400", field="lease_seconds"
            )

    def take(
        self,
        seconds: float,
        *,
        holds: str,
        who: str,
        on_end: Callable[[str], None],
        renewable: bool = True,
    ) -> Lease:
        """A new lease. Where it is not `renewable`, renewing it changes nothing.

        `on_end` is told why it ended: it expired, or somebody released it. Raises BadRequest where
        `seconds` is no number from SHORTEST to LONGEST.
        """
        self.check(seconds)
        with self._changed:
            lease = Lease(f"lease-{next(self._numbers)}", seconds, self._wall() + seconds, holds, who)
            self._held[lease.id] = _Held(lease, self._clock() + seconds, renewable, on_end)
            self._keep_time()
        return lease

    def get(self, id: str) -> Lease:
        """A lease as it is now. Raises UnknownLease where it has ended, or there was none."""
        with self._changed:
            return self._find(id).lease

    def renew(self, id: str, seconds: float | None = None) -> Lease:
        """Let a lease hold for its seconds from now, or for other `seconds`. Raises UnknownLease."""
        with self._changed:
            held = self._find(id)
            if held.renewable:
                lasts = held.lease.seconds if seconds is None else seconds
                held.lease = replace(held.lease, seconds=lasts, expires=self._wall() + lasts)
                held.until = self._clock() + lasts
                self._changed.notify_all()
            return held.lease

    def release(self, id: str, who: str) -> None:
        """End a lease, and with it what it holds. Raises UnknownLease."""
        with self._changed:
            held = self._find(id)
            del self._held[id]
            self._changed.notify_all()
        _tell(held, f"{id} was released by {who}")

    def forget(self, id: str) -> None:
        """End a lease and tell nobody: what it held knows, or has another one. Idempotent."""
        with self._changed:
            self._held.pop(id, None)
            self._changed.notify_all()

    def expire(self) -> None:
        """End the leases whose time is over. Called by the thread; others may, who need it now."""
        if not self._held:
            return
        with self._changed:
            now = self._clock()
            over = [held for held in self._held.values() if held.until <= now]
            for held in over:
                del self._held[held.lease.id]
        for held in over:
            lease = held.lease
            _tell(held, f"{lease.id} of {lease.who} ended: nobody renewed it for {lease.seconds:g} s")

    def close(self) -> None:
        """Forget all leases, so that the thread ends."""
        with self._changed:
            self._held.clear()
            self._changed.notify_all()

    def _find(self, id: str) -> _Held:
        """The lease, where its time is not over; one that is late is ended by `expire` alone."""
        held = self._held.get(id)
        if held is None or held.until <= self._clock():
            raise UnknownLease(
                f"no lease {id!r}: it has ended, or there was none",
                hint="see `modscope run status` for what is held, and take a new one",
                field="id",
            )
        return held

    def _keep_time(self) -> None:
        if self._timer is None:
            timer = threading.Thread(target=self._watch, name="modscope-leases", daemon=True)
            # As the interpreter exits no thread can be started; whoever is held looks by itself then.
            with contextlib.suppress(RuntimeError):
                timer.start()
                self._timer = timer
        self._changed.notify_all()

    def _watch(self) -> None:
        while True:
            with self._changed:
                if not self._held:
                    self._timer = None
                    return
                left = min(held.until for held in self._held.values()) - self._clock()
                if left > 0:
                    self._changed.wait(left)
            self.expire()


def _tell(held: _Held, reason: str) -> None:
    try:
        held.on_end(reason)
    except Exception:
        _LOG.exception("the end of %s was not heard", held.lease.id)
