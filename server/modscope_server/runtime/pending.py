"""Forwards whose backward has not begun: between the two nothing may be written."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["PendingForward", "PendingForwards"]

_ATTENTION = 256
_FORGET_AFTER = 64
_PRUNE_AT = 16


class PendingForward:
    """A grad-enabled forward whose backward has not begun.

    It is kept alive by the autograd graph alone, as a pre-hook of the nodes that made the outputs:
    when the graph dies unused, so does this. A hook on the tensors would cost four times as much.
    """

    __slots__ = ("__weakref__", "_tell", "reached")

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self.reached = False

    def __call__(self, gradients: tuple[torch.Tensor, ...]) -> None:
        self._tell()
        self.reached = True


class PendingForwards:
    """The forwards of the roots that may still be back-propagated.

    While nobody calls, all that is kept of a forward is when it was. `attend` has the next ones followed
    exactly, at about 10 us each. A forward from before that counts as pending until every optimizer has
    stepped since: a graph that is older than the step of its optimizer cannot be back-propagated any
    more. Where an optimizer steps no more, 64 forwards that were followed take the place of its step.

    Args:
        tell: called as the backward of a followed forward begins.
    """

    __slots__ = ("_followed", "_in_a_row", "_last_unfollowed", "_tell", "attention", "unfollowed", "updates")

    def __init__(self, tell: Callable[[], None] = lambda: None) -> None:
        self._tell = tell
        self._followed: list[weakref.ref[PendingForward]] = []
        self._in_a_row = 0
        self._last_unfollowed = 0
        self.attention = 0
        """How many forwards more are followed."""
        self.unfollowed = 0
        """When the last forward was that was not followed, in moves of the training thread; 0 for none."""
        self.updates: dict[int, int] = {}
        """When each optimizer, by its id, has last stepped, in moves of the training thread."""

    def attend(self) -> None:
        """Somebody calls: follow the next forwards."""
        self.attention = _ATTENTION

    def follow(self, output: object) -> None:
        """A root has returned `output` with gradients enabled."""
        self.attention -= 1
        if self.unfollowed != self._last_unfollowed:
            self._last_unfollowed, self._in_a_row = self.unfollowed, 0
        self._in_a_row += 1
        if self._in_a_row >= _FORGET_AFTER:
            self.unfollowed = self._last_unfollowed = 0
        pending = PendingForward(self._tell)
        if _hook_tensors(output, pending):
            if len(self._followed) >= _PRUNE_AT:
                self._followed = [known for known in self._followed if _waits(known)]
            self._followed.append(weakref.ref(pending))

    def any(self) -> bool:
        """Whether a backward may still come for a forward that has been."""
        if any(map(_waits, self._followed.copy())):
            return True
        return self.unfollowed > min(list(self.updates.values()), default=0)


def _waits(followed: weakref.ref[PendingForward]) -> bool:
    pending = followed()
    return pending is not None and not pending.reached


def _hook_tensors(value: object, hook: PendingForward, depth: int = 0) -> bool:
    """Put the hook on the nodes of all tensors in a structure; whether there was one."""
    if isinstance(value, torch.Tensor):
        if value.grad_fn is None:
            return False
        value.grad_fn.register_prehook(hook)
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
    hooked = [_hook_tensors(item, hook, depth + 1) for item in inner]
    return any(hooked)
