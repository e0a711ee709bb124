"""A memento of a whole run: what a restoration touches, as it was before it."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from modscope_server.inspection.copies import bytes_of, copied, put_into
from modscope_server.inspection.extras import Stateful, stateful
from modscope_server.inspection.memento import Memento
from modscope_server.inspection.optimizer_memory import keep_memory
from modscope_server.inspection.param_groups import held_by
from modscope_server.inspection.randomness import random_state, restore_random_state
from modscope_server.inspection.snapshot import Run, model_tensors
from modscope_server.inspection.tensors import has_grad
from modscope_server.inspection.walk import walk

__all__ = ["memento_of"]


def memento_of(run: Run, model: str, extras: Collection[str]) -> Memento:
    """Everything that a restoration may change, gradients, random states and step count included.

    `model` is the one whose tensors are told by path, with digests. Of the extras it keeps those named.
    """
    memento = Memento()
    for path, tensor in model_tensors(run.models[model]).items():
        memento.keep_tensor(path, tensor)
    for root in run.models.values():
        _keep_model(memento, run, root)
    for optimizer in run.all_optimizers:
        _keep_optimizer(memento, optimizer)
    for name, extra in run.other_extras.items():
        ways = stateful(extra)
        if ways is not None and name in extras:
            _keep_extra(memento, name, ways)
    _keep_random(memento)
    _keep_step_count(memento, run)
    return memento


def _keep_model(memento: Memento, run: Run, root: nn.Module) -> None:
    for tensor in model_tensors(root).values():
        _keep_tensor(memento, tensor)
    for visit in walk(root).visits:
        if visit.first:
            memento.keep_training(visit.module)
            if visit.module in run.holds or visit.module.training is False:
                run.holds.keep(memento, visit.module, root)


def _keep_optimizer(memento: Memento, optimizer: Optimizer) -> None:
    held = held_by(optimizer)
    for param in held:
        _keep_tensor(memento, param)
    memento.keep_groups(optimizer)
    keys = [key for key in optimizer.state if isinstance(key, torch.Tensor)]
    if isinstance(optimizer, LBFGS):
        keep_memory(memento, optimizer, held)
    for param in [*held, *keys]:
        memento.keep_state(optimizer, param)
    _keep_rest(memento, optimizer)


def _keep_rest(memento: Memento, optimizer: Optimizer) -> None:
    """What the optimizer keeps under keys that are no tensors."""
    kept = {key: copied(value) for key, value in optimizer.state.items() if not isinstance(key, torch.Tensor)}

    def restore() -> None:
        state = optimizer.state
        for key in [key for key in state if not isinstance(key, torch.Tensor) and key not in kept]:
            del state[key]
        for key, value in kept.items():
            state[key] = put_into(state.get(key), value)

    memento.keep(
        ("other state", id(optimizer)), restore, bytes_of(kept), lambda now: _keep_rest(now, optimizer)
    )


def _keep_tensor(memento: Memento, tensor: torch.Tensor) -> None:
    """Value, requires_grad and gradient, without a path; what is kept already stays as it is."""
    memento.keep_value(tensor)
    _keep_flag(memento, tensor)
    _keep_grad(memento, tensor)


def _keep_flag(memento: Memento, tensor: torch.Tensor) -> None:
    flag = tensor.requires_grad

    def restore() -> None:
        if tensor.requires_grad != flag:
            tensor.requires_grad = flag

    memento.keep(("flag", id(tensor)), restore, again=lambda now: _keep_flag(now, tensor))


def _keep_grad(memento: Memento, tensor: torch.Tensor) -> None:
    """The gradient, which an undo of a restoration brings back, too: its step count is that of then."""
    key = ("grad", id(tensor))
    if memento.holds(key):
        return
    grad = tensor.grad if has_grad(tensor) else None
    kept = None if grad is None else copied(grad)

    def restore() -> None:
        now = tensor.grad if has_grad(tensor) else None
        if kept is None:
            if now is not None:
                tensor.grad = None
        else:
            tensor.grad = put_into(now, kept)

    memento.keep(key, restore, bytes_of(kept), lambda now: _keep_grad(now, tensor))


def _keep_extra(memento: Memento, name: str, ways: Stateful) -> None:
    state = copied(ways.take())

    def restore() -> None:
        ways.put(put_into(None, state))

    memento.keep(("extra", name), restore, bytes_of(state), lambda now: _keep_extra(now, name, ways))


def _keep_random(memento: Memento) -> None:
    states = random_state()
    memento.keep(("random",), lambda: restore_random_state(states), again=_keep_random)


def _keep_step_count(memento: Memento, run: Run) -> None:
    count = run.step_count()
    memento.keep(
        ("step count",), lambda: run.set_step_count(count), again=lambda now: _keep_step_count(now, run)
    )
