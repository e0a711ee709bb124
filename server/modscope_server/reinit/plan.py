"""What a reinitialisation would do, checked whole before anything changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from modscope.paths import join
from modscope_server.errors import BadRequest, NoMatch, NotMaterialized, SchemeUnsuitable
from modscope_server.inspection.commands import named
from modscope_server.inspection.counts import reachable
from modscope_server.inspection.members import member, tensors
from modscope_server.inspection.parameters import located_parameters
from modscope_server.inspection.selection import select_modules
from modscope_server.inspection.tensors import unreadable_reason
from modscope_server.reinit.order import applied
from modscope_server.reinit.schemes import (
    RESET_PARAMETERS,
    Scheme,
    Value,
    checked_arguments,
    find_scheme,
)
from modscope_server.reinit.suitability import (
    SchemeProbe,
    closed_reason,
    computed_names,
    reset_method,
    reset_obstacle,
)

__all__ = ["Action", "Plan", "Step", "plan"]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A tensor that gets new values."""

    path: str
    """Of the parameter, through the module at which nn.Module.apply comes to it first."""
    tensor: torch.Tensor
    scheme: str
    aliases: tuple[str, ...] = ()
    """Other paths of the same tensor, those included that were not selected."""


@dataclass(frozen=True, slots=True, eq=False)
class Action:
    """What the function does that is applied to one module."""

    path: str
    """Of the module."""
    module: nn.Module
    targets: tuple[tuple[str, torch.Tensor], ...]
    """Names and tensors that get new values: own parameters, but for those of an action before."""
    settled: tuple[torch.Tensor, ...] = ()
    """The module's own tensors that an action before has initialised, and that stay so."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A checked reinitialisation."""

    scheme: str
    arguments: Mapping[str, Value]
    seed: int | None
    """None draws from a fresh generator."""
    steps: tuple[Step, ...]
    """What is initialised, in order; a tensor that several paths share once."""
    actions: tuple[Action, ...]
    """All calls, in the order of nn.Module.apply; a module that several parents share once."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the parameters, in the order in which they are initialised; all those of a tied one."""
        return tuple(path for step in self.steps for path in (step.path, *step.aliases))

    @property
    def reach(self) -> tuple[nn.Module, ...]:
        """The modules that a call may change, each once: those of the actions, and all below them."""
        found = {id(module): module for action in self.actions for module in reachable(action.module)}
        return tuple(found.values())


def plan(
    root: nn.Module,
    glob: str = "*",
    type: str = "",
    parameter: str | None = None,
    scheme: str = RESET_PARAMETERS,
    arguments: Mapping[str, Value] | None = None,
    seed: int | None = None,
) -> Plan:
    """Check a reinitialisation of the modules that `glob` and `type` select; changes nothing.

    `parameter`: name of the parameter in its module; None means each of the module's own. Raises
    UnknownScheme, BadRequest, BadGlobError, NoMatch, NotMaterialized, and SchemeUnsuitable, which names
    each tensor or module that the scheme cannot serve.
    """
    found = find_scheme(scheme)
    checked = checked_arguments(found, arguments or {})
    if seed is not None and not 0 <= seed < 2**64:
        raise BadRequest(
            f"a seed is a whole number from 0 to 2**64 - 1, not {seed}",
            hint="give such a number, or leave the seed out for a fresh one",
            field="seed",
        )
    selected = {id(one.module) for one in select_modules(root, glob, type)}
    if not selected:
        raise NoMatch(
            f"no module matches glob {glob!r}" + (f" and type {type!r}" if type else ""),
            hint="modscope modules lists paths and types",
            field="type" if type else "glob",
        )
    calls = [(path, module) for path, module in applied(root) if id(module) in selected]
    parameter = parameter or ""
    actions = _once(_fills(calls, parameter, found, checked) if found else _resets(calls, parameter))
    if not actions:
        raise _nothing(calls, parameter)
    return Plan(scheme, checked, seed, _steps(actions, scheme, root), tuple(actions))


def _refuse_closed(closed: Sequence[str]) -> None:
    if closed:
        raise NotMaterialized(
            f"cannot be initialised: {named(closed)}",
            hint="run or materialize the model first, or leave them out by glob or type",
        )


