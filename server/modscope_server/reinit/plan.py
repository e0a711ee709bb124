"""What a reinitialisation would do, checked whole before anything changes, and doing it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from modscope.paths import join
from modscope_server.errors import BadRequest, NoMatch, NotFinite, NotMaterialized, SchemeUnsuitable
from modscope_server.inspection.backup import Backup, Bindings
from modscope_server.inspection.casting import finite_elements
from modscope_server.inspection.counts import reachable
from modscope_server.inspection.members import member, tensors
from modscope_server.inspection.randomness import keeping_random_state, seed_torch
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

__all__ = ["Action", "Plan", "Step", "apply", "plan"]

_NAMED = 20


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A tensor that gets new values."""

    path: str
    """Of the parameter, through the module at which nn.Module.apply comes to it first."""
    tensor: torch.Tensor
    scheme: str


@dataclass(frozen=True, slots=True, eq=False)
class Action:
    """What the function does that is applied to one module; a shared module is visited several times."""

    path: str
    """Of the module."""
    module: nn.Module
    targets: tuple[tuple[str, torch.Tensor], ...]
    """Names and tensors to fill; for reset_parameters the module's own parameters."""


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
    """All calls, in the order of nn.Module.apply."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the parameters, in the order in which they are initialised."""
        return tuple(step.path for step in self.steps)


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
        raise BadRequest(f"a seed is a whole number from 0 to 2**64 - 1, not {seed}", field="seed")
    selected = {id(one.module) for one in select_modules(root, glob, type)}
    if not selected:
        raise NoMatch(
            f"no module matches glob {glob!r}" + (f" and type {type!r}" if type else ""),
            hint="modscope modules lists paths and types",
            field="type" if type else "glob",
        )
    calls = [(path, module) for path, module in applied(root) if id(module) in selected]
    parameter = parameter or ""
    actions = _fills(calls, parameter, found, checked) if found else _resets(calls, parameter)
    if not actions:
        raise _nothing(calls, parameter)
    return Plan(scheme, checked, seed, _steps(actions, scheme), tuple(actions))


def apply(plan: Plan) -> None:
    """Carry a plan out, in place; every global random state is afterwards as before.

    With a seed the values are those of torch.manual_seed(seed) and model.apply. Tensors keep their
    identity. Where something raises, or a scheme leaves a value that is not finite, every tensor is put
    back bit for bit. Raises SchemeUnsuitable and NotFinite.
    """
    scheme = find_scheme(plan.scheme)
    modules = {id(module): module for action in plan.actions for module in reachable(action.module)}
    bindings, backup = Bindings(modules.values()), Backup()
    try:
        with keeping_random_state(), torch.inference_mode(False), torch.no_grad():
            seed_torch(secrets.randbits(64) if plan.seed is None else plan.seed)
            for action in plan.actions:
                if scheme is None:
                    _reset(action, backup)
                else:
                    _fill(action, scheme, plan.arguments, backup)
    except BaseException:
        bindings.restore()
        backup.restore()
        raise


def _refuse_closed(closed: Sequence[str]) -> None:
    if closed:
        raise NotMaterialized(
            f"cannot be initialised: {_some(closed)}",
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
            f"reset_parameters cannot serve {_some(unsuitable)}",
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
            f"{scheme.name} cannot serve {_some(unsuitable, '; ')}",
            hint='select suitable tensors by glob, type or parameter="weight" (--param weight); '
            "uniform_, normal_, constant_, zeros_ and ones_ serve every shape",
            field="scheme",
        )
    return actions


def _nothing(calls: Sequence[tuple[str, nn.Module]], parameter: str) -> NoMatch:
    names = sorted({name for _, module in calls for name, _ in tensors(module, "_parameters")})
    what = f"a parameter {parameter!r}" if parameter else "parameters of its own"
    hint = f"they have {_some(names)}" if names else "select modules that have parameters"
    return NoMatch(f"none of the {len(calls)} selected modules has {what}", hint=hint, field="parameter")


def _steps(actions: Sequence[Action], scheme: str) -> tuple[Step, ...]:
    steps: dict[int, Step] = {}
    for action in actions:
        for name, tensor in action.targets:
            steps.setdefault(id(tensor), Step(join(action.path, name), tensor, scheme))
    return tuple(steps.values())


def _fill(action: Action, scheme: Scheme, arguments: Mapping[str, Value], backup: Backup) -> None:
    for name, tensor in action.targets:
        path = join(action.path, name)
        if not tensor.numel():
            continue
        backup.keep(tensor)
        try:
            scheme.fill(tensor, **arguments)
        except Exception as error:
            raise SchemeUnsuitable(
                f"{scheme.name} failed at {path}: {error}", hint="nothing was changed"
            ) from None
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(finite_elements(tensor).all()):
            raise NotFinite(
                f"{scheme.name} left values in {path} that are not finite",
                hint="nothing was changed; use arguments that its dtype can hold",
                field="arguments",
            )


def _reset(action: Action, backup: Backup) -> None:
    below = reachable(action.module)
    bindings = Bindings(below)
    for module in below:
        for kind in ("_parameters", "_buffers"):
            for _, tensor in tensors(module, kind):
                backup.keep(tensor)
    method = reset_method(action.module)
    try:
        if method is not None:
            method()
        bindings.settle()
    except Exception as error:
        raise SchemeUnsuitable(
            f"reset_parameters failed at {action.path!r}: {type(error).__name__}: {error}",
            hint="nothing was changed; leave that module out by glob or type",
            field="scheme",
        ) from None


def _some(items: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return separator.join(items[:_NAMED]) + more
