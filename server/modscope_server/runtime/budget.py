"""Bytes that all queues of a server hold together."""

from __future__ import annotations

from modscope_server.runtime.drafts import Draft

__all__ = ["Budget"]


class Budget:
    """Counts the tensors in queues; one that is in several counts once. Locks nothing.

    Args:
        limit: most bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        """Bytes that are held."""
        self._holders: dict[int, int] = {}

    @property
    def exceeded(self) -> bool:
        """Whether something has to give way."""
        return self.total > self.limit

    def hold(self, draft: Draft) -> None:
        """A queue takes a draft."""
        for value in draft.values:
            if value.copy is not None:
                holders = self._holders.get(id(value.copy), 0)
                self._holders[id(value.copy)] = holders + 1
                if not holders:
                    self.total += value.copy.nbytes

    def release(self, draft: Draft) -> None:
        """A queue that held it lets it go."""
        for value in draft.values:
            if value.copy is not None:
                holders = self._holders.pop(id(value.copy)) - 1
                if holders:
                    self._holders[id(value.copy)] = holders
                else:
                    self.total -= value.copy.nbytes
