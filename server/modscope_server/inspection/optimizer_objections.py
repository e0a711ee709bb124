"""Why an optimizer would not go on with other hyper-parameters or more parameters.

Asked of the optimizer's own class, by building a small one, and of the state that it has made already.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer, RMSprop

from modscope_server.inspection.hyperparameters import plain
from modscope_server.inspection.optimizers import Group
from modscope_server.inspection.param_groups import held_by

__all__ = ["objection_to_options", "objection_to_parameters"]

_BUILT_IN = ("fused", "capturable", "differentiable")
"""They decide how an optimizer is built and what its state is made of."""


def objection_to_options(group: Group, values: Mapping[str, Any]) -> str:
    """Why the group could not go on with these hyper-parameters; "" where it can."""
    for name, value in values.items():
        if name in _BUILT_IN and value != group.options[name]:
            return f"{name} decides how the optimizer is built"
        key = _state_key(group.optimizer, name, value)
        if key and any(kept and key not in kept for kept in _states(group)):
            return f"its state was made without {key}, which {name}={value!r} needs"
    if isinstance(group.optimizer, LBFGS):
        if values.get("line_search_fn") not in (None, "strong_wolfe"):
            return "line_search_fn is 'strong_wolfe' or null"
        if "history_size" in values and group.optimizer.state:
            return "its history has been laid out for the present history_size"
    return _refusal(group, {**group.options, **values}, group.params[:1]) if not _refusal(group) else ""


def objection_to_parameters(group: Group, params: Sequence[torch.Tensor]) -> str:
    """Why the group could not take these parameters; "" where it can."""
    optimizer = group.optimizer
    ours = _is_of_torch(optimizer)
    if not ours and type(optimizer).add_param_group is not Optimizer.add_param_group:
        return "its class has its own add_param_group, which only the training script can call rightly"
    if not ours and _keeps_own_list(optimizer):
        return "it keeps a list of its parameters of its own"
    if isinstance(optimizer, LBFGS) and len({one.device for one in (*group.params, *params)}) > 1:
        return "LBFGS takes parameters of one device alone"
    kinds = {(one.dtype, one.device, one.ndim): one for one in params}
    return next(filter(None, (_refusal(group, group.options, [one]) for one in kinds.values())), "")


def _refusal(
    group: Group, options: Mapping[str, Any] | None = None, like: Sequence[torch.Tensor] = ()
) -> str:
    """What the class raises when it is built for a small parameter like this one; "" where it builds.

    Only classes of torch are built; others may do more than that.
    """
    cls = type(group.optimizer)
    if not _is_of_torch(group.optimizer):
        return ""
    like = like or group.params[:1]
    taken = inspect.signature(cls).parameters
    given: dict[str, Any] = {
        name: plain(value) if isinstance(value, torch.Tensor) else value
        for name, value in (options or group.options).items()
        if name in taken and name != "params"
    }
    try:
        cls([_small(one) for one in like] or [nn.Parameter(torch.zeros(1, 1))], **given)
    except Exception as error:
        return str(error)
    return ""


def _small(like: torch.Tensor) -> torch.Tensor:
    grad = like.is_floating_point() or like.is_complex()
    return nn.Parameter(
        torch.zeros([1] * like.ndim, dtype=like.dtype, device=like.device), requires_grad=grad
    )


def _state_key(optimizer: Optimizer, name: str, value: Any) -> str:
    """Key of the state without which the hyper-parameter would make the next step raise."""
    if not value:
        return ""
    if isinstance(optimizer, RMSprop):
        return {"momentum": "momentum_buffer", "centered": "grad_avg"}.get(name, "")
    return "max_exp_avg_sq" if name == "amsgrad" else ""


def _states(group: Group) -> list[Mapping[str, Any]]:
    return [group.optimizer.state.get(param) or {} for param in group.params]


def _is_of_torch(optimizer: Optimizer) -> bool:
    return f"{type(optimizer).__module__}.".startswith("torch.optim.")


def _keeps_own_list(optimizer: Optimizer) -> bool:
    held = {id(param) for param in held_by(optimizer)}
    lists = (value for value in vars(optimizer).values() if isinstance(value, (list, tuple)))
    return any(isinstance(one, torch.Tensor) and id(one) in held for value in lists for one in value)
