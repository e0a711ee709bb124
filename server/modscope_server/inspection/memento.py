"""What a change touches, as it was before: to roll it back, to undo it, to tell its digests."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from modscope.tensor import digest
from modscope_server.inspection.backup import Backup, writing_to
from modscope_server.inspection.tensors import nbytes, to_data, unreadable_reason

__all__ = ["Memento"]


class Memento:
    """Copies of values, flags and optimizer state; `restore` puts them back bit for bit.

    Everything is kept once, as it is when it is first kept, and put back in place: parameters, buffers,
    groups and, where shape and dtype are still the same, the tensors of optimizer state keep their
    identity. It can be restored again and again.
    """

    def __init__(self) -> None:
        self._values = Backup()
        self._paths: dict[int, str] = {}
        self._restores: dict[Hashable, Callable[[], None]] = {}
        self._nbytes = 0

    @property
    def keys(self) -> frozenset[Hashable]:
        """What it holds, by identity: a later change that shares a key has overtaken it."""
        return frozenset(self._restores)

    @property
    def nbytes(self) -> int:
        """Bytes that the copies take."""
        return self._nbytes

    @property
    def tensors(self) -> list[tuple[str, torch.Tensor]]:
        """The live tensors whose values are kept, by path."""
        return [(self._paths[id(tensor)], tensor) for tensor in self._values.tensors]

    def keep_tensor(self, path: str, tensor: torch.Tensor) -> None:
        """Keep a parameter's or buffer's value and requires_grad; of one without a value, the flag alone."""
        self.keep_flag(path, tensor)
        if unreadable_reason(tensor) or ("value", id(tensor)) in self._restores:
            return
        self._values.keep(tensor)
        self._paths[id(tensor)] = path
        self.keep(("value", id(tensor)), lambda: self._values.restore_one(tensor), nbytes(tensor))

    def keep_flag(self, path: str, tensor: torch.Tensor) -> None:
        """Keep requires_grad alone."""
        required = tensor.requires_grad

        def restore() -> None:
            if tensor.requires_grad != required:
                tensor.requires_grad = required

        self.keep(("flag", id(tensor)), restore)

    def keep_state(self, optimizer: Optimizer, param: torch.Tensor) -> None:
        """Keep what the optimizer keeps of a parameter; where there is nothing, that."""
        key = ("state", id(optimizer), id(param))
        if key in self._restores:
            return
        had = param in optimizer.state
        kept = _copied(optimizer.state[param]) if had else None

        def restore() -> None:
            if had:
                optimizer.state[param] = _put_back(optimizer.state.get(param), kept)
            else:
                optimizer.state.pop(param, None)

        self.keep(key, restore, _bytes_of(kept))

    def keep_groups(self, optimizer: Optimizer) -> None:
        """Keep the hyper-parameters and the membership of all groups of an optimizer."""
        groups = list(optimizer.param_groups)
        held = [(group, _copied(_options(group)), list(group["params"])) for group in groups]

        def restore() -> None:
            optimizer.param_groups[:] = groups
            for group, options, params in held:
                now = _options(group)
                for name in now.keys() - options.keys():
                    del group[name]
                group.update(_put_back(now, options))
                group["params"][:] = params

        self.keep(("groups", id(optimizer)), restore)

    def keep_training(self, module: nn.Module) -> None:
        """Keep a module's training flag."""
        training = module.training

        def restore() -> None:
            module.training = training

        self.keep(("training", id(module)), restore)

    def keep(self, key: Hashable, restore: Callable[[], None], nbytes: int = 0) -> None:
        """Keep anything else; a key that is there already stays as it is."""
        if key not in self._restores:
            self._restores[key] = restore
            self._nbytes += nbytes

    def restore(self) -> None:
        """Put everything back."""
        for restore in self._restores.values():
            restore()

    def digests(self) -> dict[str, str]:
        """Digests of the kept values by path. Takes its time: not for the training thread."""
        return {self._paths[id(tensor)]: digest(to_data(kept)) for tensor, kept in self._values.copies}


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _copied(value: Any) -> Any:
    """A copy that shares nothing: tensors cloned, containers rebuilt."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    if type(value) is tuple:
        return tuple(_copied(item) for item in value)
    return copy.deepcopy(value)


def _put_back(now: Any, kept: Any) -> Any:
    """What shall stand in the place of `now`: itself with the kept elements where it can, else a copy."""
    if isinstance(kept, torch.Tensor) and isinstance(now, torch.Tensor) and _fits(now, kept):
        with writing_to(now):
            now.copy_(kept)
        return now
    if type(now) is dict and isinstance(kept, dict):
        values = {name: _put_back(now.get(name), item) for name, item in kept.items()}
        now.clear()
        now.update(values)
        return now
    return _copied(kept)


def _fits(now: torch.Tensor, kept: torch.Tensor) -> bool:
    return (now.shape, now.dtype, now.device) == (kept.shape, kept.dtype, kept.device)


def _bytes_of(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return nbytes(value)
    if isinstance(value, dict):
        return sum(map(_bytes_of, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_bytes_of, value))
    return 0
