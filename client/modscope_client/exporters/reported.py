"""The points of reported metrics, each once and in order: events tell them, and a server keeps the last."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from modscope_client.types import Metric

__all__ = ["Reported", "ReportedPoint"]

_MOST_KEPT = 1024
"""Points of a metric that a server keeps."""


class ReportedPoint(NamedTuple):
    """A point that is to be written."""

    time: float
    """Unix seconds."""
    step: int
    name: str
    value: float


class Reported:
    """Gives on what has not been given on.

    What a server keeps is older than the first event: until it is here, or no more can come, events wait.
    """

    def __init__(self) -> None:
        self._waiting: list[ReportedPoint] | None = []
        self._up_to: dict[str, int] = {}
        """Name -> the step up to which all that a server keeps was given on."""
        self._told: dict[str, set[int]] = {}
        """Name -> later steps that events have told."""

    def told(self, point: ReportedPoint) -> list[ReportedPoint]:
        """An event has told a point: what is to be written now."""
        if self._waiting is None:
            return list(self._new((point,)))
        self._waiting.append(point)
        return self.rest() if len(self._waiting) >= _MOST_KEPT else []

    def kept(self, metrics: Iterable[Metric], now: float) -> list[ReportedPoint]:
        """A server has told all that it keeps, which bears no time: what is to be written now."""
        found: list[ReportedPoint] = []
        for metric in metrics:
            points = (ReportedPoint(now, point.step, metric.name, point.value) for point in metric.points)
            found += self._new(points)
            if metric.points:
                last = max(point.step for point in metric.points)
                self._up_to[metric.name] = max(last, self._up_to.get(metric.name, -1))
                self._forget(metric.name)
        return found + self.rest()

    def rest(self) -> list[ReportedPoint]:
        """What events have told and is to be written, whatever a server keeps."""
        waiting, self._waiting = self._waiting, None
        return list(self._new(waiting or ()))

    def _new(self, points: Iterable[ReportedPoint]) -> Iterable[ReportedPoint]:
        for point in points:
            told = self._told.setdefault(point.name, set())
            if point.step > self._up_to.get(point.name, -1) and point.step not in told:
                told.add(point.step)
                if len(told) > 2 * _MOST_KEPT:
                    self._up_to[point.name] = sorted(told)[-_MOST_KEPT]
                    self._forget(point.name)
                yield point

    def _forget(self, name: str) -> None:
        up_to = self._up_to[name]
        self._told[name] = {step for step in self._told.get(name, ()) if step > up_to}
