"""Where the numbers of conditions come from: metrics, parameters, gradients, hooks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeAlias

from torch.optim.optimizer import Optimizer

from modscope_server.inspection.statistics import Reduction, pool
from modscope_server.runtime.breaks.parameters import Gradients, Selected, reduced
from modscope_server.runtime.breaks.passing import Passing
from modscope_server.runtime.breaks.syntax import Metric, Origin, Statistic, TruthNode, leaves
from modscope_server.runtime.hooks import HookManager
from modscope_server.runtime.metrics import Metrics
from modscope_server.runtime.queue import Place
from modscope_server.runtime.registry import Registry

__all__ = ["Sources"]

_Key: TypeAlias = tuple[Origin, str]
_Source: TypeAlias = Selected | Gradients | Passing


class Sources:
    """The numbers of one step boundary, each read when it is first asked for, on the training thread.

    Args:
        serving: whether the calling thread runs the model for a request.
    """

    def __init__(
        self, registry: Registry, metrics: Metrics, hooks: HookManager, serving: Callable[[], bool]
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        self._hooks = hooks
        self._serving = serving
        self._mutex = threading.Lock()
        self._sources: dict[_Key, _Source] = {}
        self._known: dict[_Key, dict[str, float | None] | None] = {}
        self._missing: frozenset[_Key] = frozenset()
        self._present = False
        self.step = 0
        """The boundary at which all is read."""

    def need(self, conditions: Iterable[TruthNode]) -> None:
        """Be ready for these conditions and no others: hooks that they need come, all others go.

        Raises LimitExceeded where there may be no more watches; nothing has changed then.
        """
        wanted = {(leaf.origin, leaf.selector) for condition in conditions for leaf in _statistics(condition)}
        with self._mutex:
            made: dict[_Key, _Source] = {}
            try:
                for key in wanted - self._sources.keys():
                    made[key] = self._make(*key)
            except BaseException:
                _stop(made.values())
                raise
            _stop(source for key, source in self._sources.items() if key not in wanted)
            self._sources = {key: made.get(key) or self._sources[key] for key in wanted}

    def updated(self, step: int, optimizer: Optimizer) -> None:
        """An optimizer has stepped, and its gradients are still there."""
        for source in self._sources.values():
            if isinstance(source, Gradients):
                source.updated(step, optimizer)

    def begin(self, step: int, place: Place) -> None:
        """From here on all that is asked for is that of this boundary."""
        self.step = step
        self._present = place != "forward"  # by then a loop has cleared the gradients of the iteration
        self._known = {}
        for source in self._sources.values():
            if isinstance(source, Passing):
                source.at(step)

    def metric(self, name: str) -> float | None:
        """The last value that was reported."""
        return self._metrics.latest(name)

    def statistic(self, statistic: Statistic) -> float | None:
        """A statistic of all that is selected together; nan where no element of it is finite."""
        key = (statistic.origin, statistic.selector)
        if key not in self._known:
            found = self._read(key)
            self._known[key] = pool(found).resolve()._asdict() if found else None
            self._missing = self._missing - {key} if found else self._missing | {key}
        numbers = self._known[key]
        if numbers is None:
            return None
        number = numbers[statistic.name]
        return float("nan") if number is None else float(number)

    def notes(self, condition: TruthNode) -> tuple[str, ...]:
        """What a condition asks for and is not there."""
        notes: list[str] = []
        for leaf in leaves(condition):
            if isinstance(leaf, Metric) and self._metrics.latest(leaf.name) is None:
                notes.append(f"no metric {leaf.name!r} has been reported yet; a loop reports by scope.step")
            elif isinstance(leaf, Statistic):
                notes += self._notes_of(leaf)
        return tuple(dict.fromkeys(notes))

    def _notes_of(self, leaf: Statistic) -> list[str]:
        key = (leaf.origin, leaf.selector)
        source = self._sources.get(key)
        notes: list[str] = []
        if isinstance(source, Passing):
            notes += source.notes
        elif not Selected(self._registry, leaf.selector).look_up():
            notes.append(f"no parameter matches {leaf.selector!r}")
        if not notes and key in self._missing:
            notes.append(f"there was nothing for {leaf} when it was last looked at")
        return notes

    def _make(self, origin: Origin, selector: str) -> _Source:
        if origin == "value":
            return Selected(self._registry, selector)
        if origin == "grad":
            return Gradients(Selected(self._registry, selector))
        return Passing(self._registry, self._hooks, origin, selector, self._serving)

    def _read(self, key: _Key) -> list[Reduction]:
        source = self._sources.get(key)
        if isinstance(source, Selected):
            return list(reduced(source.now().values()))
        if isinstance(source, Gradients):
            return source.at(self.step, present=self._present)
        return [] if source is None else source.at(self.step)


def _statistics(condition: TruthNode) -> list[Statistic]:
    return [leaf for leaf in leaves(condition) if isinstance(leaf, Statistic)]


def _stop(sources: Iterable[_Source]) -> None:
    for source in sources:
        if isinstance(source, Passing):
            source.stop()
