"""Who reads a watch: made for a reader, kept without one for a while, given to another."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from modscope.v1 import hook_service_pb2
from modscope_server.errors import BadRequest
from modscope_server.runtime.bus import Reader
from modscope_server.runtime.hooks import Watch
from modscope_server.runtime.registry import Registered
from modscope_server.services import watches
from modscope_server.services.call import Call
from modscope_server.services.serving import Serving

__all__ = ["Keeping", "Reading"]


class Reading(NamedTuple):
    """A watch and one who reads it."""

    watch: Watch
    reader: Reader
    notes: Sequence[str] = ()
    """What that reader should know, beside the watch's own notes."""


class Keeping:
    """The watches of one server that outlive their readers."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._mutex = threading.Lock()
        self._leases: dict[str, str] = {}
        """Watch that nobody reads -> the lease after which it ends."""

    def arm(self, registered: Registered, request: hook_service_pb2.WatchRequest, call: Call) -> Reading:
        """Make a watch, at a safe point."""
        spec = watches.spec(request)

        def act() -> Reading:
            watch = self._serving.hooks.watch(registered, spec)
            return Reading(watch, Reader(watch.subscription))

        return self._serving.run(call, act).value

    def resume(self, registered: Registered, watch_id: str, after: int | None) -> Reading:
        """Give a watch to another reader, with what came after an event. Raises UnknownWatch, BadRequest.

        One who still reads it is sent away: perhaps that connection is broken and nobody has noticed.
        """
        with self._mutex:
            watch = self._serving.hooks.find(registered, watch_id)
            subscription = watch.subscription
            last = subscription.counters().published - 1
            if after is not None and not -1 <= after <= last:
                raise BadRequest(
                    f"{watch_id} cannot be resumed after {after}: its last event is number {last}",
                    hint="give the seq of the last event that came",
                    field="resume_after",
                )
            reader = Reader(subscription)
            lost = subscription.rewind(after)
            lease = self._leases.pop(watch_id, None)
            if lease is not None:
                self._serving.leases.forget(lease)
        notes = (f"{lost} events that came after number {after} are held no more",) if lost else ()
        return Reading(watch, reader, notes)

    def leave(self, reading: Reading, call: Call) -> None:
        """The reader is gone: end the watch, keep it for another one, or leave it to the one who has it."""
        watch, reader, _ = reading
        subscription = watch.subscription
        with self._mutex:
            if not subscription.leave(reader):
                return
            if subscription.keep and subscription.ended is None:
                lease = self._serving.leases.take(
                    subscription.keep, holds="watch", who=call.who, on_end=lambda _: self._expire(watch)
                )
                self._leases[subscription.id] = lease.id
                return
        self._serving.hooks.stop(subscription.id)
        subscription.close()

    def _expire(self, watch: Watch) -> None:
        with self._mutex:
            if watch.subscription.reader is None:
                self._leases.pop(watch.subscription.id, None)
                self._serving.hooks.stop(watch.subscription.id, "nobody has resumed it")
