"""How many parameter elements each subtree has, ties once, in near-linear time.

A tensor that stands at several modules counts once for every module, less once for the lowest common
ancestor of each two that follow each other in preorder: so each subtree that holds any counts it once.
"""

from __future__ import annotations

import torch
from torch import nn

from modscope_server.inspection.members import children, parameters
from modscope_server.inspection.tensors import numel_of
from modscope_server.inspection.walk import Walk, walk

__all__ = ["Census", "reachable", "take_census"]


def reachable(module: nn.Module) -> list[nn.Module]:
    """The modules in the subtree, each once, itself first; the order is not PyTorch's."""
    seen = {id(module)}
    found = [module]
    for current in found:
        for _, below in children(current):
            if id(below) not in seen:
                seen.add(id(below))
                found.append(below)
    return found


def take_census(root: nn.Module) -> tuple[Walk, Census]:
    """A walk, and what was read of each module on it."""
    census = Census()
    with torch._C.DisableTorchFunctionSubclass():
        walked = walk(root, census)
    census.add_up(walked.parents)
    return walked, census


class Census:
    """What is read of each module on a walk, by position."""

    def __init__(self) -> None:
        self.types: list[type] = []
        self.training: list[object] = []
        """What the module has under that name; None where it has nothing of its own."""
        self.elements: list[int] = []
        """Parameter elements below; zero for visits that are not first."""
        self.trainable: list[int] = []
        """Those of them that require a gradient."""
        self._last: dict[int, int] = {}
        self._kept: list[torch.Tensor] = []  # so that no identity in _last becomes another tensor's
        self._ties: list[tuple[int, int, int, int]] = []
        self._closures: dict[int, list[torch.Tensor]] = {}

    def visit(self, module: nn.Module, first: bool) -> None:
        """As `Onlooker.visit`: its own parameters count at its position."""
        attributes = module.__dict__
        elements = trainable = 0
        if first and attributes.get("_parameters") != {}:
            elements, trainable = self._new(parameters(module), len(self.elements))
        self.types.append(type(module))
        self.training.append(attributes.get("training"))
        self.elements.append(elements)
        self.trainable.append(trainable)

    def link(self, position: int, module: nn.Module) -> None:
        """As `Onlooker.link`: all parameters below the module count at the position."""
        elements, trainable = self._new(self._closure(module), position)
        self.elements[position] += elements
        self.trainable[position] += trainable

    def add_up(self, parents: list[int]) -> None:
        """Add what is below each visit to what is at it. To be called once, after the walk."""
        elements, trainable = self.elements, self.trainable
        for before, position, count, counted in self._ties:
            common = position
            while common > before:
                common = parents[common]
            elements[common] -= count
            trainable[common] -= counted
        for position in range(len(parents) - 1, 0, -1):
            if elements[position] or trainable[position]:
                above = parents[position]
                elements[above] += elements[position]
                trainable[above] += trainable[position]

    def _new(self, found: list[torch.Tensor], position: int) -> tuple[int, int]:
        """Elements of the tensors that are new at the position, and the trainable ones; ties are noted."""
        last = self._last
        self._kept += found
        elements = trainable = 0
        for t in found:
            key = id(t)
            before = last.get(key)
            if before == position:
                continue
            last[key] = position
            count = numel_of(t)
            counted = count if t.requires_grad else 0
            elements += count
            trainable += counted
            if before is not None:
                self._ties.append((before, position, count, counted))
        return elements, trainable

    def _closure(self, module: nn.Module) -> list[torch.Tensor]:
        """All parameters below a module, each once."""
        found = self._closures.get(id(module))
        if found is None:
            unique = {id(t): t for m in reachable(module) for t in parameters(m)}
            found = self._closures[id(module)] = list(unique.values())
        return found
