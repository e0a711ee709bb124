"""No more events a second than a subscriber wants: rounds that are told whole, and others left out whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["Rate"]

_BURST = 1.0
"""Seconds for which what was not used may be saved up."""
_PATIENCE = 60.0
"""Seconds after which, or worth of events behind which, a step is told by forwards: it may never end."""


class Rate:
    """At most so many events a second, over the time.

    It decides by rounds, so that what is told is whole and not always of the same modules. A round is a
    step of training; where no iterations are counted, as in evaluation, a forward: from a call of the
    module that began it to the next call of that module.
    """

    def __init__(self, most: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.skipped = 0
        """Firings that were left out."""
        self._most = most
        self._clock = clock
        self._mutex = threading.Lock()
        self._room = 1.0
        """Events that may be told now; below 0 what the last rounds have told too much."""
        self._refilled = clock()
        self._round: tuple[int, bool] | None = None
        self._began = 0.0
        self._first: int | None = None
        self._by_forwards = False
        self._is_open = False

    def admits(self, step: int, training: bool, source: int | None = None) -> bool:
        """Whether the round to which a call belongs is told; ask once for each call.

        `source` identifies the module that is called; None where it is no call of a module.
        """
        with self._mutex:
            if self._round != (step, training):
                self._round = step, training
                self._by_forwards = not training
                self._first = None
                self._begin()
            if self._first is None:
                self._first = source
            elif source == self._first and (self._by_forwards or self._lasts_too_long()):
                self._by_forwards = True
                self._begin()
            return self._is_open

    def count(self, admitted: bool, firings: int = 1) -> None:
        """Note firings that were told, or left out."""
        with self._mutex:
            if admitted:
                self._room -= firings
            else:
                self.skipped += firings

    def _begin(self) -> None:
        """A round begins: is there room for it?"""
        now = self._clock()
        saved = self._room + (now - self._refilled) * self._most
        self._room = min(saved, max(1.0, _BURST * self._most))
        self._refilled = self._began = now
        self._is_open = self._room > 0

    def _lasts_too_long(self) -> bool:
        return self._room < -_PATIENCE * self._most or self._clock() - self._began > _PATIENCE
