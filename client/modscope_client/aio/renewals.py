"""Keeping a lease alive in the background of an event loop: the twin of modscope_client/renewals.py."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable

from modscope_client.errors import ModscopeError
from modscope_client.renewals import Held
from modscope_client.types import Lease

__all__ = ["Renewals"]


class Renewals(Held):
    """A lease renewed by one task, which is there while there is something to renew.

    The task does not hold the client: what nobody can resume any more ends with its lease.
    """

    def __init__(self, renew: Callable[[str], Awaitable[object]]) -> None:
        super().__init__()
        self._renew = renew
        self._task: asyncio.Task[None] | None = None

    def take(self, lease: Lease) -> None:
        """Renew this lease from now on."""
        self.drop()
        super().take(lease)
        self._task = asyncio.create_task(_run(weakref.ref(self)), name="modscope-lease")

    def drop(self) -> None:
        """Renew nothing any more."""
        super().drop()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def turn(self) -> None:
        """Renew what is due."""
        lease = self._lease
        if lease is None or self.left():
            return
        failure: ModscopeError | None = None
        try:
            await self._renew(lease.id)
        except ModscopeError as error:
            failure = error
        self.answered(lease, failure)


async def _run(watched: weakref.ref[Renewals]) -> None:
    while (renewals := watched()) is not None:
        await renewals.turn()
        pause = renewals.left()
        del renewals
        if pause is None:
            return
        await asyncio.sleep(pause)
