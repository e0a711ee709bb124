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

from modscope_server.inspection.row_reduction import FEW, reduced_rows
from modscope_server.inspection.statistics import Later

__all__ = ["reduced_later"]

_ROOM = 16 * FEW
"""Elements that gather: 128 KiB, which stay in the processor's cache."""


class _Batch:
    """Elements of several tensors, one after the other. One thread adds, any may reduce."""

    def __init__(self, free: deque[Any]) -> None:
        self._free = free
        self._elements: Any = free.pop() if free else numpy.empty(_ROOM, "float32")
        self._waiting: list[tuple[Later, int, int]] = []
        """Each with its first element and the one after its last."""
        self._adding = threading.Lock()
        self._reducing = threading.Lock()
        self.closed = False
        """Whether nothing is added any more."""

    def add(self, values: Any) -> Later | None:
        """Copy the elements of one more; None where there is no room, or nothing is added any more."""
        with self._adding:
            start = self._waiting[-1][2] if self._waiting else 0
            end = start + len(values)
            if self.closed or end > _ROOM:
                return None
            self._elements[start:end] = values
            waiting = Later(self)
            # An interrupt before this has added nothing, one after it all.
            self._waiting.append((waiting, start, end))
            return waiting

    def reduce(self) -> None:
        """Reduce all."""
        with self._adding:
            self.closed = True
        with self._reducing:
            if self._elements is None:
                return
            for _, alike in itertools.groupby(self._waiting, _size):
                waiting = list(alike)
                elements = self._elements[waiting[0][1] : waiting[-1][2]].reshape(len(waiting), -1)
                rows = reduced_rows(elements)
                for row, (one, _, _) in enumerate(waiting):
                    one.result = rows, row
            elements, self._elements = self._elements, None
            self._waiting = []
            self._free.append(elements)


def _size(waiting: tuple[Later, int, int]) -> int:
    return waiting[2] - waiting[1]


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
        _GATHERING.batch = _Batch(_GATHERING.free)
        # One that is closed is another thread's to reduce, for which this one does not wait.
        if not batch.closed:
            batch.reduce()
        waiting = _GATHERING.batch.add(values)
        assert waiting is not None
    return waiting
