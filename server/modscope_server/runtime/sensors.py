"""The hooks by which the safe point learns where the training thread is.

One pre- and one post-hook on each registered root, and one pair of hooks for all optimizers of the
process, which is registered once and never removed: torch iterates over the optimizer hooks lazily,
so removing one while a step runs would raise in the training loop.

The hooks do the common case themselves, in one call and a few reads, since they run in every step:
a call into code that has left the processor's caches costs more than all that it computes.
"""

from __future__ import annotations

import contextlib
import logging
from threading import get_ident
from typing import Any, Protocol

import torch
from torch import nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch.compiler import is_dynamo_compiling
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from modscope_server.runtime.activity import Activity
from modscope_server.runtime.pending import PendingForwards
from modscope_server.runtime.stance import keep_out
from modscope_server.runtime.steps import StepCounter
from modscope_server.runtime.uncopied import Uncopied

__all__ = [
    "Listener",
    "RootHook",
    "hook_root",
    "in_backward",
    "listen_to_optimizers",
    "root_hooks",
    "stop_listening",
]

_LOG = logging.getLogger("modscope_server")
_NO_BACKWARD = -1
_backward_id = torch._C._current_graph_task_id
_grad_enabled = torch.is_grad_enabled
_runs_compiled = get_eval_frame_callback


def in_backward() -> bool:
    """Whether the calling thread is inside a backward pass."""
    return _backward_id() != _NO_BACKWARD


class Listener(Protocol):
    """Who is told of what the training thread does. Called on that thread; faults end here."""

    activity: Activity
    steps: StepCounter
    pending: PendingForwards

    def forward_begins(self, module: nn.Module) -> None: ...
    def forward_ended(self, output: object) -> None: ...
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


def hook_root(root: nn.Module, listener: Listener) -> list[RemovableHandle]:
    """Put the safe point's two hooks on a root; a ScriptModule takes none."""
    if isinstance(root, torch.jit.ScriptModule):
        return []
    keep_out(_Before.__call__, _After.__call__)
    return [
        root.register_forward_pre_hook(_Before(root, listener), prepend=True),
        root.register_forward_hook(_After(root, listener), always_call=True),
    ]


def root_hooks(root: nn.Module) -> list[tuple[str, RootHook]]:
    """The safe point's hooks on a root, each with its kind."""
    tables: dict[str, Any] = {"forward_pre": root._forward_pre_hooks, "forward": root._forward_hooks}
    return [
        (kind, hook)
        for kind, table in tables.items()
        for hook in list(table.values())
        if isinstance(hook, RootHook)
    ]


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if is_dynamo_compiling():
        return
    for listener in _listeners:
        try:
            listener.optimizer_begins(optimizer)
        except Exception:
            _report_fault()


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if is_dynamo_compiling():
        return
    for listener in _listeners:
        try:
            listener.optimizer_stepped(optimizer)
        except Exception:
            _report_fault()


def _report_fault() -> None:
    """A fault of ours is logged and never reaches the training loop."""
    # What handles logs is the user's, and may raise itself.
    with contextlib.suppress(Exception):
        _LOG.exception("a safe point hook failed; training goes on")


class RootHook(Uncopied):
    """A hook on a registered root.

    Both call signatures of torch are taken, because torch looks up whether a hook wants kwargs after it
    has listed the hooks.
    """

    __slots__ = ("_activity", "_listener", "_root", "fired")

    def __init__(self, root: nn.Module, listener: Listener) -> None:
        # An id is enough: the root owns this hook, and on a copy it must do nothing.
        self._root = id(root)
        self._listener = listener
        self._activity = listener.activity
        self.fired = 0


class _Before(RootHook):
    """A root's forward pre-hook."""

    __slots__ = ()

    def __call__(self, module: nn.Module, *rest: Any) -> None:
        if is_dynamo_compiling() or id(module) != self._root or _runs_compiled():
            return
        self.fired += 1
        activity = self._activity
        if get_ident() == activity.ident:
            # A server thread sets `alert`, then reads `moves`; this one the other way round.
            activity.moves += 1
            if not (activity.alert or activity.depth) and _backward_id() == _NO_BACKWARD:
                activity.depth = 1
                listener = self._listener
                if _grad_enabled():
                    if not listener.pending.attention:
                        listener.pending.unfollowed = activity.moves
                    if listener.steps.forward_is_news and module.training:
                        listener.steps.forward_began()
                return
        try:
            self._listener.forward_begins(module)
        except Exception:
            _report_fault()


class _After(RootHook):
    """A root's forward hook, called where the forward raised, too."""

    __slots__ = ()

    def __call__(self, module: nn.Module, *rest: Any) -> None:
        if is_dynamo_compiling() or id(module) != self._root or _runs_compiled():
            return
        self.fired += 1
        activity = self._activity
        try:
            if get_ident() == activity.ident:
                activity.moves += 1
                if not activity.alert and activity.depth == 1 and _backward_id() == _NO_BACKWARD:
                    activity.depth = 0
                    if self._listener.pending.attention and _grad_enabled():
                        self._listener.pending.follow(rest[-1])
                    return
            self._listener.forward_ended(rest[-1])
        except Exception:
            _report_fault()
