"""When a subscriber listens: which steps, calls and phases, and how often at most."""

from __future__ import annotations

import time
from collections.abc import Callable

from modscope_server.runtime.rates import Rate
from modscope_server.runtime.watch_spec import WatchSpec

__all__ = ["WatchWindow"]


class WatchWindow:
    """Decides which firings a subscriber wants, before anything is computed for it.

    A call in training is one of a module whose `training` flag is set, with grad mode on; any other is
    one in evaluation.
    """

    def __init__(self, spec: WatchSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self._every = spec.every
        self._start = spec.start
        self._stop = spec.stop
        self._first_call = spec.first_call
        self._training = None if spec.phase is None else spec.phase == "training"
        self.rate = Rate(spec.max_rate, clock) if spec.max_rate else None
        """What limits it over the time; None where nothing does."""
        by_step = spec.every > 1 or spec.start is not None or spec.stop is not None
        self.is_plain = not (by_step or spec.first_call or spec.phase or spec.max_rate)
        """Whether it wants every firing."""

    @property
    def skipped(self) -> int:
        """Firings within the window that its rate has left out."""
        return 0 if self.rate is None else self.rate.skipped

    def wants_step(self, step: int) -> bool:
        """Whether anything of that step may be wanted."""
        return (
            step % self._every == 0
            and (self._start is None or step >= self._start)
            and (self._stop is None or step < self._stop)
        )

    def covers(self, step: int, call: int, training: bool) -> bool:
        """Whether that call of a module is wanted, if there is room for it in the rate."""
        return (
            self.wants_step(step)
            and not (call and self._first_call)
            and (self._training is None or self._training is training)
        )

    def admits(self, step: int, call: int, training: bool) -> bool:
        """Whether a firing is wanted that follows no call of a module; ask once for each."""
        if not self.covers(step, call, training):
            return False
        if self.rate is None:
            return True
        admitted = self.rate.admits(step, training)
        self.rate.count(admitted)
        return admitted
