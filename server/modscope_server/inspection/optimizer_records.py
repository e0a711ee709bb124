"""Optimizer groups as records."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from modscope_server.inspection.counts import reachable
from modscope_server.inspection.hyperparameters import names, plain
from modscope_server.inspection.members import parameters
from modscope_server.inspection.optimizers import Group, Groups
from modscope_server.inspection.parameters import located_parameters
from modscope_server.inspection.records import OptimizerGroup
from modscope_server.inspection.schedulers import Schedulers, number
from modscope_server.inspection.tensors import dtype_name, shape_of

__all__ = ["optimizer_groups", "unheld_parameters"]

_APART = ("lr", "weight_decay")


def optimizer_groups(
    root: nn.Module, groups: Groups, roots: Iterable[nn.Module] = (), schedulers: Schedulers | None = None
) -> list[OptimizerGroup]:
    """All groups, in the order of their index.

    Args:
        root: the model whose paths are told.
        groups: those of all known optimizers.
        roots: all registered models; a held parameter that none of them has is a stranger.
        schedulers: those that are known.
    """
    paths = {id(one.tensor): one.path for one in located_parameters(root)}
    known = {id(p) for one in (root, *roots) for module in reachable(one) for p in parameters(module)}
    schedulers = schedulers or Schedulers()
    return [_record(group, paths, known, schedulers) for group in groups]


def unheld_parameters(root: nn.Module, groups: Groups) -> list[str]:
    """Paths of the model's parameters that no optimizer holds, in named_parameters order."""
    return [one.path for one in located_parameters(root) if not groups.holds(one.tensor)]


def _record(group: Group, paths: dict[int, str], known: set[int], schedulers: Schedulers) -> OptimizerGroup:
    params = group.params
    keys = (str(key) for param in params for key in list(group.optimizer.state.get(param) or ()))
    return OptimizerGroup(
        optimizer=type(group.optimizer).__name__,
        index=group.index,
        lr=number(group.options.get("lr")),
        weight_decay=number(group.options.get("weight_decay")),
        parameters=tuple(paths[id(param)] for param in params if id(param) in paths),
        options={name: plain(group.options[name]) for name in names(group) if name not in _APART},
        state_keys=tuple(dict.fromkeys(keys)),
        strangers=tuple(f"{dtype_name(p)} {list(shape_of(p))}" for p in params if id(p) not in known),
        base_lr=schedulers.base_lr(group),
        scheduler=schedulers.name(group),
    )
