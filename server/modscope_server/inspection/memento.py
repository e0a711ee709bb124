"""What a change touches, as it was before: for rolling it back, undoing it later, and telling digests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from modscope.tensor import digest
from modscope_server.inspection import kept
from modscope_server.inspection.backup import has_value
from modscope_server.inspection.tensors import plain_data

__all__ = ["Memento"]


class Memento:
    """A part of a model and its optimizers, kept by copies; each thing once, as it was when first kept.

    Things are told by identity, and identity is kept. `roll_back` is for the safe point at which it was
    made, `restore` for any later one. After `settle` it holds what the change has changed, no more.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, kept.Kept] = {}
        self._paths: dict[str, kept.Value] = {}

    def keep_tensor(self, path: str, tensor: torch.Tensor) -> None:
        """Keep the value, and requires_grad; a lazy or meta tensor has no value."""
        value = self.keep_value(tensor)
        if value is not None:
            self._paths.setdefault(path, value)
        self.keep_flag(path, tensor)

    def keep_value(self, tensor: torch.Tensor) -> kept.Value | None:
        """Keep the value alone, and under no path; None for a lazy or meta tensor, which has none."""
        if not has_value(tensor):
            return None
        key = ("value", id(tensor))
        value = self._kept.get(key) or self._add(key, kept.Value(tensor))
        assert isinstance(value, kept.Value)
        return value

    def keep_flag(self, path: str, tensor: torch.Tensor) -> None:
        """Keep requires_grad alone."""
        key = ("flag", id(tensor))
        if key not in self._kept:
            self._add(key, kept.Flag(path, tensor))

    def keep_gradient(self, tensor: torch.Tensor, *, copy: bool = True) -> None:
        """Keep the gradient, for a rollback alone: a later step has another one.

        `copy`: whether its elements will change; else which tensor it is will do.
        """
        key = ("gradient", id(tensor))
        if key not in self._kept:
            self._add(key, kept.Gradient(tensor, copy=copy))

    def keep_state(self, optimizer: Optimizer, param: torch.Tensor) -> None:
        """Keep what the optimizer remembers of the parameter; nothing stays nothing."""
        key = ("state", id(optimizer), id(param))
        if key not in self._kept:
            self._add(key, kept.State(optimizer, param))

    def keep_groups(self, optimizer: Optimizer) -> None:
        """Keep the hyper-parameters and the members of all its groups."""
        key = ("groups", id(optimizer))
        if key not in self._kept:
            self._add(key, kept.Groups(optimizer))

    def keep_training(self, module: nn.Module) -> None:
        """Keep the module's own training flag."""
        key = ("training", id(module))
        if key not in self._kept:
            self._add(key, kept.Training(module))

    def keep(
        self,
        key: Hashable,
        restore: Callable[[], object],
        nbytes: int = 0,
        again: Callable[[Memento], None] | None = None,
    ) -> None:
        """Keep anything else that `restore` brings back.

        `again` keeps the same thing in another memento, as it is then; without it an undo of the change
        cannot be undone in its turn.
        """
        if key not in self._kept:
            self._add(key, kept.Other(restore, nbytes, again))

    def holds(self, key: Hashable) -> bool:
        """Whether something is kept under this key."""
        return key in self._kept

    @property
    def keys(self) -> frozenset[Hashable]:
        """What it holds, by identity; two that share one are about the same thing."""
        return frozenset(
            (*key, *part) if isinstance(key, tuple) else (key, *part)
            for key, one in self._kept.items()
            for part in one.parts
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all copies."""
        return sum(one.nbytes for one in self._kept.values())

    @property
    def tensors(self) -> list[tuple[str, torch.Tensor]]:
        """Path and tensor of each value and flag that is kept."""
        values = [(path, value.tensor) for path, value in self._paths.items()]
        return values + [(one.path, one.tensor) for one in self._kept.values() if isinstance(one, kept.Flag)]

    @property
    def to_be_frozen(self) -> list[torch.Tensor]:
        """The tensors that require a gradient now, and will not when this is restored."""
        flags = [one for one in self._kept.values() if isinstance(one, kept.Flag)]
        return [one.tensor for one in flags if one.tensor.requires_grad and not one.flag]

    def absorb(self, later: Memento) -> None:
        """Take over what a later change keeps; what is here already stays as it is."""
        for key, one in later._kept.items():
            self._kept.setdefault(key, one)
        for path, value in later._paths.items():
            here = self._kept[("value", id(value.tensor))]
            assert isinstance(here, kept.Value)
            self._paths.setdefault(path, here)

    def settle(self) -> None:
        """The change is done: let go what has not changed, and what only a rollback needs."""
        for key in [key for key, one in self._kept.items() if not one.settle()]:
            del self._kept[key]

    def roll_back(self) -> None:
        """Put everything back, at the safe point at which it was kept."""
        for one in self._kept.values():
            one.put_back()

    def restore(self) -> None:
        """Put everything back bit for bit, at a later safe point."""
        for one in self._kept.values():
            one.restore()

    def obstacle(self) -> str:
        """Why it cannot be restored now; "" where it can."""
        return next((reason for one in self._kept.values() if (reason := one.obstacle())), "")

    def again(self) -> Memento:
        """The same things, as they are now."""
        now = Memento()
        for key, one in self._kept.items():
            if isinstance(one, kept.Other):
                if one.keep_again is not None:
                    one.keep_again(now)
            elif isinstance(one, kept.Repeatable):
                now._add(key, one.again())
        now._paths = {
            path: now._kept[("value", id(value.tensor))]  # type: ignore[misc]
            for path, value in self._paths.items()
        }
        return now

    @property
    def repeatable(self) -> bool:
        """Whether `again` keeps all of it."""
        return all(one.keep_again is not None for one in self._kept.values() if isinstance(one, kept.Other))

    def differs(self, tensor: torch.Tensor) -> bool:
        """Whether the kept value of a tensor is not the present one."""
        value = self._kept.get(("value", id(tensor)))
        return isinstance(value, kept.Value) and value.differs()

    @property
    def values(self) -> dict[str, torch.Tensor]:
        """The kept values by path."""
        return {path: one.copy for path, one in self._paths.items()}

    def values_now(self, known: Mapping[int, torch.Tensor | None]) -> dict[str, torch.Tensor]:
        """The present values, by path, of what is kept: copies, but for those known by id of the tensor.

        What shares memory with another tensor of them is copied all the same.
        """
        tensors = {id(one.tensor): one for one in self._paths.values()}
        memory = Counter(_memory(one.tensor) for one in tensors.values())
        values = {}
        for key, one in tensors.items():
            value = known.get(key) if memory[_memory(one.tensor)] == 1 else None
            values[key] = one.again().copy if value is None else value
        return {path: values[id(one.tensor)] for path, one in self._paths.items()}

    def ids(self, known: Mapping[str, torch.Tensor]) -> dict[int, torch.Tensor | None]:
        """What is known of each tensor whose value is kept, by its id; None where nothing is."""
        found: dict[int, torch.Tensor | None] = {id(one.tensor): None for one in self._paths.values()}
        for path, value in known.items():
            if path in self._paths:
                found[id(self._paths[path].tensor)] = value
        return found

    def digests(self) -> dict[str, str]:
        """Digests of the kept values by path; what has no plain bytes has none. Off the training thread."""
        return digests(self.values)

    def _add(self, key: Hashable, one: Any) -> Any:
        self._kept[key] = one
        return one


def _memory(tensor: torch.Tensor) -> int:
    """Where its elements lie; of one that is not strided, something of its own."""
    strided = tensor.layout is torch.strided and not tensor.is_nested
    return tensor.untyped_storage().data_ptr() if strided else -id(tensor)


def digests(values: dict[str, torch.Tensor]) -> dict[str, str]:
    """Digests by path; what has no plain bytes has none. A tensor under several paths is hashed once."""
    known: dict[int, str] = {}
    for tensor in values.values():
        if id(tensor) not in known:
            data = plain_data(tensor)
            known[id(tensor)] = "" if data is None else digest(data)
    return {path: known[id(tensor)] for path, tensor in values.items() if known[id(tensor)]}
