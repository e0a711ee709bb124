"""What a scrape tells: names, labels and samples. See docs/exporters.md."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modscope_client.exporters.naming import ROOT

if TYPE_CHECKING:
    from modscope_client.sinks import Metrics
    from modscope_client.types import Event, Stats

__all__ = ["FAMILIES", "MOST_SERIES", "Family", "State"]

MOST_SERIES = 5_000
"""Values (model, path, hook, role, key) that are told at most; more are counted, and not told."""

_VALUE = ("model", "path", "hook", "role", "key")


@dataclass(frozen=True)
class Family:
    """A metric: its name, without the `_total` that a counter's samples bear."""

    name: str
    """By Prometheus's rules: prefix, what, unit."""
    kind: str
    """"gauge" or "counter"."""
    help: str
    """One line."""
    labels: tuple[str, ...]
    """Names of its labels."""
    source: str
    """The attribute of Stats, of Metrics or of State that it tells."""


_STATS = (
    Family("modscope_value_mean", "gauge", "Mean of the finite elements.", _VALUE, "mean"),
    Family("modscope_value_std", "gauge", "Population standard deviation.", _VALUE, "std"),
    Family("modscope_value_min", "gauge", "Least finite element.", _VALUE, "min"),
    Family("modscope_value_max", "gauge", "Greatest finite element.", _VALUE, "max"),
    Family("modscope_value_norm", "gauge", "L2 norm of the finite elements.", _VALUE, "norm"),
    Family("modscope_value_elements", "gauge", "Elements, nan and inf included.", _VALUE, "count"),
    Family("modscope_value_zero_elements", "gauge", "Elements that equal zero.", _VALUE, "zeros"),
    Family("modscope_value_nan_elements", "gauge", "Elements that are not a number.", _VALUE, "nan"),
    Family("modscope_value_inf_elements", "gauge", "Infinite elements.", _VALUE, "inf"),
)
_COUNTERS = (
    Family("modscope_nan_elements", "counter", "Elements seen that were not a number.", _VALUE, "nan"),
    Family("modscope_inf_elements", "counter", "Infinite elements seen.", _VALUE, "inf"),
)
_OF_MODULES = (
    Family("modscope_events", "counter", "Events received.", _VALUE[:3], "events"),
    Family("modscope_event_step", "gauge", "Step of the last event.", _VALUE[:3], "steps"),
    Family("modscope_event_timestamp_seconds", "gauge", "Time of the last event.", _VALUE[:3], "times"),
)
_OF_WATCH = (
    Family(
        "modscope_up", "gauge", "1 while the watch is armed, 0 while the server is away.", (), "connected"
    ),
    Family("modscope_reconnects", "counter", "How often the watch was armed anew.", (), "reconnects"),
    Family("modscope_step", "gauge", "Training steps completed, as told last.", (), "step"),
    Family("modscope_events_published", "counter", "Events published, dropped included.", (), "published"),
    Family(
        "modscope_events_dropped", "counter", "Events lost, to keep training from waiting.", (), "dropped"
    ),
)
_REPORTED = Family(
    "modscope_reported", "gauge", "Last scalar that the loop reported.", ("model", "name"), "reported"
)
_OVER_LIMIT = Family(
    "modscope_series_over_limit", "counter", "Values left out, being beyond the limit of series.", (), "over"
)

FAMILIES = (*_STATS, *_COUNTERS, *_OF_MODULES, *_OF_WATCH, _REPORTED, _OVER_LIMIT)
"""All that is told, modscope_build_info aside."""


@dataclass
class State:
    """The last of everything. Taken in one thread, told in others."""

    metrics: Metrics | None = None
    """What is known beside the events."""
    over: int = 0
    """Values left out so far."""
    events: dict[tuple[str, ...], int] = field(default_factory=dict)
    """model, path, hook -> events received."""
    steps: dict[tuple[str, ...], int] = field(default_factory=dict)
    """model, path, hook -> step of the last event."""
    times: dict[tuple[str, ...], float] = field(default_factory=dict)
    """model, path, hook -> Unix seconds of the last event."""
    _values: dict[tuple[str, ...], Stats] = field(default_factory=dict)
    _sums: dict[str, dict[tuple[str, ...], int]] = field(default_factory=lambda: {"nan": {}, "inf": {}})
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, event: Event) -> None:
        """One event."""
        module = (event.model, event.path or ROOT, event.hook)
        with self._lock:
            if module in self.events or len(self.events) < MOST_SERIES:
                self.events[module] = self.events.get(module, 0) + 1
                self.steps[module] = event.step
                self.times[module] = event.time
            for value in event.values:
                if value.stats is not None:
                    self._take(value.stats, (*module, value.role, value.key))

    def _take(self, stats: Stats, labels: tuple[str, ...]) -> None:
        if labels not in self._values and len(self._values) >= MOST_SERIES:
            self.over += 1
            return
        self._values[labels] = stats
        for name, sums in self._sums.items():
            sums[labels] = sums.get(labels, 0) + getattr(stats, name)

    def samples(self, family: Family) -> list[tuple[tuple[str, ...], float]]:
        """What is known of a metric: labels and amounts. A statistic that there is none of is not told."""
        with self._lock:
            return list(self._samples(family))

    def _samples(self, family: Family) -> Iterator[tuple[tuple[str, ...], float]]:
        metrics, source = self.metrics, family.source
        if family in _STATS:
            for labels, stats in self._values.items():
                amount = getattr(stats, source)
                if amount is not None:
                    yield labels, float(amount)
        elif family in _COUNTERS or family in _OF_MODULES:
            found = self._sums[source] if family in _COUNTERS else getattr(self, source)
            for labels, amount in found.items():
                yield labels, float(amount)
        elif family is _OVER_LIMIT:
            yield (), float(self.over)
        elif metrics is not None and family is _REPORTED:
            for metric in metrics.reported:
                if metric.points:
                    yield (metrics.model, metric.name), metric.points[-1].value
        elif metrics is not None:
            yield (), float(getattr(metrics, source))
