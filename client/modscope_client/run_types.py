"""Records of the training run: what it does, what it has reported, what holds it. Reached through `types`."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Break", "Lease", "Metric", "MetricPoint", "Pause", "RunStatus"]


@dataclass(frozen=True, slots=True)
class Lease:
    """Something that ends by itself when nobody renews it."""

    id: str
    """Identifies it on its server."""
    seconds: float
    """Seconds for which one renewal holds."""
    expires: float
    """When it ends unless it is renewed, in Unix seconds of the server."""
    holds: str
    """What ends with it, such as "pause"."""
    who: str
    """Role of the token that took it, and from where."""


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """A reported value."""

    step: int
    """step_count when it was reported: the iteration that it ends."""
    value: float
    """The value."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A scalar that the loop reports by scope.step."""

    name: str
    """Its name, such as "loss"."""
    points: tuple[MetricPoint, ...]
    """The last values, oldest first."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A run that is held, or is asked to be."""

    lease: Lease
    """The lease that holds it."""
    reason: str
    """Why: "pause", "step", or the expression of the break that was hit."""
    break_id: str
    """Id of that break; "" where it was no break."""
    since: float | None
    """When it was held, in Unix seconds; None while the step boundary has not come."""


@dataclass(frozen=True, slots=True)
class Break:
    """A condition that pauses the run when it holds at a step boundary."""

    id: str
    """Identifies it on its server."""
    expression: str
    """The condition, as it was given."""
    hits: int
    """How often it has paused the run."""
    notes: tuple[str, ...]
    """What it cannot see, such as a metric that has not been reported yet."""
    lease_seconds: float
    """Seconds for which it holds the run, unless somebody renews the lease."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What the run is doing."""

    step: int
    """step_count now."""
    steps_per_second: float
    """Iterations a second over the last of them; 0.0 where too few are known."""
    state: str
    """"running", "paused", "idle" (a thread has trained, and has not moved for a second) or
    "no_training" (none has yet, or the one that did has ended)."""
    doing: str
    """What the training thread was last seen doing, for a person."""
    metrics: tuple[Metric, ...]
    """Reported scalars, in the order of their names."""
    pause: Pause | None
    """What holds it, or will at the next step boundary; None where nothing does."""
    breaks: tuple[Break, ...]
    """Breaks that are set."""
    waiting: int
    """Requests that wait for a step boundary."""
    skipped_steps: int
    """Steps that a GradScaler has skipped since attach, where one was given as an extra."""
    notes: tuple[str, ...]
    """What limits what is told here; and what became of the leases of this client."""
    last_resume: str
    """Why the last pause ended, such as a lease that nobody renewed; "" where none has."""
