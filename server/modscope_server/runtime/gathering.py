"""Small results on devices, gathered so that those of a step come to the host in one copy.

A hook leaves its rows here and goes on. At the end of an iteration, when many have gathered, or when the
oldest is old, one copy of them all is begun on the stream that they were made on: no other stream is made to
wait, and nobody else is given the memory that is read before it has been. Readers wait for the copy, in their
own threads; the training thread waits for nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch

from modscope_server.runtime.queue import Place

__all__ = ["Copies", "Copy", "Gatherer", "Rows"]

_MOST = 1024
"""Most tensors in a copy."""
_OLDEST = 0.1
"""Seconds for which a tensor waits for others."""


class Copy(Protocol):
    """A copy to the host, under way."""

    def wait(self) -> torch.Tensor:
        """Its elements in one dimension, once they are there."""


class Copies(Protocol):
    """How a kind of device makes them."""

    def stream(self, tensor: torch.Tensor) -> Hashable:
        """Where the calling thread's work on the tensor's device is queued."""

    def begin(self, stream: Any, tensors: Sequence[torch.Tensor]) -> Copy:
        """Queue a copy of the elements of all, one after the other. Waits for nothing."""


class Rows:
    """A tensor on its way to the host: what a reduction asks of its tensors."""

    __slots__ = ("_batch", "_numbers", "_start", "dtype", "shape")

    def __init__(self, batch: _Batch, start: int, tensor: torch.Tensor) -> None:
        self._batch: _Batch | None = batch
        self._numbers: list[Any] = []
        self._start = start
        self.dtype = tensor.dtype
        self.shape = tensor.shape

    def tolist(self) -> list[Any]:
        """The elements, as Tensor.tolist gives them, waited for. Raises RuntimeError where they are lost."""
        batch = self._batch
        if batch is not None:
            end = self._start + self.shape.numel()
            self._numbers = batch.elements()[self._start : end].view(self.shape).tolist()
            self._batch = None
        return self._numbers


class Gatherer:
    """Gathers the small tensors of all hooks; a follower of the training thread's boundaries.

    Args:
        copies: how they are copied.
        clock: seconds that only go forward.
    """

    def __init__(self, copies: Copies, clock: Callable[[], float] = time.monotonic) -> None:
        self._copies = copies
        self._clock = clock
        self._mutex = threading.Lock()
        self._open: dict[tuple[Hashable, torch.dtype], _Batch] = {}

    def add(self, tensor: torch.Tensor) -> Rows:
        """Take a tensor that the calling thread has just queued the making of."""
        key = self._copies.stream(tensor), tensor.dtype
        now = self._clock()
        full = None
        with self._mutex:
            batch = self._open.get(key)
            if batch is not None and (len(batch.tensors) >= _MOST or now - batch.opened >= _OLDEST):
                full = self._open.pop(key)
                batch = None
            if batch is None:
                batch = self._open[key] = _Batch(self, key, now)
            rows = batch.add(tensor)
        if full is not None:
            full.begin(self._copies)
        return rows

    def updated(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Nothing: the iteration may go on."""

    def boundary(self, step: int, place: Place) -> None:
        """The iteration is complete: what has gathered goes."""
        if self._open:
            for batch in list(self._open.values()):
                self.hurry(batch)

    def hurry(self, batch: _Batch) -> None:
        """Begin the copy of a batch that somebody waits for, unless it has begun."""
        with self._mutex:
            if self._open.get(batch.key) is not batch:
                return
            del self._open[batch.key]
        batch.begin(self._copies)

    def time_left(self, batch: _Batch) -> float:
        """Seconds for which a batch may wait for more."""
        return max(0.0, batch.opened + _OLDEST - self._clock())


class _Batch:
    """Tensors of one stream and dtype that are copied together."""

    def __init__(self, gatherer: Gatherer, key: tuple[Hashable, torch.dtype], now: float) -> None:
        self.key = key
        self.opened = now
        self.tensors: list[torch.Tensor] = []
        self._gatherer = gatherer
        self._length = 0
        self._thread = threading.get_ident()
        self._begun = threading.Event()
        self._copy: Copy | None = None
        self._error: Exception | None = None

    def add(self, tensor: torch.Tensor) -> Rows:
        """One more, as long as the copy has not begun."""
        rows = Rows(self, self._length, tensor)
        self.tensors.append(tensor)
        self._length += tensor.numel()
        return rows

    def begin(self, copies: Copies) -> None:
        """Begin the copy, once. Whoever waits hears of what goes wrong; a hook does not."""
        try:
            self._copy = copies.begin(self.key[0], self.tensors)
        except Exception as error:
            self._error = error
        finally:
            # After an interrupt, too: somebody may wait.
            self.tensors = []
            self._begun.set()

    def elements(self) -> torch.Tensor:
        """All elements, once they are there. Raises RuntimeError where they do not come."""
        # The thread that gathers would wait for itself.
        patience = 0.0 if threading.get_ident() == self._thread else self._gatherer.time_left(self)
        if not self._begun.wait(patience):
            self._gatherer.hurry(self)
            self._begun.wait()
        if self._copy is None:
            raise RuntimeError(f"the copy from the device failed: {self._error}") from self._error
        return self._copy.wait()
