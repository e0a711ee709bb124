"""Which parameters are told in an iteration, and to whom."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from modscope.paths import join
from modscope_server.inspection.members import tensors
from modscope_server.inspection.structure import Located
from modscope_server.runtime.capture import Sink
from modscope_server.runtime.tally import Tally

__all__ = ["Reader", "Selection", "Target", "targets"]


class Reader(NamedTuple):
    """A subscriber to a parameter, and the name under which it has selected it."""

    sink: Sink
    model: str
    path: str
    raw_path: str
    type: str
    """Class of the module that owns the parameter."""
    tally: Tally


class Target(NamedTuple):
    """A parameter that is told."""

    tensor: torch.Tensor
    readers: list[Reader]


class Selection:
    """The modules whose own parameters a subscriber watches.

    Args:
        step: step_count when it was armed: the iteration that this ends, it has not seen whole.
        tally: counts what it is told.
    """

    __slots__ = ("_modules", "_tally", "_unseen", "model", "sink")

    def __init__(self, sink: Sink, model: str, modules: Iterable[Located], step: int, tally: Tally) -> None:
        self.sink = sink
        self._tally = tally
        self.model = model
        self._unseen: int | None = step
        self._modules = [(weakref.ref(one.module), one.path, one.raw_path) for one in modules]

    def wants(self, step: int) -> bool:
        """Whether anything of that iteration is told to it; asked for each."""
        if step == self._unseen:
            return False
        self._unseen = None
        return self.sink.window.wants_step(step)

    def parameters(self) -> Iterable[tuple[torch.Tensor, Reader]]:
        """The parameters that the modules have now, a tied one under its first path alone."""
        seen: set[int] = set()
        for module, name, tensor, path, raw_path in self._members():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                full = join(path, name)
                raw = full if raw_path == path else join(raw_path, name)
                yield tensor, Reader(self.sink, self.model, full, raw, type(module).__name__, self._tally)

    def _members(self) -> Iterable[tuple[nn.Module, str, torch.Tensor, str, str]]:
        for reference, path, raw_path in self._modules:
            module = reference()
            if module is not None:
                for name, tensor in tensors(module, "_parameters"):
                    yield module, name, tensor, path, raw_path


def targets(selections: Sequence[Selection], step: int) -> dict[int, Target]:
    """What is told of an iteration, by the identity of the tensor; nothing where nobody wants it."""
    found: dict[int, Target] = {}
    for selection in selections:
        if selection.wants(step):
            for tensor, reader in selection.parameters():
                target = found.get(id(tensor))
                if target is None:
                    target = found[id(tensor)] = Target(tensor, [])
                target.readers.append(reader)
    return found
