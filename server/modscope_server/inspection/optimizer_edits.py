"""Setting the hyper-parameters of optimizer groups, so that schedulers and compiled steps go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Rprop

from modscope_server.errors import BadRequest, NoMatch
from modscope_server.inspection.changes import Change
from modscope_server.inspection.counts import reachable
from modscope_server.inspection.hyperparameters import converted, names, plain
from modscope_server.inspection.members import parameters
from modscope_server.inspection.memento import Memento
from modscope_server.inspection.optimizer_objections import objection_to_options
from modscope_server.inspection.optimizers import Group, Groups
from modscope_server.inspection.records import Plain
from modscope_server.inspection.schedulers import Schedulers, number, set_number

__all__ = ["chosen_group", "plan_set_optimizer"]


def plan_set_optimizer(
    root: nn.Module,
    groups: Groups,
    values: Mapping[str, Plain],
    group: int | None = None,
    *,
    base_lr: bool = False,
    schedulers: Schedulers | None = None,
    program: str = "modscope",
) -> Change:
    """Plan to set hyper-parameters of a group, or of every group that has parameters of the model.

    Each must be there already and keeps its kind. A new lr lasts until a scheduler sets it again;
    `base_lr` changes what schedulers compute from, too. `program`: how commands in notes begin. Raises
    NoMatch for a group that is not there, BadRequest for what the optimizer would not take.
    """
    chosen = _groups_of(root, groups) if group is None else [chosen_group(groups, group)]
    if not values:
        raise BadRequest("no hyper-parameter is named", hint="such as lr=3e-4", field="hyperparameters")
    if base_lr and "lr" not in values:
        raise BadRequest("base_lr goes with a new lr", hint="add lr=...", field="base_lr")
    edits = [_edit(one, values) for one in chosen]
    known = schedulers or Schedulers()
    memento = Memento()
    for one in chosen:
        memento.keep_groups(one.optimizer)
        if base_lr:
            for bases, place in known.bases(one):
                _keep_base(memento, bases, place)

    def apply() -> tuple[str, ...]:
        notes: list[str] = []
        for edit in edits:
            notes += _apply(edit, known, program, base_lr=base_lr)
        return tuple(notes)

    return Change((), memento, apply)


def chosen_group(groups: Groups, index: int) -> Group:
    """The group of that index. Raises NoMatch, which lists those that there are."""
    listed = [str(group) for group in groups]
    found = next((group for group in groups if group.index == index), None)
    if found is None:
        what = f"there is no optimizer group {index}" if listed else "no optimizer is known here"
        raise NoMatch(what, hint=_listed(listed), field="group")
    return found


@dataclass(frozen=True)
class _Edit:
    group: Group
    values: Mapping[str, Any]
    """What is set, of the kind that is there."""
    before: Mapping[str, Plain] = field(default_factory=dict)


def _edit(group: Group, values: Mapping[str, Plain]) -> _Edit:
    for name in values:
        if name not in names(group):
            raise BadRequest(
                f"{group} has no hyper-parameter {name!r}",
                hint=f"it has {', '.join(names(group))}",
                field=f"hyperparameters.{name}",
            )
    wanted = {name: converted(group, name, values[name]) for name in names(group) if name in values}
    objection = objection_to_options(group, wanted)
    if objection:
        raise BadRequest(
            f"{group} cannot go on with {_told(wanted)}: {objection}",
            hint="give another value, or build the optimizer anew in the training script",
            field=f"hyperparameters.{next(iter(wanted))}",
        )
    return _Edit(group, wanted, {name: plain(group.options[name]) for name in wanted})


def _apply(edit: _Edit, schedulers: Schedulers, program: str, *, base_lr: bool) -> list[str]:
    group, options = edit.group, edit.group.options
    base, more = schedulers.base_lr(group), []
    for name, value in edit.values.items():
        _set(options, name, value)
    lr = number(options.get("lr"))
    if base_lr and lr is not None:
        more = _set_base(group, lr, schedulers)
    changes = [f"{name} {edit.before[name]} -> {plain(options[name])}" for name in edit.values]
    if base_lr and base is not None:
        changes.append(f"base_lr {base} -> {lr}")
    notes = [f"{group}: {', '.join(changes)}", *more]
    if "lr" not in edit.values:
        return notes
    if not base_lr and (warning := schedulers.warning(group)):
        notes.append(
            f"{warning}: {program} optim set lr={lr} --group {group.index} --base-lr changes that, too"
        )
    if isinstance(group.optimizer, Rprop) and group.optimizer.state:
        notes.append("Rprop uses lr at its first step alone: it goes on with the step sizes that it has")
    return notes


def _set_base(group: Group, lr: float, schedulers: Schedulers) -> list[str]:
    bases = schedulers.bases(group)
    for store, place in bases:
        set_number(store, place, lr)
    if "initial_lr" in group.options:
        set_number(group.options, "initial_lr", lr)
        if not bases:
            return [
                f"initial_lr of {group} is {lr} now; schedulers keep base_lrs of their own, and none is "
                "known: attach(extras={'scheduler': scheduler}) tells of one"
            ]
    elif not bases:
        return [f"no scheduler of {group} is known, and it has no initial_lr: nothing to change there"]
    besides = schedulers.besides(group)
    return [besides] if besides else []


@torch.no_grad()
def _set(store: Any, key: Any, value: Any) -> None:
    """Set a hyper-parameter; tensors are filled in place, in tuples, too."""
    present = store[key]
    if isinstance(present, torch.Tensor) and value is not None:
        present.fill_(value)
    elif isinstance(present, (list, tuple)) and any(isinstance(item, torch.Tensor) for item in present):
        items = list(present)
        for place, item in enumerate(value):
            _set(items, place, item)
        store[key] = items if isinstance(present, list) else tuple(items)
    else:
        store[key] = value


def _groups_of(root: nn.Module, groups: Groups) -> list[Group]:
    own = {id(param) for module in reachable(root) for param in parameters(module)}
    chosen = [group for group in groups if any(id(param) in own for param in group.params)]
    if not chosen:
        raise NoMatch(
            "no known optimizer holds a parameter of this model",
            hint="give it in attach(model, optimizer), or let it step once",
            field="group",
        )
    return chosen


def _keep_base(memento: Memento, bases: list[Any], place: int) -> None:
    before = bases[place]
    value = number(before)
    assert value is not None

    def restore() -> None:
        bases[place] = before
        set_number(bases, place, value)

    key = ("base_lrs", id(bases), place)
    memento.keep(key, restore, again=lambda now: _keep_base(now, bases, place))


def _listed(listed: list[str]) -> str:
    if not listed:
        return "give it in attach(model, optimizer), or let it step once"
    return f"there are {', '.join(listed)}"


def _told(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
