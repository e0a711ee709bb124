"""All that is told at the ends of iterations, and what has become of it: parameters, gradients, metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from torch.optim.optimizer import Optimizer

from modscope_server.inspection.structure import Located
from modscope_server.runtime.boundaries import Boundaries
from modscope_server.runtime.capture import Sink
from modscope_server.runtime.hook_states import HookState, State
from modscope_server.runtime.metric_events import METRIC, MetricEvents
from modscope_server.runtime.parameter_events import PARAMETER_KINDS, ParameterEvents
from modscope_server.runtime.registry import Registered
from modscope_server.runtime.tally import Tally, Told

__all__ = ["BoundaryEvents"]

_SILENT = 2
"""Iterations without anything to tell after which that is said."""
_NO_PARAMETERS = (
    "none of the chosen modules has parameters of its own; those of the modules below are told with a glob "
    "that matches these, such as 'mlp*'"
)
_NO_STEP = "its optimizer has not stepped yet, or its steps are not seen, as in compiled code"
_NO_METRICS = "nothing is reported: the loop tells metrics by scope.step(loss=...)"


class _Watch(Sink, Protocol):
    """A watch as it is known here."""

    owner: str


class BoundaryEvents:
    """Tells watches of what they have asked for at the ends of iterations, and what became of that."""

    def __init__(self) -> None:
        self.metrics = MetricEvents()
        self._parameters = ParameterEvents()
        self._tallies: dict[_Watch, tuple[Tally, int]] = {}

    def follow(self, boundaries: Boundaries, optimizers: Callable[[], Iterable[Optimizer]]) -> None:
        """Learn of iterations there, while anybody watches; `optimizers` gives those that are known."""
        self._parameters.follow(boundaries, optimizers)

    def add(self, watch: _Watch, registered: Registered, chosen: Sequence[Located]) -> tuple[str, ...]:
        """Tell a watch from here on, a safe point. Gives notes for it."""
        tally, step = Tally(), registered.step_count()
        notes: tuple[str, ...] = ()
        if watch.kinds.intersection(PARAMETER_KINDS):
            self._tallies[watch] = tally, step
            if not self._parameters.add(watch, registered.name, chosen, step, tally):
                notes = (_NO_PARAMETERS,)
        if METRIC in watch.kinds:
            self._tallies[watch] = tally, step
            self.metrics.add(watch, registered.name, tally)
        return notes

    def remove(self, watch: _Watch) -> None:
        """Tell it no more. Idempotent."""
        self._parameters.remove(watch)
        self.metrics.remove(watch)
        self._tallies.pop(watch, None)

    def states(self, watch: _Watch, watch_id: str, step: int) -> list[HookState]:
        """What becomes of what it watches here; `step`: step_count now."""
        tally, since = self._tallies.get(watch, (None, 0))
        return (
            []
            if tally is None
            else [self._state(told, watch.owner, watch_id, step - since) for told in tally.listing()]
        )

    def _state(self, told: Told, owner: str, watch_id: str, passed: int) -> HookState:
        if told.kind == METRIC:
            reason = self.metrics.fault
            if not reason and not told.fired and passed >= _SILENT:
                reason = _NO_METRICS
        else:
            reason = self._parameters.fault or told.reason
            if not reason and not told.fired and told.missed >= _SILENT:
                reason = _NO_STEP
        state: State = "blind" if reason else "fired" if told.fired else "armed"
        return HookState(
            told.path, told.kind, owner, (watch_id,), told.fired, told.last_step, state=state, reason=reason
        )