def _resets(calls: Sequence[tuple[str, nn.Module]], parameter: str) -> list[Action]:
    if parameter:
        raise BadRequest(
            f"reset_parameters sets all of a module's parameters, not {parameter!r} alone",
            hint="name a scheme such as normal_, or leave parameter out",
            field="parameter",
        )
    closed: list[str] = []
    unsuitable: list[str] = []
    actions: list[Action] = []
    for path, module in calls:
        own = tensors(module, "_parameters")
        if reset_method(module) is None and not own:
            continue
        name, reason = closed_reason(module)
        if reason:
            closed.append(f"{join(path, name)} ({reason})")
        obstacle = reset_obstacle(module)
        if obstacle:
            unsuitable.append(f"{path!r} ({module.__class__.__name__}): {obstacle}")
        actions.append(Action(path, module, tuple(own)))
    _refuse_closed(closed)
    if unsuitable:
        raise SchemeUnsuitable(
            f"reset_parameters cannot serve {named(unsuitable)}",
            hint="leave them out by glob or type, or name a scheme such as normal_ for their tensors",
            field="scheme",
        )
    return actions


def _fills(
    calls: Sequence[tuple[str, nn.Module]], parameter: str, scheme: Scheme, arguments: Mapping[str, Value]
) -> list[Action]:
    probe = SchemeProbe(scheme, arguments)
    closed: list[str] = []
    unsuitable: list[str] = []
    actions: list[Action] = []
    for path, module in calls:
        if parameter:
            tensor = member(module, "_parameters", parameter)
            own = [] if tensor is None else [(parameter, tensor)]
            if tensor is None and parameter in computed_names(module):
                unsuitable.append(f"{join(path, parameter)}: it is computed from other tensors")
        else:
            own = tensors(module, "_parameters")
        for name, tensor in own:
            reason = unreadable_reason(tensor)
            if reason:
                closed.append(f"{join(path, name)} ({reason})")
            elif obstacle := probe.obstacle(tensor):
                unsuitable.append(f"{join(path, name)}: {obstacle}")
        if own:
            actions.append(Action(path, module, tuple(own)))
    _refuse_closed(closed)
    if unsuitable:
        raise SchemeUnsuitable(
            f"{scheme.name} cannot serve {named(unsuitable, '; ')}",
            hint='select suitable tensors by glob, type or parameter="weight" (--param weight); '
            "uniform_, normal_, constant_, zeros_ and ones_ serve every shape",
            field="scheme",
        )
    return actions


def _nothing(calls: Sequence[tuple[str, nn.Module]], parameter: str) -> NoMatch:
    names = sorted({name for _, module in calls for name, _ in tensors(module, "_parameters")})
    what = f"a parameter {parameter!r}" if parameter else "parameters of its own"
    hint = f"they have {named(names)}" if names else "select modules that have parameters"
    return NoMatch(f"none of the {len(calls)} selected modules has {what}", hint=hint, field="parameter")


def _once(actions: Sequence[Action]) -> list[Action]:
    """The actions, each without the tensors that one before has initialised; none that has nothing left."""
    seen: set[int] = set()
    once: list[Action] = []
    for action in actions:
        own = [*action.targets, *tensors(action.module, "_buffers")]
        settled = tuple(tensor for _, tensor in own if id(tensor) in seen)
        if own and len(settled) == len(own):
            continue
        targets = tuple((name, tensor) for name, tensor in action.targets if id(tensor) not in seen)
        seen.update(id(tensor) for _, tensor in own)
        once.append(replace(action, targets=targets, settled=settled))
    return once


def _steps(actions: Sequence[Action], scheme: str, root: nn.Module) -> tuple[Step, ...]:
    names = {id(one.tensor): (one.path, *one.aliases) for one in located_parameters(root)}
    steps: list[Step] = []
    for action in actions:
        for name, tensor in action.targets:
            path = join(action.path, name)
            others = tuple(other for other in names.get(id(tensor), ()) if other != path)
            steps.append(Step(path, tensor, scheme, others))
    return tuple(steps)
