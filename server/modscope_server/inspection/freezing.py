"""Freezing parameters and thawing them, without breaking the training that goes on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from modscope_server.inspection.backup import writing_to
from modscope_server.inspection.breakage import check_freeze, wrapper_around
from modscope_server.inspection.changes import Change
from modscope_server.inspection.commands import glob_of, named
from modscope_server.inspection.memento import Memento
from modscope_server.inspection.norm_stats import NormHolds, norm_layers
from modscope_server.inspection.optimizer_memory import (
    keep_history,
    keep_memory,
    leave_out,
    leaves_out,
    needs_preparing,
    prepare,
    take_in,
    takes_in,
)
from modscope_server.inspection.optimizer_search import held_by_any
from modscope_server.inspection.optimizers import Groups
from modscope_server.inspection.parameters import located_parameters
from modscope_server.inspection.records import Located, LocatedTensor
from modscope_server.inspection.selection import no_parameter, select_located_parameters
from modscope_server.inspection.tensors import has_grad
from modscope_server.inspection.trainable import check_dtype, check_leaf

__all__ = ["plan_freeze", "plan_unfreeze"]


def plan_freeze(
    root: nn.Module,
    glob: str = "",
    type: str = "",
    groups: Groups | None = None,
    *,
    force: bool = False,
    norm_stats: bool = False,
    program: str = "modscope",
    scaled: Iterable[Optimizer] = (),
    holds: NormHolds | None = None,
) -> Change:
    """Plan to set requires_grad to False, so that the values stay bit for bit as they are.

    A parameter that an optimizer holds gets grad None, since a step would still move it along a zero
    gradient; one that none holds keeps its gradient, zeroed. LBFGS, which moves what has no gradient, too,
    is made to leave it out. `norm_stats`: the running statistics of normalisation layers that own one, or
    that the glob selects as modules, are held, too. `scaled`: optimizers that a GradScaler steps.
    `program`: how commands in notes begin.

    Raises NoMatch, BadGlobError, NotMaterialized, and WouldBreakTraining, unless `force`, where nothing of
    the model or of such an optimizer would be left to train, or where DDP or FSDP wraps a parameter.
    """
    groups, holds = groups or Groups.of(()), holds or NormHolds()
    located = select_located_parameters(root, glob, type)
    layers = norm_layers(root, located, glob, type)
    if not located and not (norm_stats and layers):
        raise no_parameter(glob, type)
    _check_leaves(located)
    if not force:
        check_freeze({id(one.tensor) for one in located}, root, scaled)
    memento = _flags(located)
    held = _held(located, groups)
    for one in located:
        # One that is only taken off keeps its elements.
        memento.keep_gradient(one.tensor, copy=id(one.tensor) not in held)
    for optimizer, params in groups.by_optimizer(_tensors(located)):
        if leaves_out(optimizer, params):
            keep_history(memento, optimizer)
    for layer in layers if norm_stats else ():
        holds.keep(memento, layer.module, root)

    def apply() -> tuple[str, ...]:
        notes = _freeze(located, groups, held)
        if norm_stats:
            return notes + _hold(layers, holds, root)
        return notes + _moving(layers, holds, root, program)

    return Change(tuple(one.path for one in located), memento, apply)


def plan_unfreeze(
    root: nn.Module,
    glob: str = "",
    type: str = "",
    groups: Groups | None = None,
    *,
    program: str = "modscope",
    holds: NormHolds | None = None,
) -> Change:
    """Plan to set requires_grad to True, and to let running statistics move that a freeze holds.

    Raises NoMatch, BadGlobError, NotMaterialized, and DtypeMismatch where one of the tensors has a dtype
    that takes no gradient.
    """
    groups, holds = groups or Groups.of(()), holds or NormHolds()
    located = select_located_parameters(root, glob, type)
    layers = [one for one in norm_layers(root, located, glob, type) if one.module in holds]
    if not located and not layers:
        raise no_parameter(glob, type)
    for one in located:
        check_dtype(one)
    _check_leaves(located)
    memento = _flags(located)
    for optimizer, params in groups.by_optimizer(_tensors(located)):
        if takes_in(optimizer, params):
            keep_history(memento, optimizer)
        elif needs_preparing(optimizer):
            keep_memory(memento, optimizer, params)
    for layer in layers:
        holds.keep(memento, layer.module, root)

    def apply() -> tuple[str, ...]:
        notes = _unfreeze(located, groups, root, program)
        for layer in layers:
            holds.release(layer.module)
        if layers:
            notes += (f"running statistics move again: {named(one.path for one in layers)}",)
        return notes

    return Change(tuple(one.path for one in located), memento, apply)


def _flags(located: Iterable[LocatedTensor]) -> Memento:
    memento = Memento()
    for one in located:
        memento.keep_flag(one.path, one.tensor)
    return memento


def _held(located: Sequence[LocatedTensor], groups: Groups) -> set[int]:
    """Ids of those that an optimizer holds; one that is not known is looked for where a gradient needs it."""
    known = {id(one) for one in _tensors(located) if groups.holds(one)}
    return known | held_by_any(one for one in _tensors(located) if id(one) not in known and has_grad(one))


def _freeze(located: Sequence[LocatedTensor], groups: Groups, held: set[int]) -> tuple[str, ...]:
    already = sum(not place.tensor.requires_grad for place in located)
    notes = _already(already, len(located), "frozen")
    for optimizer, params in groups.by_optimizer(_tensors(located)):
        if leave_out(optimizer, params):
            notes += (_begins_anew(optimizer, "their share of its history would move them"),)
    for tensor in _tensors(located):
        tensor.requires_grad = False
        if not has_grad(tensor):
            continue
        if id(tensor) in held:
            tensor.grad = None
        elif tensor.grad is not None:
            with writing_to(tensor.grad):
                tensor.grad.zero_()
    return notes


def _unfreeze(
    located: Sequence[LocatedTensor], groups: Groups, root: nn.Module, program: str
) -> tuple[str, ...]:
    already = sum(place.tensor.requires_grad for place in located)
    notes = _already(already, len(located), "trainable")
    wrapper = wrapper_around(root, {id(place.tensor) for place in located if not place.tensor.requires_grad})
    for place in located:
        place.tensor.requires_grad = True
    for optimizer, params in groups.by_optimizer(_tensors(located)):
        prepare(optimizer, params)
        if take_in(optimizer, params):
            notes += (_begins_anew(optimizer, "its history knows nothing of them"),)
    if wrapper:
        notes += (f"{wrapper} was built while they were frozen: it will not reduce their gradients",)
    unheld = [place.path for place in located if not groups.holds(place.tensor)]
    if unheld:
        notes += (f"no optimizer holds {named(unheld)}: {_remedy(root, unheld, groups, program)}",)
    return notes


def _remedy(root: nn.Module, unheld: Sequence[str], groups: Groups, program: str) -> str:
    """The command that gives them to an optimizer; of several groups to the largest."""
    listed = list(groups)
    if not listed:
        return "none is known here; give it in attach(model, optimizer), or let it step once"
    glob = glob_of(unheld, (one.path for one in located_parameters(root)))
    largest = max(listed, key=lambda group: len(group.params))
    which = f" --group {largest.index}" if len(listed) > 1 else ""
    return f"to have them trained, {program} optim add {glob}{which}"


def _hold(layers: Sequence[Located], holds: NormHolds, root: nn.Module) -> tuple[str, ...]:
    for layer in layers:
        holds.hold(layer.module, root)
    if not layers:
        return ("none of the modules has running statistics",)
    return (f"running statistics held: {named(one.path or '(root)' for one in layers)}", *holds.notes)


def _moving(layers: Sequence[Located], holds: NormHolds, root: nn.Module, program: str) -> tuple[str, ...]:
    """Tells which layers still update their statistics, and how to stop it."""
    moving = [one for one in layers if one.module not in holds and (one.module.training or not root.training)]
    if not moving:
        return ()
    glob = glob_of([one.path for one in moving])
    return (
        f"running statistics still move: {named(one.path or '(root)' for one in moving)}; "
        f"to stop that, {program} freeze --norm-stats {glob}",
    )


def _tensors(located: Iterable[LocatedTensor]) -> list[torch.Tensor]:
    return [one.tensor for one in located]


def _check_leaves(located: Iterable[LocatedTensor]) -> None:
    for one in located:
        if not is_lazy(one.tensor):
            check_leaf(one, "its requires_grad is fixed")


def _already(already: int, total: int, what: str) -> tuple[str, ...]:
    return (f"{already} of {total} were {what} before",) if already else ()


def _begins_anew(optimizer: Optimizer, why: str) -> str:
    return f"{optimizer.__class__.__name__} begins its history anew: {why}"
