"""Sinks: where the events of a watch can go. Found among entry points, loaded when they are asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from modscope_client.errors import FailedPrecondition, NotFound

if TYPE_CHECKING:
    from modscope_client.types import Event, Metric, WatchCounters

__all__ = ["GROUP", "Metrics", "Sink", "Watched", "make_sink", "need", "sink_names"]

GROUP = "modscope.sinks"
"""The group of entry points: each names a class, or a function, that takes a target and gives a Sink."""


class Watched(Protocol):
    """What a watch tells of itself, live or recorded."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the modules that it watches."""

    @property
    def step(self) -> int:
        """step_count at which it was armed."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the watcher should know."""

    @property
    def counters(self) -> WatchCounters:
        """Its counters, as they were told last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """What is known beside the events, told now and then."""

    model: str
    """Name of the model."""
    connected: bool
    """Whether the watch is armed; False while the server is away."""
    reconnects: int
    """How often the watch was armed anew."""
    published: int
    """Events published to the watch since the sink was made, the dropped ones included."""
    dropped: int
    """Events lost since the sink was made."""
    step: int
    """step_count, as it was told last."""
    reported: tuple[Metric, ...] = ()
    """Scalars that the loop reports by scope.step, each with its last points; empty where none are known."""


@runtime_checkable
class Sink(Protocol):
    """Takes events. It is called by one thread at a time; what it raises ends the export."""

    place: str
    """Where that which it takes is found, for people: a folder, a file, a URL."""
    serves: bool
    """Whether others come and ask it, so that it must stay after the last event."""

    def open(self, watch: Watched) -> None:
        """A watch is armed. Called again where it is armed anew, the server having been away."""

    def emit(self, event: Event) -> None:
        """One event."""

    def metrics(self, metrics: Metrics) -> None:
        """What is known beside the events."""

    def close(self) -> None:
        """No more will come: let go of files and ports. Called once, also where `open` has failed."""


def sink_names() -> list[str]:
    """The sinks that are installed, in alphabetical order."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def make_sink(name: str, target: str) -> Sink:
    """The sink of that name for a target: a folder, a file, an address, as the sink says.

    Raises NotFound where none has the name, FailedPrecondition (SINK) where it cannot be loaded.
    """
    found = [point for point in entry_points(group=GROUP) if point.name == name]
    if not found:
        raise NotFound(
            f"there is no sink {name!r}",
            reason="UNKNOWN_SINK",
            hint=f"installed are: {', '.join(sink_names()) or 'none; install modscope anew'}",
        )
    sink: Any = _loaded(found[0])(target)
    if not isinstance(sink, Sink):
        raise FailedPrecondition(
            f"sink {name!r} ({found[0].value}) lacks what a sink has",
            reason="SINK",
            hint="see modscope_client.sinks.Sink",
        )
    return sink


def _loaded(point: EntryPoint) -> Any:
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise FailedPrecondition(
            f"sink {point.name!r} ({point.value}) cannot be loaded: {error}",
            reason="SINK",
            hint="install the package that brings it anew",
        ) from error


def need(module: str, *, extra: str) -> Any:
    """A module that an extra brings. Raises FailedPrecondition (MISSING_EXTRA) with what installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise FailedPrecondition(
            f"{module.partition('.')[0]} is not installed",
            reason="MISSING_EXTRA",
            hint=f"pip install 'modscope[{extra}]'",
        ) from error
