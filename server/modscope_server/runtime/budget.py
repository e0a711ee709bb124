"""Bytes that all queues of a server hold together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from modscope.tensor import TensorData
from modscope_server.runtime.drafts import Item

__all__ = ["Budget", "copies"]


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

    def hold(self, drafts: Iterable[Item]) -> None:
        """A queue takes drafts."""
        for copy in copies(drafts):
            holders = self._holders.get(id(copy), 0)
            self._holders[id(copy)] = holders + 1
            if not holders:
                self.total += copy.nbytes

    def release(self, drafts: Iterable[Item]) -> None:
        """A queue that held them lets them go."""
        for copy in copies(drafts):
            holders = self._holders.pop(id(copy)) - 1
            if holders:
                self._holders[id(copy)] = holders
            else:
                self.total -= copy.nbytes


def copies(drafts: Iterable[Item]) -> Iterator[torch.Tensor | TensorData]:
    """The copies of tensors that drafts hold on to."""
    for draft in drafts:
        for value in () if isinstance(draft, bytes) else draft.values:
            if value.copy is not None:
                yield value.copy
