"""What the training thread is doing, as its own hooks and its stack tell."""

from __future__ import annotations

import sys
import sysconfig
import threading
import time
import types
import weakref
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

__all__ = ["IDLE_AFTER", "Activity", "PendingForward"]

IDLE_AFTER = 1.0
"""Seconds without any movement after which a training thread counts as idle."""


class PendingForward:
    """A grad-enabled forward whose backward has not begun.

    It is kept alive by the autograd graph alone, as a pre-hook of the nodes that made the outputs:
    when the graph dies unused, so does this. A hook on the tensors would cost four times as much.
    """

    __slots__ = ("__weakref__", "reached")

    def __init__(self) -> None:
        self.reached = False

    def __call__(self, gradients: tuple[torch.Tensor, ...]) -> None:
        self.reached = True


class Activity:
    """Counters and flags that the training thread writes and others read. No locks.

    `moves` grows with every hook of ours that fires on the training thread; a thread whose moves
    and top frame stand still for a second, outside of forward, backward and step, is idle.
    """

    def __init__(self) -> None:
        self.ident: int | None = None
        self.native_id: int | None = None
        self._thread: threading.Thread | None = None
        self.moves = 0
        self.depth = 0
        self.in_step = False
        self._pending: list[weakref.ref[PendingForward]] = []
        self._mark: tuple[object, ...] = ()
        self._since = 0.0

    def adopt(self) -> None:
        """Make the calling thread the training thread."""
        ident = threading.get_ident()
        if ident != self.ident:
            self.native_id = threading.get_native_id()
            self._thread = threading.current_thread()
            self.ident = ident
            self.depth = 0
            self.in_step = False

    def expect_backward(self, output: object) -> None:
        """Remember that `output`, just returned by a root, may be back-propagated."""
        pending = PendingForward()
        if _hook_tensors(output, pending):
            self._pending = [old for old in self._pending if _waits(old)]
            self._pending.append(weakref.ref(pending))

    @property
    def backward_expected(self) -> bool:
        """Whether the outputs of some forward are alive and not yet back-propagated."""
        return any(_waits(pending) for pending in self._pending)

    def idle(self) -> bool:
        """Whether the training thread does nothing that a request could disturb.

        True where no training has been seen or its thread has ended. A sample of the thread's top
        frame is kept between calls, so a thread that has not moved since a call at least a second
        ago is found idle at once.
        """
        frame = self._top_frame()
        if frame is None:
            return True
        mark = (self.moves, id(frame), frame.f_code, frame.f_lasti)
        now = time.monotonic()
        if mark != self._mark:
            self._mark, self._since = mark, now
        if now - self._since < IDLE_AFTER:
            return False
        return not _inside_torch(frame)

    def runs_on(self, native_id: int) -> bool:
        """Whether the training thread is alive and has this native id."""
        return self._thread is not None and self._thread.is_alive() and self.native_id == native_id

    def _top_frame(self) -> types.FrameType | None:
        """Where the training thread is; None where there is none, or it has ended."""
        if self.ident is None or self._thread is None or not self._thread.is_alive():
            return None
        return sys._current_frames().get(self.ident)

    def describe(self) -> str:
        """What the training thread was last seen doing, for a person."""
        frame = self._top_frame()
        if frame is None:
            return "no training thread is alive"
        doing = "between calls"
        if self.in_step or self.depth:
            doing = "inside an optimizer's step" if self.in_step else "inside forward"
        elif self.backward_expected:
            doing = "between a forward and its backward"
        own = _users_frame(frame)
        code = own.f_code
        where = f"{code.co_filename}:{own.f_lineno} in {code.co_name}"
        return f"the training thread was last seen {doing}, at {where}"


def _users_frame(frame: types.FrameType) -> types.FrameType:
    """The innermost frame that belongs neither to torch nor to the standard library."""
    inner: types.FrameType | None = frame
    while inner is not None:
        if not inner.f_code.co_filename.startswith(_LIBRARIES):
            return inner
        inner = inner.f_back
    return frame


def _waits(pending: weakref.ref[PendingForward]) -> bool:
    forward = pending()
    return forward is not None and not forward.reached


def _hook_tensors(value: object, hook: PendingForward, depth: int = 0) -> bool:
    if isinstance(value, torch.Tensor):
        if value.requires_grad and value.grad_fn is not None:
            value.grad_fn.register_prehook(hook)
            return True
        return False
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


def _busy_code() -> frozenset[types.CodeType]:
    """Code objects that stand on the stack of a thread inside forward, backward or step."""
    functions: list[Any] = [
        torch.nn.Module._call_impl,
        torch.autograd.backward,
        torch.autograd.grad,
        torch.Tensor.backward,
    ]
    codes = {function.__code__ for function in functions if hasattr(function, "__code__")}
    wrap = Optimizer.profile_hook_step
    codes.update(const for const in wrap.__code__.co_consts if isinstance(const, types.CodeType))
    return frozenset(codes)


_BUSY = _busy_code()
_LIBRARIES = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<frozen")


def _inside_torch(frame: types.FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code in _BUSY:
            return True
        frame = frame.f_back
    return False
