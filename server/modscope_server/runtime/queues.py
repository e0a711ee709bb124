"""What the subscriptions of a server share: one lock, one bound in bytes, and how often they wake."""

from __future__ import annotations

import threading
from typing import Protocol

from modscope_server.runtime.budget import Budget

__all__ = ["Member", "Queues"]

_LINGER = 0.05
"""Seconds for which a busy stream gathers a batch, at least."""
_WAKES = 25
"""How often busy streams wake in a second, all together."""
_LONGEST_LINGER = 2.0


class Member(Protocol):
    """A subscription, as the others' pressure meets it."""

    @property
    def bytes(self) -> int:
        """Bytes of tensors that it holds on to."""

    def give_way(self) -> None:
        """Let go of its oldest event, or of all, as it has asked for."""


class Queues:
    """The queues of one server.

    One lock guards them all: a tensor may be in several, and where they hold too much together one gives
    way for another. It is held for microseconds, or for half a millisecond where a hook packs what has
    gathered; nothing waits under it.

    Args:
        limit: most bytes of tensors in all of them.
    """

    def __init__(self, limit: int) -> None:
        self.mutex = threading.Lock()
        self.budget = Budget(limit)
        self._members: list[Member] = []

    def join(self, member: Member) -> None:
        """Count a subscription in."""
        with self.mutex:
            self._members.append(member)

    def leave(self, member: Member) -> None:
        """Count it out. Idempotent."""
        with self.mutex:
            if member in self._members:
                self._members.remove(member)

    def settle(self) -> None:
        """Have the fullest give way until all fit; under the lock."""
        while self.budget.exceeded:
            max(self._members, key=lambda member: member.bytes).give_way()

    @property
    def pace(self) -> float:
        """Seconds for which a busy stream lets a batch gather: who wakes stops training for a moment."""
        return min(max(_LINGER, len(self._members) / _WAKES), _LONGEST_LINGER)
