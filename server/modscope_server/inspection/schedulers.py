"""Learning rate schedulers that the loop has told of, and what they will do to a learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from modscope_server.inspection.optimizers import Group

__all__ = ["Schedulers", "number", "set_number"]

_GO_ON = (
    lr_scheduler.ChainedScheduler,
    lr_scheduler.ConstantLR,
    lr_scheduler.CosineAnnealingLR,
    lr_scheduler.ExponentialLR,
    lr_scheduler.LinearLR,
    lr_scheduler.MultiplicativeLR,
    lr_scheduler.MultiStepLR,
    lr_scheduler.PolynomialLR,
    lr_scheduler.ReduceLROnPlateau,
    lr_scheduler.StepLR,
)
"""They compute the next lr from the present one, so that a new one lasts; their subclasses may not."""

_BESIDES = {
    lr_scheduler.OneCycleLR: "max_lr and min_lr of the group",
    lr_scheduler.CyclicLR: "max_lrs of its own",
}
"""What some compute from besides base_lr."""

_INITIAL = "initial_lr"


class Schedulers:
    """The schedulers among the extras given to attach; in lists and mappings, and inside others, too."""

    def __init__(self, extras: Mapping[str, Any] | None = None) -> None:
        self._found = list(_schedulers((extras or {}).values()))

    def of(self, group: Group) -> list[Any]:
        """Those that set the group's lr, told by the identity of their optimizer."""
        return [one for one in self._found if getattr(one, "optimizer", None) is group.optimizer]

    def name(self, group: Group) -> str:
        """Class of the outermost one that sets the group's lr; "" where none is known."""
        return next((type(one).__name__ for one in self.of(group)), "")

    def bases(self, group: Group) -> list[tuple[Any, int]]:
        """The lists, each with an index, in which schedulers keep what they compute the group's lr from."""
        found = [getattr(one, "base_lrs", None) for one in self.of(group)]
        return [(one, group.place) for one in found if isinstance(one, list) and group.place < len(one)]

    def base_lr(self, group: Group) -> float | None:
        """What the group's lr is computed from; None where nothing is known of it."""
        for bases, place in self.bases(group):
            return number(bases[place])
        return number(group.options.get(_INITIAL))

    def warning(self, group: Group) -> str:
        """What will become of a new lr when a scheduler steps; "" where it lasts."""
        for one in self.of(group):
            if type(one) not in _GO_ON:
                when = "milestone" if isinstance(one, lr_scheduler.SequentialLR) else "step"
                name, base = type(one).__name__, self.base_lr(group)
                return f"{name} will set the lr of {group} again at its next {when}, from base_lr {base}"
        if _INITIAL in group.options and not self.of(group):
            base = self.base_lr(group)
            return (
                f"a scheduler has left initial_lr {base} in {group} and may set the lr again at its next step"
            )
        return ""

    def besides(self, group: Group) -> str:
        """What a scheduler computes the group's lr from besides base_lr; "" where there is nothing."""
        found = [
            f"{type(one).__name__} also computes from {_BESIDES[type(one)]}"
            for one in self.of(group)
            if type(one) in _BESIDES
        ]
        return found[0] if found else ""


def number(value: object) -> float | None:
    """A hyper-parameter as a number; None where it is none."""
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 and not value.is_meta else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


@torch.no_grad()
def set_number(store: Any, key: Any, value: float) -> None:
    """Set a hyper-parameter; a tensor is filled, so that compiled and captured code keeps it."""
    if isinstance(store[key], torch.Tensor):
        store[key].fill_(value)
    else:
        store[key] = value


def _schedulers(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _schedulers(value)
        elif isinstance(value, dict):
            yield from _schedulers(value.values())
        elif isinstance(value, LRScheduler) or (hasattr(value, "base_lrs") and hasattr(value, "optimizer")):
            yield value
            yield from _schedulers(getattr(value, "_schedulers", ()))
