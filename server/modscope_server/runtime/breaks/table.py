"""The breaks that are set, and which of them a step boundary meets."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch.optim.optimizer import Optimizer

from modscope_server.errors import LimitExceeded, UnknownBreak
from modscope_server.runtime.breaks.evaluation import evaluate
from modscope_server.runtime.breaks.parser import parse
from modscope_server.runtime.breaks.sources import Sources
from modscope_server.runtime.breaks.syntax import Statistic, TruthNode, leaves
from modscope_server.runtime.modes import neutral_modes
from modscope_server.runtime.queue import Place

__all__ = ["Break", "BreakTable"]

_LOG = logging.getLogger("modscope_server")
_MOST = 64


@dataclass(slots=True, eq=False)
class Break:
    """A condition that pauses the run."""

    id: str
    """Identifies it on this server."""
    expression: str
    """The condition, as it was given."""
    condition: TruthNode
    lease_seconds: float
    """Seconds for which it holds the run, unless somebody renews the lease."""
    who: str
    """Who has set it."""
    hits: int = 0
    """How often it has paused the run."""
    fault: str = ""
    """Why it is looked at no more; empty while it is."""


class BreakTable:
    """Threads of the server add and clear, the training thread looks, at tuples that are never changed."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._mutex = threading.Lock()
        self._numbers = itertools.count(1)
        self._breaks: tuple[Break, ...] = ()
        self._met: tuple[int, set[str]] = (-1, set())

    def __len__(self) -> int:
        return len(self._breaks)

    def __iter__(self) -> Iterator[Break]:
        """In the order of their setting."""
        return iter(self._breaks)

    def add(self, expression: str, lease_seconds: float, who: str) -> Break:
        """Set a break. Where its condition looks at hooks, call it at a safe point.

        Raises BadExpression, LimitExceeded.
        """
        condition = parse(expression)
        with self._mutex:
            if len(self._breaks) >= _MOST:
                raise LimitExceeded(
                    f"{_MOST} breaks are set, as many as there may be",
                    hint="clear some: `modscope run clear`",
                )
            added = Break(f"break-{next(self._numbers)}", expression, condition, lease_seconds, who)
            breaks = (*self._breaks, added)
            self._sources.need(one.condition for one in breaks)
            self._breaks = breaks
        return added

    def clear(self, ids: Collection[str]) -> list[Break]:
        """Take these away, all where none is named. Raises UnknownBreak, and takes none away then."""
        with self._mutex:
            known = {one.id for one in self._breaks}
            unknown = [id for id in ids if id not in known]
            if unknown:
                raise UnknownBreak(
                    f"no break {unknown[0]!r}",
                    hint="see `modscope run breaks` for those that are set",
                    field="ids",
                )
            gone = [one for one in self._breaks if not ids or one.id in ids]
            self._breaks = tuple(one for one in self._breaks if one not in gone)
            self._sources.need(one.condition for one in self._breaks)
        return gone

    def notes(self, one: Break) -> tuple[str, ...]:
        """What it cannot see. Touches the structure of models."""
        return (one.fault,) if one.fault else self._sources.notes(one.condition)

    def updated(self, step: int, optimizer: Optimizer) -> None:
        """An optimizer has stepped, and its gradients are still there."""
        try:
            with neutral_modes():
                self._sources.updated(step, optimizer)
        except Exception as error:
            for one in self._breaks:
                if any(
                    leaf.origin == "grad" for leaf in leaves(one.condition) if isinstance(leaf, Statistic)
                ):
                    _fail(one, error)

    def look(self, step: int, place: Place) -> Break | None:
        """The first break whose condition holds at this boundary; each is met once a step at most."""
        if self._met[0] != step:
            self._met = (step, set())
        met = self._met[1]
        with neutral_modes():
            self._sources.begin(step, place)
            for one in self._breaks:
                if one.id not in met and self._holds(one):
                    met.add(one.id)
                    one.hits += 1
                    return one
        return None

    def _holds(self, one: Break) -> bool:
        if one.fault:
            return False
        try:
            return evaluate(one.condition, self._sources) is True
        except Exception as error:
            _fail(one, error)
            return False


def _fail(one: Break, error: Exception) -> None:
    if not one.fault:
        one.fault = f"it failed and is looked at no more: {type(error).__name__}: {error}"
        _LOG.error("%s: %s failed; training goes on", one.id, one.expression, exc_info=error)
