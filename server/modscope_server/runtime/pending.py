"""Forwards whose backward has not begun: between the two nothing may be written."""

from __future__ import annotations

import weakref
from typing import Any

import torch

__all__ = ["PendingForward", "PendingForwards"]

_KEY = "modscope"
_ATTENTION = 256
_FORGOTTEN_AFTER = 2
_PRUNE_AT = 16


class PendingForward:
    """A grad-enabled forward. The autograd graph alone keeps it alive: when that dies, so does this.

    An exact one is a pre-hook of the nodes that made the outputs, and learns when the backward reaches
    them. Any other lies in their metadata, which costs nothing in the backward, and learns nothing.
    """

    __slots__ = ("__weakref__", "born", "exact", "reached")

    def __init__(self, born: int, exact: bool) -> None:
        self.born = born
        self.exact = exact
        self.reached = False

    def __call__(self, gradients: tuple[torch.Tensor, ...]) -> None:
        self.reached = True


class PendingForwards:
    """The forwards of the roots that may still be back-propagated.

    While nobody calls, forwards are only marked. `attend` makes the next ones exact, at about 10 us each.
    """

    __slots__ = ("_known", "attention")

    def __init__(self) -> None:
        self._known: list[weakref.ref[PendingForward]] = []
        self.attention = 0

    def attend(self) -> None:
        """Somebody calls: follow the next forwards exactly."""
        self.attention = _ATTENTION

    def add(self, output: object, step: int) -> None:
        """A root has returned `output` with gradients enabled, when `step` iterations were complete."""
        attention = self.attention
        if attention:
            self.attention = attention - 1
        pending = PendingForward(step, attention > 0)
        if _put(pending, output):
            if len(self._known) >= _PRUNE_AT:
                self._known = [known for known in self._known if known() is not None]
            self._known.append(weakref.ref(pending))

    def any(self, step: int, *, exact: bool = True) -> bool:
        """Whether the outputs of some forward are alive and not yet back-propagated.

        A forward that was only marked counts as long as its graph lives, and for two iterations at most:
        later its backward would find parameters that the optimizer has changed. `exact=False` leaves it
        out as soon as an iteration has ended since: good enough for a remark, not for a write.
        """
        patience = _FORGOTTEN_AFTER if exact else 1
        for known in self._known.copy():
            pending = known()
            if pending is None or pending.reached:
                continue
            if pending.exact or step - pending.born < patience:
                return True
        return False


def _put(pending: PendingForward, value: object, depth: int = 0) -> bool:
    """Put it on the nodes of all tensors in a structure; whether there was one."""
    if isinstance(value, torch.Tensor):
        node: Any = value.grad_fn
        if node is None:
            return False
        if pending.exact:
            node.register_prehook(pending)
        else:
            node.metadata[_KEY] = pending
        return True
    if depth > 8:
        return False
    inner: Any = ()
    if isinstance(value, (tuple, list)):
        inner = value
    elif isinstance(value, dict):
        inner = value.values()
    elif hasattr(value, "__dataclass_fields__"):
        inner = vars(value).values()
    found = False
    for item in inner:
        found |= _put(pending, item, depth + 1)
    return found
