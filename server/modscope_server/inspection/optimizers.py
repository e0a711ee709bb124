"""Which optimizer holds which parameter, and what it keeps of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from modscope_server.errors import BadRequest
from modscope_server.inspection.members import tensors
from modscope_server.inspection.optimizer_memory import begin_anew
from modscope_server.inspection.param_groups import held_by
from modscope_server.inspection.walk import walk

__all__ = ["Group", "Groups"]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A live parameter group."""

    index: int
    """Counted over all optimizers."""
    optimizer: Optimizer
    place: int
    """Its index in its optimizer."""
    options: dict[str, Any]
    """The group itself: its hyper-parameters and its "params"."""

    @property
    def params(self) -> list[torch.Tensor]:
        """The parameters that it holds, as they are now."""
        return list(self.options["params"])

    def __str__(self) -> str:
        return f"group {self.index} ({type(self.optimizer).__name__})"


class Groups:
    """The parameter groups of some optimizers, as they are now. Parameters are told by identity."""

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self._optimizers = list(optimizers)
        self._index: dict[int, int] = {}
        self._holders: dict[int, list[Optimizer]] = {}
        self._kept: list[torch.Tensor] = []
        self._groups: list[Group] = []
        for optimizer in self._optimizers:
            for place, options in enumerate(list(optimizer.param_groups)):
                group = Group(len(self._groups), optimizer, place, options)
                self._groups.append(group)
                for param in group.params:
                    self._kept.append(param)
                    self._index.setdefault(id(param), group.index)
                    holders = self._holders.setdefault(id(param), [])
                    if optimizer not in holders:
                        holders.append(optimizer)

    @classmethod
    def of(cls, optimizers: Iterable[Optimizer]) -> Groups:
        """The groups of the optimizers, counted in their order."""
        return cls(optimizers)

    def __iter__(self) -> Iterator[Group]:
        """The groups, in the order of their index."""
        return iter(self._groups)

    def index(self, param: torch.Tensor) -> int | None:
        """Index of the group that holds the parameter, counted over all optimizers; None where none does."""
        return self._index.get(id(param))

    def holds(self, param: torch.Tensor) -> bool:
        """Whether any optimizer holds the parameter."""
        return id(param) in self._index

    def holders(self, param: torch.Tensor) -> list[Optimizer]:
        """The optimizers that hold the parameter."""
        return list(self._holders.get(id(param), ()))

    def by_optimizer(self, params: Iterable[torch.Tensor]) -> list[tuple[Optimizer, list[torch.Tensor]]]:
        """The optimizers that hold any of the parameters, each with those that it holds."""
        held: dict[int, tuple[Optimizer, list[torch.Tensor]]] = {}
        for param in params:
            for optimizer in self.holders(param):
                held.setdefault(id(optimizer), (optimizer, []))[1].append(param)
        return list(held.values())

    def state(self, param: torch.Tensor, key: str) -> torch.Tensor:
        """What an optimizer keeps of the parameter under a key; a plain number as a 0-dimensional tensor.

        Raises BadRequest, which names the keys that there are.
        """
        found: list[str] = []
        for optimizer in self.holders(param):
            kept = optimizer.state.get(param) or {}
            value = kept.get(key)
            if isinstance(value, torch.Tensor):
                return value
            if isinstance(value, (bool, int, float)):
                return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
            found += [
                str(name)
                for name, entry in list(kept.items())
                if isinstance(entry, (torch.Tensor, int, float))
            ]
        raise BadRequest(
            f"no optimizer state {key!r} of this parameter", hint=self._hint(param, found), field="what"
        )

    def clear_state(self, param: torch.Tensor) -> bool:
        """Makes the optimizers begin anew with the parameter; whether any of them had state of it."""
        cleared = [begin_anew(optimizer, param) for optimizer in self.holders(param)]
        return any(cleared)

    def count_for(self, root: nn.Module) -> int:
        """How many of the optimizers hold a parameter of the model."""
        own = {
            id(t)
            for visit in walk(root).visits
            if visit.first
            for _, t in tensors(visit.module, "_parameters")
        }
        return sum(any(id(param) in own for param in held_by(optimizer)) for optimizer in self._optimizers)

    def _hint(self, param: torch.Tensor, keys: list[str]) -> str:
        if not self.holds(param):
            return 'no optimizer known here holds it; "value" and "grad" can be read'
        if not keys:
            return 'the optimizer keeps none before its first step; "value" and "grad" can be read'
        return f"it is one of: value, grad, {', '.join(dict.fromkeys(keys))}"
