"""Giving parameters that no optimizer holds to one, so that it trains them from its next step on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from modscope_server.errors import AlreadyHeld, BadRequest, NotMaterialized
from modscope_server.inspection.backup import writing_to
from modscope_server.inspection.changes import Change
from modscope_server.inspection.commands import glob_of, named
from modscope_server.inspection.memento import Memento
from modscope_server.inspection.optimizer_edits import chosen_group
from modscope_server.inspection.optimizer_memory import keep_newcomers, prepare, take_in
from modscope_server.inspection.optimizer_objections import objection_to_parameters
from modscope_server.inspection.optimizers import Group, Groups
from modscope_server.inspection.records import LocatedTensor
from modscope_server.inspection.selection import no_parameter, select_located_parameters
from modscope_server.inspection.trainable import check_dtype, check_leaf

__all__ = ["plan_add_to_optimizer"]


def plan_add_to_optimizer(
    root: nn.Module, groups: Groups, glob: str, group: int | None = None, *, program: str = "modscope"
) -> Change:
    """Plan to append the parameters that a glob selects to a group, in their order.

    `group`: None is the only one. The state of them is made as the optimizer makes it, and a gradient
    that nobody has cleared so far does not reach its next step. `program`: how commands in notes begin.
    Raises NoMatch, BadGlobError, AlreadyHeld, NotMaterialized, DtypeMismatch, and BadRequest for what the
    optimizer could not step.
    """
    located = select_located_parameters(root, glob)
    if not located:
        raise no_parameter(glob)
    _check_free(located, groups, program)
    _check_kinds(located)
    chosen = _only_group(groups) if group is None else chosen_group(groups, group)
    params = [one.tensor for one in located]
    objection = objection_to_parameters(chosen, params)
    if objection:
        raise BadRequest(
            f"{chosen} cannot take {named(one.path for one in located)}: {objection}",
            hint="choose another group, or give them to an optimizer in the training script",
            field="glob",
        )
    memento = Memento()
    memento.keep_groups(chosen.optimizer)
    keep_newcomers(memento, chosen.optimizer, params)
    for param in params:
        memento.keep_gradient(param)

    def apply() -> tuple[str, ...]:
        return _append(chosen, located, program)

    return Change(tuple(one.path for one in located), memento, apply)


def _append(group: Group, located: Sequence[LocatedTensor], program: str) -> tuple[str, ...]:
    params = [one.tensor for one in located]
    group.options["params"].extend(params)
    if "param_names" in group.options:
        group.options["param_names"].extend(one.raw_path for one in located)
    prepare(group.optimizer, params)
    notes = [f"{group} holds {len(group.options['params'])} parameters now"]
    if take_in(group.optimizer, params, new=True):
        notes.append(f"{type(group.optimizer).__name__} begins its history anew")
    stale = [one.path for one in located if _clear_gradient(one.tensor)]
    if stale:
        notes.append(f"gradients that nobody had cleared were zeroed: {named(stale)}")
    frozen = [one.path for one in located if not one.tensor.requires_grad]
    if frozen:
        notes.append(f"frozen: {named(frozen)}; to have them trained, {program} unfreeze {glob_of(frozen)}")
    return tuple(notes)


def _clear_gradient(tensor: torch.Tensor) -> bool:
    """Let no old gradient reach the next step; whether there was one.

    Zeroed, since a loop may zero it by hand; gone where the tensor is frozen, since optimizers move along
    a zero gradient, too.
    """
    if tensor.grad is None:
        return False
    if not tensor.requires_grad:
        tensor.grad = None
        return True
    with writing_to(tensor.grad):
        tensor.grad.zero_()
    return True


def _only_group(groups: Groups) -> Group:
    listed = list(groups)
    if len(listed) > 1:
        raise BadRequest(
            f"there are {len(listed)} optimizer groups: say which one takes them",
            hint=f"group=N (--group N): {', '.join(map(str, listed))}",
            field="group",
        )
    return chosen_group(groups, 0)


def _check_free(located: Iterable[LocatedTensor], groups: Groups, program: str) -> None:
    index = {one.index: one for one in groups}
    held: dict[int, list[str]] = {}
    free: list[str] = []
    for one in located:
        at = groups.index(one.tensor)
        if at is None:
            free.append(one.path)
        else:
            held.setdefault(at, []).append(one.path)
    if held:
        told = "; ".join(f"{index[at]} holds {named(paths)}" for at, paths in held.items())
        hint = (
            f"the others alone: {program} optim add {glob_of(free)}" if free else "they are trained already"
        )
        raise AlreadyHeld(told, hint=hint, field="glob")


def _check_kinds(located: Iterable[LocatedTensor]) -> None:
    for one in located:
        if is_lazy(one.tensor):
            raise NotMaterialized(f"{one.path} has no shape yet", hint="run the model once, then add it")
        check_leaf(one, "no optimizer can step it")
        check_dtype(one)
