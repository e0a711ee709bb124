"""What one watch was told at the ends of iterations: the counters that listings show."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["MOST_FAULTS", "Tally", "Told"]

MOST_FAULTS = 3
"""Of our own, after which a thing is told no more."""


@dataclass(slots=True)
class Told:
    """What was told of one parameter, of its gradient, or of the metrics."""

    kind: str
    path: str
    fired: int = 0
    last_step: int | None = None
    missed: int = 0
    """Iterations since then in which it might have been told, and its optimizer did not step."""
    faults: int = 0
    reason: str = ""
    """Why there was nothing to tell when it was looked at last; empty where there was."""

    def count(self, step: int, reason: str = "") -> None:
        """It was told of an iteration."""
        self.fired += 1
        self.last_step = step
        self.missed = 0
        self.reason = reason

    def fault(self, error: Exception) -> None:
        """A fault of ours."""
        self.faults += 1
        self.reason = f"modscope failed here: {type(error).__name__}: {error}"
        if self.is_off:
            self.reason = f"switched off after {self.faults} faults; the last: {self.reason}"

    @property
    def is_off(self) -> bool:
        """Whether it is told no more, being faulty."""
        return self.faults >= MOST_FAULTS


class Tally:
    """Counters by kind and path. The training thread counts, others list."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], Told] = {}

    def of(self, kind: str, path: str) -> Told:
        """The counter; made where there is none."""
        told = self._told.get((kind, path))
        return told if told is not None else self._told.setdefault((kind, path), Told(kind, path))

    def listing(self) -> list[Told]:
        """Copies of the counters, in the order of their making."""
        return [replace(told) for told in list(self._told.values())]
