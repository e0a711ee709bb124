"""Modules that do their work without being called: their parameters get gradients all the same.

A hook fires where torch calls a module. `module.forward(x)`, and `F.linear(x, module.weight)`, go past it.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from modscope_server.inspection.counts import reachable
from modscope_server.inspection.members import tensors
from modscope_server.runtime.uncopied import Uncopied

__all__ = ["DirectUse", "Loop", "used_by_its_owner"]

_LOOKS = 16
"""Boundaries of the loop at which a suspect is looked at, before it is let off."""


class Loop(Protocol):
    """What calls functions on the training thread at each forward and after each optimizer step."""

    def add_chore(self, chore: Callable[[], object]) -> None: ...
    def remove_chore(self, chore: Callable[[], object]) -> None: ...


class _Suspect:
    """A module that is not called, with what tells whether its parameters get gradients."""

    def __init__(self, module: nn.Module, own: Sequence[torch.Tensor]) -> None:
        self.module = weakref.ref(module)
        self.own = [weakref.ref(parameter) for parameter in own]
        self.handles: list[RemovableHandle] = []
        self.looks = 0
        self.guilty = False

    def attend(self) -> None:
        """Have each of its parameters tell of a gradient; on the training thread."""
        for known in self.own:
            parameter = known()
            if parameter is not None and parameter.requires_grad and parameter.is_leaf:
                register: Any = parameter.register_post_accumulate_grad_hook
                self.handles.append(register(_Mark(self)))

    def dismiss(self) -> None:
        """Take that off again. Idempotent."""
        handles, self.handles = self.handles, []
        for handle in handles:
            handle.remove()


class _Mark(Uncopied):
    """A hook on a parameter: harmless when copied or pickled, and it never raises."""

    __slots__ = ("_suspect",)

    def __init__(self, suspect: _Suspect) -> None:
        self._suspect = weakref.ref(suspect)

    def __call__(self, parameter: torch.Tensor) -> None:
        suspect = self._suspect()
        if suspect is not None:
            suspect.guilty = True


class DirectUse:
    """Finds out about modules that are not called, at a few boundaries of the loop.

    Nothing is on any parameter while nobody is under suspicion.
    """

    def __init__(self, loop: Loop | None) -> None:
        self._loop = loop
        self._mutex = threading.Lock()
        self._suspects: dict[int, _Suspect] = {}
        self._busy = False

    def suspect(self, root: nn.Module, modules: Iterable[nn.Module]) -> None:
        """Look at these modules, which are not called; what they share with others is no evidence."""
        fresh = [module for module in modules if self._known(module) is None]
        if self._loop is None or not fresh:
            return
        owners = Counter(
            id(tensor) for module in reachable(root) for _, tensor in tensors(module, "_parameters")
        )
        with self._mutex:
            for module in fresh:
                own = [tensor for _, tensor in tensors(module, "_parameters") if owners[id(tensor)] == 1]
                self._suspects[id(module)] = _Suspect(module, own)
            if not self._busy:
                self._busy = True
                self._loop.add_chore(self._look)

    def found(self, module: nn.Module) -> bool:
        """Whether its parameters got gradients while it was looked at."""
        suspect = self._known(module)
        return suspect is not None and suspect.guilty

    @property
    def is_looking(self) -> bool:
        """Whether hooks of its own are on any parameter."""
        return any(suspect.handles for suspect in list(self._suspects.values()))

    def dismiss_all(self) -> None:
        """Take every hook off its parameter; at a point at which gradients may be looked at."""
        with self._mutex:
            for suspect in self._suspects.values():
                suspect.dismiss()
            self._suspects.clear()

    def _known(self, module: nn.Module) -> _Suspect | None:
        suspect = self._suspects.get(id(module))
        return suspect if suspect is not None and suspect.module() is module else None

    def _look(self) -> None:
        """On the training thread, where no backward runs."""
        with self._mutex:
            for suspect in self._suspects.values():
                with suppress(Exception):
                    if suspect.guilty or suspect.looks >= _LOOKS:
                        suspect.dismiss()
                    elif not suspect.looks:
                        suspect.attend()
                suspect.looks += 1
            if all(suspect.looks > _LOOKS or suspect.guilty for suspect in self._suspects.values()):
                self._busy = False
                if self._loop is not None:
                    self._loop.remove_chore(self._look)


def used_by_its_owner(root: nn.Module, raw_path: str) -> str:
    """Class of the module that is known to use this one's weights without calling it; "" where none is."""
    above, _, name = raw_path.rpartition(".")
    if name != "out_proj":
        return ""
    with suppress(AttributeError):
        owner = root.get_submodule(above)
        if isinstance(owner, nn.MultiheadAttention):
            return "nn.MultiheadAttention"
    return ""
