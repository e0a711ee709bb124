"""What the training thread is doing, as its own hooks and its stack tell."""

from __future__ import annotations

import sys
import sysconfig
import threading
import time
import types
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

__all__ = ["IDLE_AFTER", "Activity", "inside_another", "inside_step", "others_run_compiled"]

IDLE_AFTER = 1.0
"""Seconds without any movement after which a training thread counts as idle."""


_AWAKE_FOR = 5.0


class Activity:
    """Counters and flags that the training thread writes and others read. No locks.

    `moves` grows with every hook of ours that fires on the training thread; a thread whose moves
    and top frame stand still for a second, outside of forward, backward and step, is idle.
    """

    __slots__ = (
        "_mark",
        "_since",
        "_thread",
        "_used",
        "_used_at",
        "alert",
        "depth",
        "held",
        "ident",
        "moves",
        "native_id",
    )

    def __init__(self) -> None:
        self.ident: int | None = None
        self.native_id: int | None = None
        self._thread: threading.Thread | None = None
        self.moves = 0
        self.depth = 0
        self.alert = False
        """Whether a hook has more to do than to count: the one thing that it reads for that."""
        self.held = False
        """Whether the thread is held at a step boundary."""
        self._mark: tuple[object, ...] = ()
        self._since = 0.0
        self._used = 0.0
        self._used_at = 0.0

    def adopt(self) -> None:
        """Make the calling thread the training thread."""
        ident = threading.get_ident()
        if ident != self.ident:
            self.native_id = threading.get_native_id()
            self._thread = threading.current_thread()
            self.ident = ident
            self.depth = 0

    @property
    def alive(self) -> bool:
        """Whether a thread has trained and has not ended."""
        return self._thread is not None and self._thread.is_alive()

    def idle(self, *, asleep: bool = False) -> bool:
        """Whether the training thread does nothing that a request could disturb.

        True where no training has been seen or its thread has ended. A sample of the thread's top
        frame is kept between calls, so a thread that has not moved since a call at least a second
        ago is found idle at once. `asleep`: for five seconds, take a thread that has used the processor
        meanwhile for one that waits for something by turns, as for a device, and will go on.
        """
        frame = self._top_frame()
        if frame is None:
            return True
        if self.held:
            return False
        now, used = time.monotonic(), self._processor_time()
        mark = (self.moves, id(frame), frame.f_code, frame.f_lasti)
        if mark != self._mark:
            self._mark, self._since = mark, now
        if used != self._used:
            self._used, self._used_at = used, now
        stands = now - self._since
        if stands < IDLE_AFTER or (asleep and stands < _AWAKE_FOR and now - self._used_at < IDLE_AFTER):
            return False
        return not _inside(frame, _BUSY | _compiled_code())

    def _processor_time(self) -> float:
        """Seconds of processor time that the training thread has used; 0.0 where the system does not tell."""
        if self.ident is None or not hasattr(time, "pthread_getcpuclockid"):
            return 0.0
        try:
            return time.clock_gettime(time.pthread_getcpuclockid(self.ident))
        except OSError:
            return 0.0

    def runs_on(self, native_id: int) -> bool:
        """Whether the training thread is alive and has this native id."""
        return self.native_id == native_id and self.alive

    def _top_frame(self) -> types.FrameType | None:
        """Where the training thread is; None where there is none, or it has ended."""
        if self.ident is None or not self.alive:
            return None
        return sys._current_frames().get(self.ident)

    def describe(self, *, backward_expected: bool = False) -> str:
        """What the training thread was last seen doing, for a person."""
        frame = self._top_frame()
        if frame is None:
            return "no training thread is alive"
        doing = "between calls"
        if self.held:
            doing = "held at a step boundary"
        elif _inside(frame, _STEP):
            doing = "inside an optimizer's step"
        elif self.depth:
            doing = "inside forward"
        elif backward_expected:
            doing = "between a forward and its backward"
        own = _users_frame(frame)
        code = own.f_code
        where = f"{code.co_filename}:{own.f_lineno} in {code.co_name}"
        return f"the training thread was last seen {doing}, at {where}"


def _users_frame(frame: types.FrameType) -> types.FrameType:
    """The innermost frame that belongs neither to torch, to modscope nor to the standard library."""
    inner: types.FrameType | None = frame
    while inner is not None:
        name = inner.f_code.co_filename
        if not name.startswith(_LIBRARIES) and not inner.f_globals.get("__name__", "").startswith(_OWN):
            return inner
        inner = inner.f_back
    return frame


def inside_step() -> bool:
    """Whether the calling thread is inside an optimizer's step, as the closure of LBFGS is."""
    return _inside(sys._getframe(1), _STEP)


def inside_another(modules: Iterable[torch.nn.Module]) -> bool:
    """Whether one of these modules is being called on the calling thread, beside the innermost call."""
    ids = {id(module) for module in modules}
    calls = 0
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and calls < 2:
        if frame.f_code is _CALL:
            calls += id(frame.f_locals.get("self")) in ids
        frame = frame.f_back
    return calls > 1


def others_run_compiled() -> bool:
    """Whether a thread other than the calling one is inside a function that was given to torch.compile."""
    codes, own = _compiled_code(), threading.get_ident()
    return bool(codes) and any(
        _inside(frame, codes) for ident, frame in sys._current_frames().items() if ident != own
    )


def _step_code() -> frozenset[types.CodeType]:
    """Code objects that stand on the stack of a thread inside an optimizer's step."""
    wrap: Any = Optimizer.profile_hook_step
    return _inner_code(wrap)


def _busy_code() -> frozenset[types.CodeType]:
    """Code objects that stand on the stack of a thread inside forward or backward."""
    functions: list[Any] = [
        torch.nn.Module._call_impl,
        torch.autograd.backward,
        torch.autograd.grad,
        torch.Tensor.backward,
    ]
    return frozenset(function.__code__ for function in functions if hasattr(function, "__code__"))


def _compiled_code() -> frozenset[types.CodeType]:
    """Code objects that stand on the stack of a thread inside a compiled function."""
    dynamo: Any = sys.modules.get("torch._dynamo.eval_frame")
    enter = getattr(dynamo, "_TorchDynamoContext", None)
    return frozenset() if enter is None else _inner_code(enter.__call__)


def _inner_code(function: types.FunctionType) -> frozenset[types.CodeType]:
    return frozenset(const for const in function.__code__.co_consts if isinstance(const, types.CodeType))


_CALL = torch.nn.Module._call_impl.__code__
_STEP = _step_code()
_BUSY = _busy_code() | _STEP
_LIBRARIES = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<frozen")
_OWN = "modscope_server."


def _inside(frame: types.FrameType | None, codes: frozenset[types.CodeType]) -> bool:
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False
