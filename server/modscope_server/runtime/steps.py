"""Counting training iterations from what optimizers and forwards tell. No threads, no torch."""

from __future__ import annotations

from collections import deque
from time import monotonic

from modscope_server.runtime.queue import Place

__all__ = ["StepCounter"]

_RATE_OVER = 32


class StepCounter:
    """Completed training iterations.

    An iteration is complete at the last optimizer step before the next training forward, or at an
    explicit mark. Several optimizers in one iteration, or a mark after an optimizer, count once.
    Where no forward is ever seen (a compiled step function), an optimizer that steps again begins
    a new iteration.
    """

    def __init__(self, optimizers: int = 0) -> None:
        self.count = 0
        self.forward_is_news = True
        """Whether a training forward would tell something: the one thing that a hook reads for that."""
        self.ends: Place | None = None
        """Where the last whole iteration ended; None where none is known."""
        self._stepped: set[int] = set()
        self._expected = max(1, optimizers)
        self._marked = False
        self.sees_forwards = False
        """Whether training forwards of a root are told of; in compiled code they may not be."""
        self._inside_backward = False
        self._times: deque[float] = deque(maxlen=_RATE_OVER)

    @property
    def complete(self) -> bool:
        """Whether as many optimizers have stepped as in the iteration before: nothing more is expected."""
        return self._marked or len(self._stepped) >= self._expected

    @property
    def begun(self) -> bool:
        """Whether an optimizer of this iteration has stepped and others may follow."""
        return bool(self._stepped) and not self.complete

    @property
    def ended(self) -> bool:
        """Whether an iteration has ended and no training forward has begun since."""
        return self._marked or bool(self._stepped) or self._inside_backward

    @property
    def of_backward(self) -> int:
        """The iteration to which an optimizer's step inside backward belongs."""
        return self.count + (not self._stepped)

    @property
    def per_second(self) -> float:
        """Iterations a second over the last ones; 0.0 where fewer than two are known."""
        times = list(self._times)
        passed = times[-1] - times[0] if times else 0.0
        return (len(times) - 1) / passed if passed > 0 else 0.0

    def forward_began(self) -> None:
        """A training forward of a registered root begins."""
        self.sees_forwards = True
        if self._inside_backward:
            self._inside_backward = False
            if not self._stepped and not self._marked:
                self._completed()
                self.ends = "forward"
        self._renew()
        self.forward_is_news = False

    def optimizer_stepped(self, optimizer: int) -> None:
        """The optimizer with this id has stepped, outside of backward."""
        again = optimizer in self._stepped and (self._marked or not self.sees_forwards)
        if again:
            self._renew()
        if not self._stepped and not self._marked:
            self._completed()
        self._stepped.add(optimizer)
        self.forward_is_news = True

    def stepped_inside_backward(self) -> None:
        """An optimizer has stepped inside backward; its iteration ends with the next forward."""
        self._inside_backward = True
        self.forward_is_news = True

    def skipped(self) -> None:
        """A scaler has skipped the optimizer's step: the iteration ends all the same."""
        if not self.ended:
            self._completed()

    def mark(self) -> None:
        """The loop says that an iteration is complete."""
        if self._marked or not self._stepped:
            self._renew()
            self._completed()
        self._marked = True
        self._inside_backward = False
        self.forward_is_news = True

    def forget_pace(self) -> None:
        """The loop stood for a reason that is not its own: its pace is measured anew."""
        self._times.clear()

    def go_to(self, count: int) -> None:
        """Count on from there, as after a return to a snapshot."""
        self.count = count
        self._times.clear()

    def _completed(self) -> None:
        self.count += 1
        self._times.append(monotonic())

    def _renew(self) -> None:
        if self._stepped:
            self._expected = len(self._stepped)
            self.ends = "optimizer"
        elif self._marked:
            self._expected = 1
        if self._marked:
            self.ends = "mark"
        self._stepped.clear()
        self._marked = False
