"""How many parameter elements each subtree has, ties once, in near-linear time.

A tensor that stands at several modules counts once for every module, less once for the lowest common
ancestor of each two that follow each other in preorder: so each subtree that holds any counts it once.
"""

from __future__ import annotations

import torch
from torch import nn

from modscope_server.inspection.members import children, tensors
from modscope_server.inspection.tensors import numel_of
from modscope_server.inspection.walk import Walk

__all__ = ["reachable", "subtree_counts"]


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


def subtree_counts(walked: Walk) -> tuple[list[int], list[int]]:
    """Parameter elements, and the trainable ones, below each visit; visits that are not first keep zeros."""
    with torch._C.DisableTorchFunctionSubclass():
        return _subtree_counts(walked)


def _subtree_counts(walked: Walk) -> tuple[list[int], list[int]]:
    size = len(walked.visits)
    elements, trainable = [0] * size, [0] * size
    parents, links = walked.parents, walked.links
    closures: dict[int, list[torch.Tensor]] = {}
    last: dict[int, int] = {}
    kept: list[torch.Tensor] = []
    for position, (_, _, module, _, _, first, _) in enumerate(walked.visits):
        if not first:
            continue
        shared = links.get(position)
        if shared is None and module.__dict__.get("_parameters") == {}:
            continue
        own = [t for _, t in tensors(module, "_parameters")]
        for below in shared or ():
            own += _closure(below, closures)
        for t in own:
            key = id(t)
            before = last.get(key)
            if before == position:
                continue
            last[key] = position
            count = numel_of(t)
            elements[position] += count
            counted = count if t.requires_grad else 0
            trainable[position] += counted
            if before is None:
                kept.append(t)
                continue
            common = position
            while common > before:
                common = parents[common]
            elements[common] -= count
            trainable[common] -= counted
    for position in range(size - 1, 0, -1):
        if elements[position] or trainable[position]:
            above = parents[position]
            elements[above] += elements[position]
            trainable[above] += trainable[position]
    return elements, trainable


def _closure(module: nn.Module, known: dict[int, list[torch.Tensor]]) -> list[torch.Tensor]:
    """All parameters below a module, each once."""
    found = known.get(id(module))
    if found is None:
        unique = {id(t): t for m in reachable(module) for _, t in tensors(m, "_parameters")}
        found = known[id(module)] = list(unique.values())
    return found
