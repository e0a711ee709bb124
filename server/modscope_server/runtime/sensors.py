"""The hooks by which the safe point learns where the training thread is.

One pre- and one post-hook on each registered root, and one pair of hooks for all optimizers of the
process, which is registered once and never removed: torch iterates over the optimizer hooks lazily,
so removing one while a step runs would raise in the training loop.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

__all__ = ["Listener", "RootHook", "in_backward", "listen_to_optimizers", "stop_listening"]

_LOG = logging.getLogger("modscope_server")


def in_backward() -> bool:
    """Whether the calling thread is inside a backward pass."""
    return torch._C._current_graph_task_id() != -1


class Listener(Protocol):
    """Who is told of optimizer steps. Called on the thread that steps; must not raise."""

    def optimizer_begins(self, optimizer: Optimizer) -> None: ...
    def optimizer_stepped(self, optimizer: Optimizer) -> None: ...


_listeners: tuple[Listener, ...] = ()
_registered = False


def listen_to_optimizers(listener: Listener) -> None:
    """Tell the listener of every optimizer step in this process until `stop_listening`."""
    global _listeners, _registered
    if not _registered:
        register_optimizer_step_pre_hook(_before_step)
        register_optimizer_step_post_hook(_after_step)
        _registered = True
    _listeners = (*_listeners, listener)


def stop_listening(listener: Listener) -> None:
    """Tell the listener no more. Idempotent."""
    global _listeners
    _listeners = tuple(other for other in _listeners if other is not listener)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not torch.compiler.is_compiling():
        for listener in _listeners:
            _guarded(listener.optimizer_begins, optimizer)


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not torch.compiler.is_compiling():
        for listener in _listeners:
            _guarded(listener.optimizer_stepped, optimizer)


def _guarded(tell: Callable[..., None], *what: Any) -> None:
    """A fault of ours is logged and never reaches the training loop."""
    try:
        tell(*what)
    except Exception:
        _LOG.exception("a safe point hook failed; training goes on")


class RootHook:
    """A hook on a registered root.

    It answers for that module alone: on a deep copy it does nothing, and pickled it becomes a
    function of the standard library that does nothing. Both call signatures of torch are taken,
    because torch looks up whether a hook wants kwargs after it has listed the hooks.
    """

    __slots__ = ("_root", "_tell", "fired")

    def __init__(self, root: nn.Module, tell: Callable[[nn.Module, tuple[Any, ...]], None]) -> None:
        self._root = weakref.ref(root)
        self._tell = tell
        self.fired = 0

    def __call__(self, module: nn.Module, *rest: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if self._root() is module:
            self.fired += 1
            _guarded(self._tell, module, rest)

    def __deepcopy__(self, memo: dict[int, object]) -> RootHook:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")
