"""Small tensors that are copied in hooks and reduced later, many at a time.

A reduction of some thousand elements is a dozen calls of small functions. Between a training loop's own
operations, where nothing of ours is in the processor's caches, these take several times what they take one
after the other. So a hook copies the elements, which is quick, and goes on; when enough have gathered it
reduces them all, unless somebody who wants to know has done so before.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from typing import Any

import numpy

from modscope_server.inspection.host_reduction import FEW, parts_of_rows
from modscope_server.inspection.partial_sums import Part
from modscope_server.inspection.statistics import Later

__all__ = ["reduced_later"]

_ROOM = 16 * FEW
"""Elements that gather: 128 KiB, which stay in the processor's cache."""


class _Waiting(Later):
    """One tensor of a batch."""

    __slots__ = ("_batch", "result")

    def __init__(self, batch: _Batch) -> None:
        self._batch = batch
        self.result: Part | None = None

    def part(self) -> Part:
        """The part; reduces all that have gathered with it, where that has not been done."""
        if self.result is None:
            self._batch.reduce()
        assert self.result is not None
        return self.result


class _Batch:
    """Elements of several tensors, one after the other. One thread adds, any may reduce."""

    def __init__(self, free: deque[Any]) -> None:
        self._free = free
        self._elements = free.pop() if free else numpy.empty(_ROOM, "float32")
        self._end = 0
        self._waiting: list[tuple[_Waiting, int, int]] = []
        """Each with its first element and their number."""
        self._adding = threading.Lock()
        self._reducing = threading.Lock()
        self._closed = False

    def add(self, values: Any) -> Later | None:
        """Copy the elements of one more; None where there is no room, or they are reduced by now."""
        start = self._end
        end = start + len(values)
        if end > _ROOM:
            return None
        with self._adding:
            if self._closed:
                return None
            self._elements[start:end] = values
            waiting = _Waiting(self)
            self._waiting.append((waiting, start, len(values)))
        self._end = end
        return waiting

    def reduce(self) -> None:
        """Reduce all. Nothing is added any more."""
        with self._adding:
            self._closed = True
        with self._reducing:
            if self._waiting:
                for size, alike in itertools.groupby(self._waiting, _size):
                    waiting = list(alike)
                    rows = self._elements[waiting[0][1] : waiting[-1][1] + size].reshape(-1, size)
                    for (one, _, _), part in zip(waiting, parts_of_rows(rows), strict=True):
                        one.result = part
                self._waiting.clear()
                self._free.append(self._elements)


def _size(waiting: tuple[_Waiting, int, int]) -> int:
    return waiting[2]


class _Gathering(threading.local):
    """What the hooks of one thread have gathered."""

    def __init__(self) -> None:
        self.free: deque[Any] = deque(maxlen=2)
        self.batch = _Batch(self.free)


_GATHERING = _Gathering()


def reduced_later(values: Any) -> Later:
    """What will be the part of a few elements of float32, which are copied now."""
    batch = _GATHERING.batch
    waiting = batch.add(values)
    if waiting is None:
        batch.reduce()
        _GATHERING.batch = batch = _Batch(_GATHERING.free)
        waiting = batch.add(values)
        assert waiting is not None
    return waiting
