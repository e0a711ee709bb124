"""Running statistics of normalisation layers, held still although the loop calls model.train()."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from modscope_server.inspection.counts import reachable
from modscope_server.inspection.lookup import module_at
from modscope_server.inspection.members import member
from modscope_server.inspection.memento import Memento
from modscope_server.inspection.records import Located, LocatedTensor
from modscope_server.inspection.selection import select_modules
from modscope_server.inspection.typenames import type_matcher

__all__ = ["Chores", "NormHolds", "norm_layers"]


class Chores(Protocol):
    """What calls functions on the training thread at each forward and after each optimizer step."""

    @property
    def notes(self) -> Sequence[str]: ...
    def add_chore(self, chore: Callable[[], None]) -> None: ...
    def remove_chore(self, chore: Callable[[], None]) -> None: ...


@dataclass(slots=True)
class _Hold:
    """A layer that is kept in evaluation mode."""

    module: nn.Module
    root: nn.Module
    training: bool
    """Whether the loop wants it to train: it did before, or has asked for it since."""


class NormHolds:
    """The normalisation layers whose running statistics are frozen.

    Each is put to evaluation mode, and again at each forward of its root and after each optimizer step,
    since loops call model.train() every epoch. Used at safe points alone.
    """

    def __init__(self, chores: Chores | None = None) -> None:
        self._chores = chores
        self._held: dict[int, _Hold] = {}

    def __contains__(self, module: object) -> bool:
        return id(module) in self._held

    def hold(self, module: nn.Module, root: nn.Module) -> None:
        """Keep the layer of this model in evaluation mode from now on. Idempotent."""
        if module in self:
            return
        if not self._held and self._chores is not None:
            self._chores.add_chore(self.enforce)
        self._held[id(module)] = _Hold(module, root, module.training)
        module.training = False

    def release(self, module: nn.Module) -> bool:
        """Let the loop have the layer's mode again; whether it was held."""
        held = self._held.pop(id(module), None)
        if held is None:
            return False
        module.training = held.training and (held.root is module or held.root.training)
        if not self._held and self._chores is not None:
            self._chores.remove_chore(self.enforce)
        return True

    def enforce(self) -> None:
        """Put every held layer to evaluation mode."""
        for held in self._held.values():
            if held.module.training:
                held.training = True
                held.module.training = False

    def keep(self, memento: Memento, module: nn.Module, root: nn.Module) -> None:
        """Keep whether the layer is held, and its mode."""
        held, training, mode = module in self, module.training, root.training

        def restore() -> None:
            if held:
                self.hold(module, root)
            elif self.release(module) and root.training == mode:
                module.training = training

        memento.keep(("norm_stats", id(module)), restore, again=lambda now: self.keep(now, module, root))

    @property
    def notes(self) -> tuple[str, ...]:
        """What keeps a layer from being held at every moment."""
        chores = self._chores
        if chores is None or not self._held:
            return ()
        return tuple(
            f"a layer that model.train() puts to training is put back after an optimizer step only: {note}"
            for note in chores.notes
        )


def norm_layers(
    root: nn.Module, located: Iterable[LocatedTensor], glob: str = "", type: str = ""
) -> list[Located]:
    """The layers with running statistics that own a selected parameter, or are selected by module path.

    In named_modules order. Raises BadGlobError.
    """
    chosen = {id(one.owner) for one in located}
    exact = module_at(root, glob) if glob else None
    if exact is not None:
        chosen |= {id(module) for module in reachable(exact.module)}
    elif not glob or glob == "*":
        chosen |= {id(module) for module in reachable(root)}
    else:
        chosen |= {id(one.module) for one in select_modules(root, glob)}
    matches = type_matcher(type)
    return [
        one
        for one in select_modules(root)
        if id(one.module) in chosen and has_running_statistics(one.module) and matches(one.module)
    ]


def has_running_statistics(module: nn.Module) -> bool:
    """Whether a forward in training mode moves statistics that the module keeps, as BatchNorm does."""
    if not isinstance(module, _NormBase) or not module.track_running_stats:
        return False
    return member(cast("Any", module), "_buffers", "running_mean") is not None
