"""Statistics of parameters and of their gradients, as the conditions of breaks ask for them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import torch
from torch.optim.optimizer import Optimizer

from modscope_server.errors import NotMaterialized
from modscope_server.inspection.members import member
from modscope_server.inspection.selection import LocatedTensor, select_located_parameters
from modscope_server.inspection.statistics import Reduction, reduce
from modscope_server.runtime.registry import Registered, Registry

__all__ = ["Gradients", "Selected", "named_models"]

_LOOK_AGAIN = 1.0
_SHARE = 0.01
"""Most of the time that looking parameters up again may take."""


def named_models(registry: Registry, selector: str) -> tuple[list[Registered], str]:
    """The models that a selector means, and its glob: `MODEL/GLOB` means that one, a glob alone all."""
    for name in sorted(registry.names, key=len, reverse=True):
        if selector.startswith(f"{name}/"):
            return [registry.get(name)], selector[len(name) + 1 :]
    return [registry.get(name) for name in registry.names], selector


class Selected:
    """The parameters that a selector means, each tensor once.

    Selecting costs more than a small step: it is done again after a second at the earliest. In between
    a parameter is found by its name in the module that owns it, so that a new tensor there is seen.
    """

    def __init__(self, registry: Registry, selector: str) -> None:
        self._models, self._glob = named_models(registry, selector)
        self._places: list[LocatedTensor] = []
        self._again = 0.0

    def now(self) -> dict[int, torch.Tensor]:
        """The tensors by their ids."""
        began = time.monotonic()
        if began >= self._again:
            self._places = self.look_up()
            ended = time.monotonic()
            self._again = ended + max(_LOOK_AGAIN, (ended - began) / _SHARE)
        tensors = (member(place.owner, "_parameters", place.name) for place in self._places)
        return {id(tensor): tensor for tensor in tensors if tensor is not None}

    def look_up(self) -> list[LocatedTensor]:
        """Where they are."""
        return [
            place for model in self._models for place in select_located_parameters(model.root, self._glob)
        ]


class Gradients:
    """The gradients of one iteration: those that an optimizer used, then those that are there at its end."""

    def __init__(self, selected: Selected) -> None:
        self._selected = selected
        self._step = -1
        self._used: dict[int, Reduction] = {}

    def updated(self, step: int, optimizer: Optimizer) -> None:
        """This optimizer has stepped; its gradients are still there."""
        if step != self._step:
            self._step, self._used = step, {}
        held = {id(param) for group in optimizer.param_groups for param in group["params"]}
        for key, tensor in self._selected.now().items():
            if key in held:
                self._used.update((key, reduction) for reduction in reduced([tensor.grad]))

    def at(self, step: int, *, present: bool) -> list[Reduction]:
        """What there was in this iteration. `present`: what is there now belongs to it, too."""
        used = self._used if self._step == step else {}
        found = list(used.values())
        if present:
            rest = (tensor.grad for key, tensor in self._selected.now().items() if key not in used)
            found += reduced(rest)
        return found


def reduced(tensors: Iterable[torch.Tensor | None]) -> Iterator[Reduction]:
    """The reductions of those that are there and have plain elements."""
    for tensor in tensors:
        if tensor is not None:
            try:
                yield reduce(tensor)
            except NotMaterialized:
                continue
