"""Counting training iterations from what optimizers and forwards tell. No threads, no torch."""

from __future__ import annotations

__all__ = ["StepCounter"]


class StepCounter:
    """Completed training iterations.

    An iteration is complete at the last optimizer step before the next training forward, or at an
    explicit mark. Several optimizers in one iteration, or a mark after an optimizer, count once.
    Where no forward is ever seen (a compiled step function), an optimizer that steps again begins
    a new iteration.
    """

    def __init__(self, optimizers: int = 0) -> None:
        self.count = 0
        self._stepped: set[int] = set()
        self._expected = max(1, optimizers)
        self._marked = False
        self._forwards = False
        self._inside_backward = False

    @property
    def complete(self) -> bool:
        """Whether as many optimizers have stepped as in the iteration before: nothing more is expected."""
        return self._marked or len(self._stepped) >= self._expected

    @property
    def begun(self) -> bool:
        """Whether an optimizer of this iteration has stepped and others may follow."""
        return bool(self._stepped) and not self.complete

    def forward_began(self) -> None:
        """A training forward of a registered root begins."""
        self._forwards = True
        if self._inside_backward:
            self._inside_backward = False
            if not self._stepped and not self._marked:
                self.count += 1
        self._renew()

    def optimizer_stepped(self, optimizer: int) -> None:
        """The optimizer with this id has stepped, outside of backward."""
        again = optimizer in self._stepped and (self._marked or not self._forwards)
        if again:
            self._renew()
        if not self._stepped and not self._marked:
            self.count += 1
        self._stepped.add(optimizer)

    def stepped_inside_backward(self) -> None:
        """An optimizer has stepped inside backward; its iteration ends with the next forward."""
        self._inside_backward = True

    def mark(self) -> None:
        """The loop says that an iteration is complete."""
        if self._marked or not self._stepped:
            self._renew()
            self.count += 1
        self._marked = True
        self._inside_backward = False

    def _renew(self) -> None:
        if self._stepped:
            self._expected = len(self._stepped)
        elif self._marked:
            self._expected = 1
        self._stepped.clear()
        self._marked = False
