"""The calls of one module: numbered within a step, and followed from hook to hook on each thread."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Sequence
from types import FrameType
from typing import NamedTuple

import torch
from torch import nn

from modscope_server.runtime.audience import Audience

__all__ = ["Call", "CallNumbers", "OpenCalls", "frames_of_raise", "stands_for"]


class Call:
    """One forward of a module, from its first hook to its backward."""

    __slots__ = ("asked", "audience", "frame", "index", "inputs", "left_out", "recompute", "step")

    def __init__(
        self, step: int, index: int, recompute: bool, audience: Audience, left_out: Audience, asked: Audience
    ) -> None:
        self.step = step
        self.index = index
        self.recompute = recompute
        self.audience = audience
        self.left_out = left_out
        """Who would want it, were it not for their rate."""
        self.asked = asked
        """All who were there when it began."""
        self.frame = 0
        self.inputs: Sequence[tuple[str, torch.Tensor | None, int]] = ()
        """Key, identity view and its version, of each tensor given to forward; held until forward returns."""


class _Step(NamedTuple):
    """A step, and the numbers that are left in it: counters that threads may share."""

    step: int
    calls: itertools.count[int]
    recomputations: itertools.count[int]


class CallNumbers:
    """Numbers the calls of a module within a step, each once, whichever threads they are made on."""

    def __init__(self, step: Callable[[], int]) -> None:
        self._step = step
        self._mutex = threading.Lock()
        self._now = _Step(-1, itertools.count(), itertools.count())

    def next(self, recompute: bool) -> tuple[int, int]:
        """The step, and the number of this call in it."""
        now = self._now
        if now[0] != self._step():
            now = self._renewed()
        return now[0], next(now[2] if recompute else now[1])

    def _renewed(self) -> _Step:
        with self._mutex:
            step = self._step()
            if self._now.step != step:
                self._now = _Step(step, itertools.count(), itertools.count())
            return self._now


class OpenCalls(threading.local):
    """The calls of a module that have begun and not ended, on each thread.

    A call is known by torch's frame that runs its hooks. A hook after forward may come without the one
    before (a hook of the user's raised first), or not at all (of an interrupt torch tells nobody).
    """

    def __init__(self) -> None:
        self._calls: list[Call] = []

    def begin(self, call: Call, frame: FrameType) -> None:
        """A call has begun."""
        if self._calls:
            self._forget_the_interrupted(frame)
        call.frame = id(frame)
        self._calls.append(call)

    def end(self, frames: Collection[int]) -> Call | None:
        """The call that one of these frames has begun; None where its beginning was not seen."""
        calls = self._calls
        for position in range(len(calls) - 1, -1, -1):
            if calls[position].frame in frames:
                call = calls[position]
                del calls[position:]
                return call
        return None

    def _forget_the_interrupted(self, frame: FrameType) -> None:
        running = set()
        outer = frame.f_back
        while outer is not None:
            running.add(id(outer))
            outer = outer.f_back
        self._calls = [call for call in self._calls if call.frame in running]


def frames_of_raise(error: BaseException | None, caller: FrameType) -> tuple[int, ...]:
    """Ids of the frames of a call that `error` has ended; none where it is another's.

    A hook that torch calls because of an exception is called where that was caught, and there its
    traceback begins. An exception that somebody else handles, around the call of the module, was caught
    elsewhere.
    """
    trace = None if error is None else error.__traceback__
    if trace is None or trace.tb_frame is not caller:
        return ()
    # Torch runs the hooks in the frame that catches, or in one that this calls.
    inner = trace.tb_next
    return (id(caller),) if inner is None else (id(caller), id(inner.tb_frame))


def stands_for(module: nn.Module, original: nn.Module | None) -> bool:
    """Whether it is that module, or a replica of it as DataParallel makes them, which shares its hooks."""
    return module is original or (
        original is not None
        and "_is_replica" in module.__dict__
        and module._forward_hooks is original._forward_hooks
    )
