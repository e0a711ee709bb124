"""What the run is doing, as records for whoever asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modscope_server.runtime.leases import Lease

__all__ = ["BreakState", "PauseState", "RunState", "RunStatus"]

RunState = Literal["running", "paused", "idle", "no_training"]


@dataclass(frozen=True, slots=True)
class PauseState:
    """A run that is held, or will be."""

    lease: Lease
    reason: str
    """"pause", "step", or the expression of the break that was hit."""
    break_id: str
    """Id of that break; empty where it was none."""
    since: float | None
    """When it was held, in Unix seconds; None while the boundary has not come."""


@dataclass(frozen=True, slots=True)
class BreakState:
    """A condition that pauses the run when it holds at a step boundary."""

    id: str
    expression: str
    hits: int
    """How often it has paused the run."""
    notes: tuple[str, ...]
    """What it cannot see."""
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What the run is doing."""

    step: int
    """Completed training iterations."""
    steps_per_second: float
    state: RunState
    doing: str
    """What the training thread was last seen doing, for a person."""
    pause: PauseState | None
    breaks: tuple[BreakState, ...]
    waiting: int
    """Requests that wait for a step boundary."""
    skipped_steps: int
    notes: tuple[str, ...]
    """What limits what is told here."""
    last_resume: str
    """Why the last pause ended; empty where none has."""
