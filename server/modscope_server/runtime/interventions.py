"""The interventions on the models of one server: made, told of, ended."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress

from modscope_server.errors import (
    Closed,
    LimitExceeded,
    NoSafePoint,
    UnknownIntervention,
    UnknownLease,
)
from modscope_server.inspection.selection import some_modules
from modscope_server.runtime.hook_states import HookState
from modscope_server.runtime.insight import Insight
from modscope_server.runtime.intervention import Intervention, InterventionSpec, InterventionState
from modscope_server.runtime.leases import Leases
from modscope_server.runtime.registry import Registered
from modscope_server.runtime.safepoint import Caller, SafePoint

__all__ = ["Interventions"]

_MOST = 256
_REMEMBERED = 256
"""Interventions that have ended and can still be asked for by id."""
_SOON = 2.0
"""Seconds: beside a thread that has just moved, a write point comes when it is idle for one."""
_LOG = logging.getLogger("modscope_server")


class Interventions:
    """All of them, in the order of their making. All methods may be called from any thread.

    Args:
        leases: what those that do not persist are held by.
        safepoint: where hooks are taken off.
        insight: what is known of the models beside what hooks count.
    """

    def __init__(self, leases: Leases, safepoint: SafePoint, insight: Insight) -> None:
        self._leases = leases
        self._safepoint = safepoint
        self._insight = insight
        self._numbers = itertools.count(1)
        self._made: dict[str, Intervention] = {}
        self._mutex = threading.Lock()

    def add(
        self, registered: Registered, spec: InterventionSpec, who: str, lease: float | None
    ) -> InterventionState:
        """Make one. Call it at a write point.

        `lease` is in seconds; None lets it persist. Raises NoMatch, BadGlobError, LimitExceeded, BadRequest.
        """
        if lease is not None:
            Leases.check(lease)
        chosen = some_modules(registered.root, registered.name, spec.glob, spec.type)
        with self._mutex:
            self._take_off()
            if len(self._living()) >= _MOST:
                raise LimitExceeded(
                    f"there are {_MOST} interventions already", hint="end some: `modscope unhook`"
                )
            id = f"intervention-{next(self._numbers)}"
            made = Intervention(id, registered, spec, chosen, who, self._insight)
            made.arm()
            self._made[made.id] = made
        if lease is not None:
            made.lease = self._leases.take(
                lease, holds=made.id, who=who, on_end=lambda reason: self._lost(made, reason)
            )
        _LOG.info("%s: %s at %d modules by %s", made.id, spec.how.kind, len(made.sites), who)
        return self._state(made)

    def listing(self, registered: Registered, ids: Sequence[str] = ()) -> list[InterventionState]:
        """Those on a model that have not ended; or those of these ids, ended or not.

        Raises UnknownIntervention.
        """
        with self._mutex:
            chosen = self._named(ids) if ids else self._living()
        return [self._state(one) for one in chosen if one.registered.name == registered.name]

    def remove(
        self, registered: Registered, ids: Sequence[str], who: str, caller: Caller | None = None
    ) -> list[InterventionState]:
        """End those of these ids, or all on a model where none is given, and tell those that had not ended.

        None of them acts at a later call. Their hooks are gone, too, where a write point came soon.
        Raises UnknownIntervention, and ends none then.
        """
        with self._mutex:
            named = self._named(ids) if ids else self._living()
        chosen = [one for one in named if one.registered.name == registered.name and not one.ended]
        for one in chosen:
            one.end(f"removed by {who}")
            if one.lease is not None:
                self._leases.forget(one.lease.id)
        self._sweep(_SOON, caller)
        return [self._state(one) for one in chosen]

    def hook_states(self, registered: Registered) -> list[HookState]:
        """The hooks that interventions have on a model."""
        with self._mutex:
            living = [one for one in self._living() if one.registered.name == registered.name]
        return [state for one in living for state in one.hook_states()]

    def close(self) -> None:
        """End all of them, and take their hooks off."""
        with self._mutex:
            for one in self._made.values():
                one.end("the server closed")
                one.detach()

    def _state(self, one: Intervention) -> InterventionState:
        """What it is and does now, with its lease as it was renewed last."""
        if one.lease is not None:
            with suppress(UnknownLease):
                one.lease = self._leases.get(one.lease.id)
        return one.state()

    def _lost(self, made: Intervention, reason: str) -> None:
        """Its lease has ended: told on the thread of the leases, which is not kept waiting."""
        made.end(reason)
        self._sweep(0.05)

    def _sweep(self, seconds: float, caller: Caller | None = None) -> None:
        """Take off the hooks of what has ended, where a write point comes soon; else they find out."""
        with suppress(NoSafePoint, Closed):
            self._safepoint.run(self._take_off_all, kind="write", caller=caller, timeout=seconds)

    def _take_off_all(self) -> None:
        with self._mutex:
            self._take_off()

    def _named(self, ids: Sequence[str]) -> list[Intervention]:
        found = []
        for id in dict.fromkeys(ids):
            if id not in self._made:
                raise UnknownIntervention(
                    f"there is no intervention {id!r}",
                    hint="list them: `modscope hooks`",
                    field="ids",
                )
            found.append(self._made[id])
        return found

    def _living(self) -> list[Intervention]:
        return [one for one in self._made.values() if not one.ended]

    def _take_off(self) -> None:
        """Take off what has ended, at a write point, and forget the oldest of it."""
        ended = [one for one in self._made.values() if one.ended]
        for one in ended:
            one.detach()
        for one in ended[:-_REMEMBERED]:
            del self._made[one.id]
