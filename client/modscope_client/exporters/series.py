"""What a scrape tells: the last samples of each metric. See docs/exporters.md."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modscope_client.exporters.families import COUNTERS, OF_MODULES, OVER_LIMIT, REPORTED, STATS, Family
from modscope_client.exporters.naming import METRIC, ROOT, metric_number

if TYPE_CHECKING:
    from modscope_client.sinks import Metrics
    from modscope_client.types import Event, Stats

__all__ = ["MOST_SERIES", "State"]

MOST_SERIES = 5_000
"""Values (model, path, hook, role, key) that are told at most; more are counted, and not told."""


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
    _values: dict[str, dict[tuple[str, ...], Stats]] = field(
        default_factory=lambda: {kind: {} for kind in STATS}
    )
    _reported: dict[tuple[str, ...], tuple[int, float]] = field(default_factory=dict)
    """model, name -> step and value that the last event has told."""
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
            if event.hook == METRIC:
                number = metric_number(event)
                if number is not None and module in self.events:
                    self._reported[event.model, event.path] = event.step, number
                return
            for value in event.values:
                if value.stats is not None:
                    self._take(value.stats, (*module, value.role, value.key))

    def _take(self, stats: Stats, labels: tuple[str, ...]) -> None:
        kind = labels[2] if labels[2] in self._values else "value"
        values, place = self._values[kind], labels if kind == "value" else labels[:2]
        if place not in values and sum(map(len, self._values.values())) >= MOST_SERIES:
            self.over += 1
            return
        values[place] = stats
        for name, sums in self._sums.items():
            sums[labels] = sums.get(labels, 0) + getattr(stats, name)

    def samples(self, family: Family) -> list[tuple[tuple[str, ...], float]]:
        """What is known of a metric: labels and amounts. A statistic that there is none of is not told."""
        with self._lock:
            return list(self._samples(family))

    def _samples(self, family: Family) -> Iterator[tuple[tuple[str, ...], float]]:
        metrics, source = self.metrics, family.source
        for kind, families in STATS.items():
            if family in families:
                yield from _amounts(self._values[kind], source)
                return
        if family in COUNTERS or family in OF_MODULES:
            found = self._sums[source] if family in COUNTERS else getattr(self, source)
            for labels, amount in found.items():
                yield labels, float(amount)
        elif family is OVER_LIMIT:
            yield (), float(self.over)
        elif family is REPORTED:
            yield from self._last_reported().items()
        elif metrics is not None:
            yield (), float(getattr(metrics, source))

    def _last_reported(self) -> dict[tuple[str, ...], float]:
        """By model and name the newer of what an event has told and of what is known beside the events."""
        last = dict(self._reported)
        for metric in self.metrics.reported if self.metrics is not None else ():
            assert self.metrics is not None
            if metric.points:
                name, point = (self.metrics.model, metric.name), metric.points[-1]
                last[name] = max((point.step, point.value), last.get(name, (-1, 0.0)), key=_step)
        return {name: value for name, (_, value) in last.items()}


def _amounts(values: dict[tuple[str, ...], Stats], source: str) -> Iterator[tuple[tuple[str, ...], float]]:
    for labels, stats in values.items():
        amount = getattr(stats, source)
        if amount is not None:
            yield labels, float(amount)


def _step(told: tuple[int, float]) -> int:
    return told[0]
