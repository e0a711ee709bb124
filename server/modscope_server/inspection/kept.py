"""The kinds of things that a memento keeps: each can put itself back, at once or much later."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from modscope_server.inspection.backup import TensorCopy, writing_to
from modscope_server.inspection.copies import bytes_of, copied, put_into, same
from modscope_server.inspection.param_groups import MEMBERS
from modscope_server.inspection.tensors import dtype_name, has_grad, shape_of

__all__ = ["Flag", "Gradient", "Groups", "Kept", "Other", "Repeatable", "State", "Training", "Value"]


class Kept(ABC):
    """One thing as it was."""

    nbytes = 0
    """Bytes of its copies."""
    parts: tuple[tuple[Hashable, ...], ...] = ((),)
    """What is kept of it, to be told from other parts of the same thing; one without a name is all of it."""

    def put_back(self) -> None:
        """Put it back at the safe point at which it was kept."""
        self.restore()

    @abstractmethod
    def restore(self) -> None:
        """Put it back at a later safe point."""

    def obstacle(self) -> str:
        """Why `restore` cannot be; "" where it can."""
        return ""

    def settle(self) -> bool:
        """The change is done: whether there is something to restore, the unchanged let go."""
        return True


class Repeatable(Kept):
    """One that can be kept anew, so that an undo can be undone."""

    @abstractmethod
    def again(self) -> Repeatable:
        """The same thing as it is now."""


class Value(Repeatable):
    """The elements of a tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self._kept = TensorCopy(tensor)
        self.nbytes = self._kept.nbytes

    @property
    def copy(self) -> torch.Tensor:
        """The elements."""
        return self._kept.copy

    def differs(self) -> bool:
        """Whether the tensor has other elements now."""
        return not same(self.tensor.data, self.copy.to(self.tensor.device))

    def put_back(self) -> None:
        self._kept.put_back()

    def restore(self) -> None:
        self._kept.write_back()

    def obstacle(self) -> str:
        now, then = self.tensor, self.copy
        if now.dtype == then.dtype and now.shape == then.shape:
            return ""
        return (
            f"a tensor was {dtype_name(then)} {list(shape_of(then))} and is {dtype_name(now)} "
            f"{list(shape_of(now))} now"
        )

    def again(self) -> Value:
        return Value(self.tensor)


class Flag(Repeatable):
    """requires_grad of a tensor."""

    def __init__(self, path: str, tensor: torch.Tensor) -> None:
        self.path = path
        self.tensor = tensor
        self.flag = tensor.requires_grad

    def restore(self) -> None:
        if self.tensor.requires_grad != self.flag:
            self.tensor.requires_grad = self.flag

    def settle(self) -> bool:
        return self.tensor.requires_grad != self.flag

    def again(self) -> Flag:
        return Flag(self.path, self.tensor)


class Gradient(Repeatable):
    """The gradient of a tensor, for a rollback alone: a later step has another one."""

    def __init__(self, tensor: torch.Tensor, *, copy: bool = True) -> None:
        self._tensor = tensor
        self._grad = tensor.grad if has_grad(tensor) else None
        self._copy = self._grad.detach().clone() if copy and self._grad is not None else None

    def put_back(self) -> None:
        if self._grad is not None and self._copy is not None:
            with writing_to(self._grad):
                self._grad.copy_(self._copy)
        if has_grad(self._tensor) or self._grad is not None:
            self._tensor.grad = self._grad

    def restore(self) -> None:
        pass

    def settle(self) -> bool:
        return False

    def again(self) -> Gradient:
        return Gradient(self._tensor)


class State(Repeatable):
    """What an optimizer remembers of a parameter."""

    def __init__(self, optimizer: Optimizer, param: torch.Tensor) -> None:
        self._optimizer = optimizer
        self._param = param
        # Asked with `in`: optimizer.state makes an entry for what is looked up.
        self._held = param in optimizer.state
        self._copy = copied(optimizer.state[param]) if self._held else None
        self.nbytes = bytes_of(self._copy)

    def restore(self) -> None:
        state = self._optimizer.state
        if not self._held:
            state.pop(self._param, None)
        else:
            state[self._param] = put_into(state.get(self._param), self._copy)

    def settle(self) -> bool:
        state = self._optimizer.state
        if not self._held:
            return self._param in state
        return not (self._param in state and same(state[self._param], self._copy))

    def again(self) -> State:
        return State(self._optimizer, self._param)


class Groups(Repeatable):
    """The hyper-parameters and the members of the groups of an optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._kept: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (group, {name: _option(name, value) for name, value in group.items()})
            for group in optimizer.param_groups
        ]
        self._whole = True

    @property
    def parts(self) -> tuple[tuple[Hashable, ...], ...]:  # type: ignore[override]
        """Group and name of each option that is kept."""
        return tuple((id(group), name) for group, options in self._kept for name in options)

    def put_back(self) -> None:
        """All groups, and in each just the options that there were."""
        if self._whole:
            self._optimizer.param_groups[:] = [group for group, _ in self._kept]
            for group, options in self._kept:
                for name in group.keys() - options.keys():
                    del group[name]
        self.restore()

    def restore(self) -> None:
        for group, options in self._kept:
            for name, value in options.items():
                if value is _ABSENT:
                    group.pop(name, None)
                elif name in MEMBERS and name in group:
                    # Others may hold the list, too.
                    group[name][:] = value
                else:
                    group[name] = put_into(group.get(name), value)

    def obstacle(self) -> str:
        here = {id(group) for group in self._optimizer.param_groups}
        if all(id(group) in here for group, _ in self._kept):
            return ""
        return f"a parameter group of {type(self._optimizer).__name__} is gone"

    def settle(self) -> bool:
        changed = []
        for group, options in self._kept:
            differing = {
                name: value
                for name, value in options.items()
                if not (value is _ABSENT if name not in group else same(group[name], value))
            }
            if self._whole:
                differing.update(dict.fromkeys(group.keys() - options.keys(), _ABSENT))
            if differing:
                changed.append((group, differing))
        self._kept, self._whole = changed, False
        return bool(changed)

    def again(self) -> Groups:
        now = Groups.__new__(Groups)
        now._optimizer, now._whole = self._optimizer, self._whole
        now._kept = [
            (group, {name: _option(name, group[name]) if name in group else _ABSENT for name in options})
            for group, options in self._kept
        ]
        return now


class Training(Repeatable):
    """The training flag of a module, its own alone."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._training = module.training

    def restore(self) -> None:
        self._module.training = self._training

    def settle(self) -> bool:
        return self._module.training != self._training

    def again(self) -> Training:
        return Training(self._module)


class Other(Kept):
    """Anything that a function brings back."""

    def __init__(
        self, restore: Callable[[], object], nbytes: int, again: Callable[[Any], None] | None
    ) -> None:
        self.nbytes = nbytes
        self.keep_again = again
        """Keeps the same in another memento."""
        self._restore = restore

    def restore(self) -> None:
        self._restore()


_ABSENT = object()
"""Stands for an option that a group did not have."""


def _option(name: str, value: Any) -> Any:
    return list(value) if name in MEMBERS else copied(value)
