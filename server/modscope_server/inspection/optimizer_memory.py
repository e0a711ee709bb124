"""What optimizers keep of parameters, and making them begin anew or leave some out, each in its own way.

All optimizers of torch pass over a parameter that has no gradient, but for LBFGS: it keeps one history of
all its parameters as a flat vector, and moves each of them along it, gradient or not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch.optim import LBFGS, Adagrad, Optimizer

__all__ = ["begin_anew", "leave_out", "left_out", "prepare", "take_in"]


def begin_anew(optimizer: Optimizer, param: torch.Tensor) -> bool:
    """Make the optimizer forget what it keeps of the parameter; whether there was anything."""
    if isinstance(optimizer, LBFGS):
        kept = bool(optimizer.state)
        _restart(optimizer)
        return kept
    if isinstance(optimizer, Adagrad):
        return _restart_adagrad(optimizer, param)
    return bool(optimizer.state.pop(param, None))


def leave_out(optimizer: Optimizer, ids: Collection[int]) -> bool:
    """Make LBFGS, which holds these parameters, move the others alone; whether it forgot its history.

    Its groups still hold them. Where nothing else would be left they stay: without a gradient it returns
    before it moves anything.
    """
    if not isinstance(optimizer, LBFGS) or not (_ids(optimizer._params) & set(ids)):
        return False
    kept = bool(optimizer.state)
    moved = [param for param in optimizer._params if id(param) not in ids]
    if moved:
        optimizer._params = moved
    _restart(optimizer)
    return kept


def take_in(optimizer: Optimizer, params: Sequence[torch.Tensor], *, new: bool = False) -> bool:
    """Make LBFGS, whose group holds these parameters, move them too; whether it forgot its history.

    `new`: the group has only just got them.
    """
    if not isinstance(optimizer, LBFGS):
        return False
    moved, wanted = _ids(optimizer._params), _ids(params)
    if wanted <= moved and not new:
        return False
    (group,) = optimizer.param_groups
    held = group["params"]
    chosen = [param for param in held if id(param) in moved | wanted]
    optimizer._params = held if len(chosen) == len(held) else chosen
    kept = bool(optimizer.state)
    _restart(optimizer)
    return kept


def left_out(optimizer: Optimizer) -> list[torch.Tensor]:
    """The parameters that LBFGS is made to leave out."""
    if not isinstance(optimizer, LBFGS):
        return []
    moved = _ids(optimizer._params)
    return [p for group in optimizer.param_groups for p in group["params"] if id(p) not in moved]


def prepare(optimizer: Optimizer, params: Sequence[torch.Tensor]) -> None:
    """Give new parameters the state that the optimizer makes when it is built and steps from."""
    if not isinstance(optimizer, Adagrad):
        return
    new = _ids(params)
    for group in optimizer.param_groups:
        for param in group["params"]:
            if id(param) in new:
                fused = bool(group.get("fused"))
                double = not fused and torch.get_default_dtype() == torch.float64
                device = param.device if fused else torch.device("cpu")
                kept = optimizer.state[param]
                kept["step"] = torch.zeros(
                    (), dtype=torch.float64 if double else torch.float32, device=device
                )
                kept["sum"] = torch.full_like(param, _start(group, param), requires_grad=False)


def _restart(optimizer: LBFGS) -> None:
    optimizer.state.clear()
    optimizer._numel_cache = None


@torch.no_grad()
def _restart_adagrad(optimizer: Adagrad, param: torch.Tensor) -> bool:
    """Adagrad makes its state when it is built and may fail without it, so it goes back to that."""
    kept = optimizer.state.get(param)
    if not kept:
        return False
    for group in optimizer.param_groups:
        if any(held is param for held in group["params"]):
            kept["sum"].fill_(_start(group, param))
            kept["step"].zero_()
    return True


def _start(group: dict[str, object], param: torch.Tensor) -> complex | float:
    start: float = group.get("initial_accumulator_value", 0.0)  # type: ignore[assignment]
    return complex(start, start) if torch.is_complex(param) else start


def _ids(params: Sequence[torch.Tensor]) -> set[int]:
    return {id(param) for param in params}
