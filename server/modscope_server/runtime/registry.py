"""The registered models and the optimizers that hold their parameters."""

from __future__ import annotations

import shlex
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim.optimizer import Optimizer

from modscope_server.errors import UnknownModel
from modscope_server.inspection.optimizers import Groups

__all__ = ["Registered", "Registry"]


@dataclass(frozen=True)
class Registered:
    """A registered root module."""

    name: str
    root: nn.Module
    groups: Callable[[], Groups]
    """The optimizer groups known now, over all optimizers."""
    step_count: Callable[[], int]
    """Completed training iterations."""
    program: str = "modscope"
    """How a command about this model begins: with its name, where there are several."""


class Registry:
    """Models by name, and the optimizers that were given or have been seen to step.

    Args:
        models: roots by name, in order.
        optimizers: the optimizers given to attach; others are found when they step, by the
            identity of their parameters.
    """

    def __init__(self, models: Mapping[str, nn.Module], optimizers: Sequence[Optimizer] = ()) -> None:
        self.models = dict(models)
        self._given = list(optimizers)
        self.ours = {id(optimizer) for optimizer in optimizers}
        """Ids of the optimizers that are known to hold parameters of these models."""
        self._found: weakref.WeakKeyDictionary[Optimizer, None] = weakref.WeakKeyDictionary()
        self._strangers: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        """Optimizers that held nothing of these models, with how many parameters they held then."""
        self._step_count: Callable[[], int] = lambda: 0

    def count_steps_with(self, step_count: Callable[[], int]) -> None:
        """Take the step count from here."""
        self._step_count = step_count

    @property
    def names(self) -> list[str]:
        """Names in the order of registration."""
        return list(self.models)

    def get(self, name: str = "") -> Registered:
        """The model of that name; "" means the only one. Raises UnknownModel."""
        if not name and len(self.models) == 1:
            name = next(iter(self.models))
        if name not in self.models:
            listed = ", ".join(map(repr, self.models))
            raise UnknownModel(
                f"there is no model {name!r}" if name else "there are several models: name one",
                hint=f"the models are {listed}",
                field="model",
            )
        program = f"modscope --model {shlex.quote(name)}" if len(self.models) > 1 else "modscope"
        return Registered(name, self.models[name], self.groups, self._step_count, program)

    def optimizers(self) -> list[Optimizer]:
        """Those given, then those found."""
        return self._given + list(self._found)

    def groups(self) -> Groups:
        """Their parameter groups, numbered over all of them."""
        return Groups.of(self.optimizers())

    def holds(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer's steps concern these models. Remembered after the first time."""
        return id(optimizer) in self.ours or self._finds(optimizer)

    def _finds(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer that was not known to be ours is; looked at again when it takes parameters."""
        held = [id(param) for group in optimizer.param_groups for param in group["params"]]
        if self._strangers.get(optimizer) == len(held):
            return False
        mine = {id(parameter) for root in self.models.values() for parameter in root.parameters()}
        if mine.isdisjoint(held):
            self._strangers[optimizer] = len(held)
            return False
        self._found[optimizer] = None
        self.ours.add(id(optimizer))
        weakref.finalize(optimizer, self.ours.discard, id(optimizer)).atexit = False
        return True
