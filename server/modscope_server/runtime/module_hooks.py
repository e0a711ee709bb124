"""What torch calls at a module that is observed: it finds the tap of that module, and never raises."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Collection
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback

from modscope_server.runtime.calls import frames_of_raise, stands_for
from modscope_server.runtime.uncopied import Uncopied

__all__ = ["CALLED_BY_TORCH", "AfterCall", "BeforeCall", "let_observers_follow"]

_is_compiling = torch.compiler.is_compiling
_is_tracing = torch._C._get_tracing_state
_runs_compiled = get_eval_frame_callback


class Tap(Protocol):
    """What observes one module."""

    sinks: tuple[Any, ...]
    module: weakref.ref[nn.Module]

    def before(self, module: nn.Module, rest: tuple[Any, ...], frame: FrameType) -> Any: ...
    def tell(self, module: nn.Module, output: Any) -> bool: ...
    def after(self, module: nn.Module, output: Any, frame: FrameType) -> None: ...
    def raised_in(
        self, module: nn.Module, output: Any, error: BaseException | None, frames: Collection[int]
    ) -> None: ...
    def fault(self, error: Exception, *, raised: bool = False) -> None: ...


class _Hook(Uncopied):
    """A callable on the module: harmless when copied or pickled, and it never raises."""

    __slots__ = ("_tap",)

    def __init__(self, tap: Tap) -> None:
        self._tap = weakref.ref(tap)


class BeforeCall(_Hook):
    """The pre-hook.

    Both call signatures of torch are taken, because torch looks up whether a hook wants kwargs after it
    has listed the hooks.
    """

    __slots__ = ()

    def __call__(self, module: nn.Module, *rest: Any) -> Any:
        if _is_compiling() or _runs_compiled() or _is_tracing():
            return None
        tap = self._tap()
        if tap is None or not tap.sinks or not (tap.module() is module or stands_for(module, tap.module())):
            return None
        try:
            return tap.before(module, rest, sys._getframe(1))
        except Exception as error:
            tap.fault(error)
            return None


class AfterCall(_Hook):
    """The post-hook, called where the module's call has raised, too."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if _is_compiling() or _runs_compiled() or _is_tracing():
            return
        tap = self._tap()
        if tap is None or not tap.sinks or not (tap.module() is module or stands_for(module, tap.module())):
            return
        raised: Collection[int] = ()
        try:
            error = sys.exc_info()[1]
            if error is None and tap.tell(module, output):
                return
            caller = sys._getframe(1)
            if error is not None:
                raised = frames_of_raise(error, caller)
            if raised:
                tap.raised_in(module, output, error, raised)
            else:
                tap.after(module, output, caller)
        except Exception as fault:
            tap.fault(fault, raised=bool(raised))


CALLED_BY_TORCH = (BeforeCall.__call__, AfterCall.__call__)
"""What torch calls; where that is compiled code, it finds nothing to do."""


def let_observers_follow(hooks: dict[int, Any]) -> None:
    """Move taps behind the other hooks of a module, so that they see what these give; at a write point."""
    for key in [key for key, hook in hooks.items() if isinstance(hook, _Hook)]:
        hooks[key] = hooks.pop(key)
