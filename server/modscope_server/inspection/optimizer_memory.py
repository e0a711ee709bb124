"""What optimizers keep of parameters, and making them begin anew or leave some out, each in its own way.

All optimizers of torch pass over a parameter that has no gradient, but for LBFGS: it keeps one history of
all its parameters as a flat vector, and moves each of them along it, gradient or not. Most make the state
of a parameter at its first step. Adagrad makes it when it is built, and fused SGD with momentum raises
where some parameters of a group have a momentum buffer and others have none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim import LBFGS, SGD, Adagrad, Optimizer

from modscope_server.inspection.copies import bytes_of, copied, put_into
from modscope_server.inspection.memento import Memento
from modscope_server.inspection.param_groups import held_by

__all__ = [
    "begin_anew",
    "keep_history",
    "keep_memory",
    "keep_newcomers",
    "leave_out",
    "leaves_out",
    "needs_preparing",
    "prepare",
    "set_moved",
    "take_in",
    "takes_in",
]


def begin_anew(optimizer: Optimizer, param: torch.Tensor) -> bool:
    """Make the optimizer forget what it keeps of the parameter; whether there was anything."""
    if isinstance(optimizer, LBFGS):
        return _restart(optimizer)
    if isinstance(optimizer, Adagrad):
        return _restart_adagrad(optimizer, param)
    kept = bool(optimizer.state.pop(param, None))
    prepare(optimizer, [param])
    return kept


def leaves_out(optimizer: Optimizer, params: Sequence[torch.Tensor]) -> bool:
    """Whether `leave_out` would change anything."""
    return isinstance(optimizer, LBFGS) and bool(_ids(optimizer._params) & _ids(params))


def leave_out(optimizer: Optimizer, params: Sequence[torch.Tensor]) -> bool:
    """Make LBFGS, which holds these parameters, move the others alone; whether it forgot its history.

    Its group still holds them. Where nothing else would be left they stay: without a gradient it returns
    before it moves anything.
    """
    if not isinstance(optimizer, LBFGS) or not leaves_out(optimizer, params):
        return False
    ids = _ids(params)
    moved = [param for param in optimizer._params if id(param) not in ids]
    if moved:
        set_moved(optimizer, moved)
    return _restart(optimizer)


def takes_in(optimizer: Optimizer, params: Sequence[torch.Tensor]) -> bool:
    """Whether `take_in` would change anything."""
    return isinstance(optimizer, LBFGS) and not _ids(params) <= _ids(optimizer._params)


def take_in(optimizer: Optimizer, params: Sequence[torch.Tensor], *, new: bool = False) -> bool:
    """Make LBFGS, whose group holds these parameters, move them too; whether it forgot its history.

    `new`: the group has only just got them.
    """
    if not isinstance(optimizer, LBFGS) or not (new or takes_in(optimizer, params)):
        return False
    held = optimizer.param_groups[0]["params"]
    moved = _ids(optimizer._params) | _ids(params)
    set_moved(optimizer, [param for param in held if id(param) in moved])
    return _restart(optimizer)


def set_moved(optimizer: LBFGS, params: list[torch.Tensor]) -> None:
    """Make LBFGS move these alone of the parameters that its group holds."""
    held = optimizer.param_groups[0]["params"]
    optimizer._params = held if len(params) == len(held) else params
    optimizer._numel_cache = None


def keep_memory(memento: Memento, optimizer: Optimizer, params: Sequence[torch.Tensor]) -> None:
    """Keep what the optimizer keeps of these parameters."""
    if isinstance(optimizer, LBFGS):
        keep_history(memento, optimizer)
    for param in params:
        memento.keep_state(optimizer, param)


def keep_newcomers(memento: Memento, optimizer: Optimizer, params: Sequence[torch.Tensor]) -> None:
    """Keep that the optimizer keeps nothing of parameters that it will get, though it will from then on."""
    if isinstance(optimizer, LBFGS):
        keep_history(memento, optimizer)
        return
    for param in params:
        _keep_absence(memento, optimizer, param)


def keep_history(memento: Memento, optimizer: Optimizer) -> None:
    """Keep the one history of LBFGS, and which of its parameters it moves."""
    assert isinstance(optimizer, LBFGS)
    held = optimizer.param_groups[0]["params"]
    all_of_them, moved = optimizer._params is held, list(optimizer._params)
    state = {param: copied(kept) for param, kept in optimizer.state.items()}

    def restore() -> None:
        optimizer._params = held if all_of_them else list(moved)
        optimizer._numel_cache = None
        optimizer.state.clear()
        optimizer.state.update({param: put_into(None, kept) for param, kept in state.items()})

    size = sum(bytes_of(kept) for kept in state.values())
    memento.keep(("history", id(optimizer)), restore, size, lambda now: keep_history(now, optimizer))


def _keep_absence(memento: Memento, optimizer: Optimizer, param: torch.Tensor) -> None:
    def restore() -> None:
        if all(param is not held for held in held_by(optimizer)):
            optimizer.state.pop(param, None)

    key = ("state", id(optimizer), id(param))
    memento.keep(key, restore, again=lambda now: now.keep_state(optimizer, param))


def needs_preparing(optimizer: Optimizer) -> bool:
    """Whether `prepare` may change anything."""
    return isinstance(optimizer, Adagrad) or (
        isinstance(optimizer, SGD) and any(group.get("fused") for group in optimizer.param_groups)
    )


def prepare(optimizer: Optimizer, params: Sequence[torch.Tensor]) -> None:
    """Make the state that the optimizer needs of these parameters of its, but does not make by itself."""
    wanted = _ids(params)
    for group in optimizer.param_groups:
        here = [param for param in group["params"] if id(param) in wanted]
        if isinstance(optimizer, Adagrad):
            for param in here:
                if not optimizer.state.get(param):
                    _start_adagrad(optimizer, group, param)
        elif isinstance(optimizer, SGD) and group.get("fused") and group["momentum"]:
            _even_out(optimizer, group["params"], here)


def _even_out(optimizer: SGD, held: Sequence[torch.Tensor], params: Sequence[torch.Tensor]) -> None:
    """Give these a momentum of zero where another parameter of the group has momentum."""
    if not any(_momentum(optimizer, param) is not None for param in held):
        return
    for param in params:
        if _momentum(optimizer, param) is None:
            optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param, requires_grad=False)


def _momentum(optimizer: SGD, param: torch.Tensor) -> torch.Tensor | None:
    kept: torch.Tensor | None = (optimizer.state.get(param) or {}).get("momentum_buffer")
    return kept


def _start_adagrad(optimizer: Adagrad, group: dict[str, object], param: torch.Tensor) -> None:
    fused = bool(group.get("fused"))
    double = not fused and torch.get_default_dtype() == torch.float64
    optimizer.state[param].update(
        step=torch.zeros(
            (),
            dtype=torch.float64 if double else torch.float32,
            device=param.device if fused else torch.device("cpu"),
        ),
        sum=torch.full_like(param, _start(group, param), requires_grad=False),
    )


def _restart(optimizer: LBFGS) -> bool:
    kept = bool(optimizer.state)
    optimizer.state.clear()
    optimizer._numel_cache = None
    return kept


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
