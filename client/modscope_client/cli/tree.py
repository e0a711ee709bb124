"""Modules as a tree: which lines lead from a module to those below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modscope_client.types import ModuleInfo

__all__ = ["TreeRow", "tree_rows"]

_TEE, _CORNER, _BAR, _BLANK = "├── ", "└── ", "│   ", "    "


@dataclass(frozen=True, slots=True)
class TreeRow:
    """A module and the lines that lead to it."""

    lead: str
    """What stands before its name."""
    module: ModuleInfo
    """The module."""
    folded: bool
    """Whether it has modules below it that the tree leaves out."""


def tree_rows(modules: Sequence[ModuleInfo], depth: int | None = None) -> list[TreeRow]:
    """The modules with their leads, in their own order; at most `depth` levels below the first.

    `modules` are in the order of nn.Module.named_modules, the module on top first. Takes any
    depth: nothing here recurses.
    """
    parents, levels = _parents(modules)
    shown = [i for i in range(len(modules)) if depth is None or levels[i] <= depth]
    last_child = {parents[i]: i for i in shown}
    inherited: dict[int, str] = {}
    rows = []
    for i in shown:
        parent = parents[i]
        is_last = last_child[parent] == i
        above = inherited.get(parent, "")
        inherited[i] = "" if parent < 0 else above + (_BLANK if is_last else _BAR)
        lead = "" if parent < 0 else above + (_CORNER if is_last else _TEE)
        rows.append(TreeRow(lead, modules[i], depth == levels[i] and modules[i].children > 0))
    return rows


def _parents(modules: Sequence[ModuleInfo]) -> tuple[list[int], list[int]]:
    """Position of each module's parent (-1 for the top) and its level below the top."""
    position = {module.path: i for i, module in enumerate(modules)}
    parents: list[int] = []
    levels: list[int] = []
    for i, module in enumerate(modules):
        parent = -1 if i == 0 else _nearest_above(module.path, position)
        parents.append(parent)
        levels.append(levels[parent] + 1 if parent >= 0 else 0)
    return parents, levels


def _nearest_above(path: str, position: dict[str, int]) -> int:
    """Position of the nearest listed module above; a name may hold dots, so ever shorter ones are tried."""
    while path:
        path = path.rpartition(".")[0]
        if path in position:
            return position[path]
    return 0
