"""Which optimizer holds which parameter, and what it keeps of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.optim import LBFGS, Adagrad, Optimizer

from modscope_server.errors import BadRequest
from modscope_server.inspection.members import tensors
from modscope_server.inspection.walk import walk

__all__ = ["Groups"]


class Groups:
    """The parameter groups of some optimizers, as they are now. Parameters are told by identity."""

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self._optimizers = list(optimizers)
        self._index: dict[int, int] = {}
        self._holders: dict[int, list[Optimizer]] = {}
        self._kept: list[torch.Tensor] = []
        index = 0
        for optimizer in self._optimizers:
            for group in list(optimizer.param_groups):
                for param in list(group["params"]):
                    self._kept.append(param)
                    self._index.setdefault(id(param), index)
                    holders = self._holders.setdefault(id(param), [])
                    if optimizer not in holders:
                        holders.append(optimizer)
                index += 1

    @classmethod
    def of(cls, optimizers: Iterable[Optimizer]) -> Groups:
        """The groups of the optimizers, counted in their order."""
        return cls(optimizers)

    def index(self, param: torch.Tensor) -> int | None:
        """Index of the group that holds the parameter, counted over all optimizers; None where none does."""
        return self._index.get(id(param))

    def holds(self, param: torch.Tensor) -> bool:
        """Whether any optimizer holds the parameter."""
        return id(param) in self._index

    def holders(self, param: torch.Tensor) -> list[Optimizer]:
        """The optimizers that hold the parameter."""
        return list(self._holders.get(id(param), ()))

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
        cleared = False
        for optimizer in self.holders(param):
            if isinstance(optimizer, LBFGS):
                cleared |= bool(optimizer.state)
                optimizer.state.clear()
            elif isinstance(optimizer, Adagrad):
                cleared |= _restart_adagrad(optimizer, param)
            else:
                cleared |= bool(optimizer.state.pop(param, None))
        return cleared

    def count_for(self, root: nn.Module) -> int:
        """How many of the optimizers hold a parameter of the model."""
        own = {
            id(t)
            for visit in walk(root).visits
            if visit.first
            for _, t in tensors(visit.module, "_parameters")
        }
        return sum(any(id(param) in own for param in _params(optimizer)) for optimizer in self._optimizers)

    def _hint(self, param: torch.Tensor, keys: list[str]) -> str:
        if not self.holds(param):
            return 'no optimizer known here holds it; "value" and "grad" can be read'
        if not keys:
            return 'the optimizer keeps none before its first step; "value" and "grad" can be read'
        return f"it is one of: value, grad, {', '.join(dict.fromkeys(keys))}"


def _params(optimizer: Optimizer) -> Iterator[torch.Tensor]:
    for group in list(optimizer.param_groups):
        yield from list(group["params"])


@torch.no_grad()
def _restart_adagrad(optimizer: Adagrad, param: torch.Tensor) -> bool:
    """Adagrad makes its state when it is built and fails without it, so it goes back to that."""
    kept = optimizer.state.get(param)
    if not kept:
        return False
    for group in optimizer.param_groups:
        if any(held is param for held in group["params"]):
            start = group.get("initial_accumulator_value", 0.0)
            kept["sum"].fill_(complex(start, start) if torch.is_complex(param) else start)
            kept["step"].zero_()
    return True
