"""Where requests meet the model: between steps of a running loop, at once beside an idle one.

`SafePoint.run` is the only way in which anything touches tensors of a registered model. See
README.md in this folder for why no read is torn and no write hits a step in flight.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import nn
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from modscope_server.errors import Closed, NoSafePoint
from modscope_server.runtime.activity import Activity
from modscope_server.runtime.modes import neutral_modes
from modscope_server.runtime.queue import Kind, Request, RequestQueue
from modscope_server.runtime.sensors import RootHook, in_backward, listen_to_optimizers, stop_listening
from modscope_server.runtime.steps import StepCounter

__all__ = ["Answer", "Caller", "Kind", "SafePoint"]

T = TypeVar("T")

_TICK = 0.02
_PENDING_NOTE = "a forward may still wait for its backward, which will use the values from before this change"


class Caller(NamedTuple):
    """The thread that a request comes from, as its client tells."""

    boot_id: str
    pid: int
    native_id: int


class Cancelled(Protocol):
    """What tells that a caller is gone, such as a threading.Event."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What a request gave, and the step at which it holds."""

    value: T
    step: int
    notes: tuple[str, ...] = ()


class SafePoint:
    """Decides when a request may touch the models, and counts steps.

    Args:
        roots: the registered root modules; each gets one pre- and one post-hook.
        is_ours: whether an optimizer's steps concern these models.
        optimizers: how many optimizers were given.
        boot_id: this machine's boot id, to recognise calls from the training thread itself.
        read_share: share of a running loop's time that reads may take; later ones wait.
    """

    def __init__(
        self,
        roots: Iterable[nn.Module],
        *,
        is_ours: Callable[[Optimizer], bool] = lambda optimizer: True,
        optimizers: int = 0,
        boot_id: str = "",
        read_share: float = 0.05,
    ) -> None:
        self.activity = Activity()
        self._steps = StepCounter(optimizers)
        self._is_ours = is_ours
        self._boot_id = boot_id
        self._read_share = read_share
        self._reads_resume = 0.0
        self._pid = os.getpid()
        self._running = threading.Lock()
        self._server: int | None = None
        self._busy = False
        self._queue = RequestQueue()
        self._closed = False
        self._handles: list[RemovableHandle] = []
        for root in roots:
            self._handles += _hook_root(root, self._forward_begins, self._forward_ended)
        listen_to_optimizers(self)

    @property
    def idle(self) -> bool:
        """Whether a request would be served at once, beside the training thread."""
        return self.activity.idle()

    def abandon(self) -> None:
        """Make all hooks inert without a lock: for a forked child, where locks may be held forever."""
        self._closed = True
        self._busy = False

    @property
    def step_count(self) -> int:
        """Completed training iterations."""
        return self._steps.count

    def run(
        self,
        fn: Callable[[], T],
        *,
        kind: Kind = "read",
        caller: Caller | None = None,
        timeout: float | None = None,
        cancelled: Cancelled | None = None,
    ) -> Answer[T]:
        """Run `fn` where it can neither tear nor be torn, and return what it gave.

        Between steps of a running loop `fn` runs on the training thread; beside an idle model, or
        when the training thread itself is the caller, on the calling thread while the training
        thread is held at its next hook. It runs under neutral thread-local modes, without grad.

        Raises NoSafePoint when `timeout` seconds bring no point or the caller is gone: `fn` is then
        withdrawn and never runs. Raises Closed after `close`. What `fn` raises comes through.
        """
        if self._closed:
            raise Closed("the server is closing", hint="connect to a running server: `modscope ps`")
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._is_training_thread(caller):
            return self._run_for_training_thread(fn, kind, deadline)
        if self.activity.idle() and self._claim():
            return self._run_claimed(fn, kind)
        return self._wait(Request(fn, kind), deadline, cancelled)

    def peek(self, fn: Callable[[], T]) -> Answer[T]:
        """Run `fn`, which reads structure alone, at once and on the calling thread.

        A structure that changes meanwhile makes `fn` raise RuntimeError; it is then run again.
        """
        for _ in range(20):
            try:
                return Answer(fn(), self.step_count)
            except RuntimeError as error:
                if "changed size" not in str(error) and "mutated" not in str(error):
                    raise
        return Answer(fn(), self.step_count)

    def mark_step(self) -> None:
        """A loop without a torch optimizer has completed an iteration; called on its thread."""
        if self._server == threading.get_ident() or self._closed:
            return
        self.activity.adopt()
        self._moved()
        self._steps.mark()
        self._serve(write=not self.activity.backward_expected)

    def close(self) -> None:
        """Take all hooks off and fail what waits. Idempotent."""
        self._closed = True
        stop_listening(self)
        for handle in self._handles:
            handle.remove()
        for request in self._queue.take(("read", "grad", "write")):
            request.fail(Closed("the server closed before the model could be reached"))

    # The training thread's side. Nothing here raises into the loop.

    def _forward_begins(self, module: nn.Module, rest: tuple[Any, ...]) -> None:
        ident = threading.get_ident()
        activity = self.activity
        if ident == self._server or self._closed or in_backward():
            return
        training = torch.is_grad_enabled()
        if training or activity.ident is None:
            activity.adopt()
        elif ident != activity.ident:
            return
        self._moved()
        if activity.depth == 0 and not activity.in_step:
            if self._queue:
                self._serve(grad=False, write=not activity.backward_expected)
            if training and module.training:
                self._steps.forward_began()
        activity.depth += 1

    def _forward_ended(self, module: nn.Module, rest: tuple[Any, ...]) -> None:
        ident = threading.get_ident()
        activity = self.activity
        if ident == self._server or ident != activity.ident or self._closed or in_backward():
            return
        self._moved()
        activity.depth = max(0, activity.depth - 1)
        if activity.depth == 0:
            if torch.is_grad_enabled():
                activity.expect_backward(rest[-1])
            if self._queue and not activity.in_step and not self._steps.begun:
                self._serve(grad=False, write=not activity.backward_expected)

    def optimizer_begins(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step."""
        if (
            self._closed
            or self._server == threading.get_ident()
            or in_backward()
            or not self._is_ours(optimizer)
        ):
            return
        self.activity.adopt()
        self._moved()
        self.activity.depth = 0
        if self._queue and not self._steps.begun:
            self._serve(write=False)
        self.activity.in_step = True

    def optimizer_stepped(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped."""
        if self._closed or self._server == threading.get_ident() or not self._is_ours(optimizer):
            return
        if in_backward():
            self._steps.stepped_inside_backward()
            return
        self.activity.adopt()
        self._moved()
        self.activity.in_step = False
        self._steps.optimizer_stepped(id(optimizer))
        if self._queue and self._steps.complete:
            self._serve(write=not self.activity.backward_expected)

    def _moved(self) -> None:
        """Tell that the training thread goes on; wait here while a request runs beside it.

        The order matters: a server thread sets `_busy`, then reads `moves`; this thread writes
        `moves`, then reads `_busy`. So one of the two sees the other.
        """
        self.activity.moves += 1
        if self._busy:
            with self._running:
                pass

    def _serve(self, *, write: bool, grad: bool = True) -> None:
        """Run what waits and may run here, on the training thread."""
        reads = self._reads_wait() <= 0
        admitted: dict[Kind, bool] = {"read": reads, "grad": reads and grad, "write": write}
        ready = self._queue.take([kind for kind, here in admitted.items() if here])
        if not ready:
            return
        began = time.monotonic()
        with self._running:
            self._server = threading.get_ident()
            try:
                for request in ready:
                    self._finish(request)
            finally:
                self._server = None
                if any(request.kind != "write" for request in ready):
                    ended = time.monotonic()
                    self._reads_resume = ended + (ended - began) * (1 / self._read_share - 1)
                for request in ready:
                    request.fail(Closed("training was interrupted before this request was served"))

    def _reads_wait(self) -> float:
        """Seconds for which reads of a running loop still wait, having had their share of its time."""
        return self._reads_resume - time.monotonic()

    def _finish(self, request: Request) -> None:
        try:
            with neutral_modes():
                request.answer = Answer(request.fn(), self.step_count)
        except Exception as error:
            request.error = error
        request.done.set()

    # The server threads' side.

    def _is_training_thread(self, caller: Caller | None) -> bool:
        if self.activity.runs_on(threading.get_native_id()):
            return True
        return (
            caller is not None
            and caller.pid == self._pid
            and caller.boot_id == self._boot_id
            and self.activity.runs_on(caller.native_id)
        )

    def _run_for_training_thread(self, fn: Callable[[], T], kind: Kind, deadline: float | None) -> Answer[T]:
        """The training thread waits for this very call, so nothing moves; it may be anywhere, though."""
        if self._server is not None and self._server in (self.activity.ident, threading.get_ident()):
            with neutral_modes():
                return Answer(fn(), self.step_count)
        remaining = -1 if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._running.acquire(timeout=remaining):
            raise NoSafePoint("another request holds the model", hint="try again, or give a longer timeout")
        return self._run_claimed(fn, kind)

    def _claim(self) -> bool:
        """Take the model from an idle training thread; False where it has just moved or another holds it."""
        moves = self.activity.moves
        if not self._running.acquire(timeout=_TICK):
            return False
        self._busy = True
        if self.activity.moves != moves or not self.activity.idle():
            self._busy = False
            self._running.release()
            return False
        return True

    def _run_claimed(self, fn: Callable[[], T], kind: Kind) -> Answer[T]:
        notes = (_PENDING_NOTE,) if kind == "write" and self.activity.backward_expected else ()
        self._busy = True
        self._server = threading.get_ident()
        try:
            with neutral_modes():
                return Answer(fn(), self.step_count, notes)
        finally:
            self._server = None
            self._busy = False
            self._running.release()

    def _wait(self, request: Request, deadline: float | None, cancelled: Cancelled | None) -> Answer[Any]:
        self._queue.add(request)
        while not request.done.wait(_TICK):
            if self._closed:
                request.fail(Closed("the server closed before the model could be reached"))
                break
            late = deadline is not None and time.monotonic() >= deadline
            gone = cancelled is not None and cancelled.is_set()
            if late or gone:
                if self._queue.withdraw(request):
                    raise self._no_safe_point(request.kind)
            elif self.activity.idle() and self._claim():
                if self._queue.withdraw(request):
                    return self._run_claimed(request.fn, request.kind)
                self._busy = False
                self._running.release()
        if request.error is not None:
            raise request.error
        answer: Answer[Any] = request.answer
        return answer

    def _no_safe_point(self, kind: Kind) -> NoSafePoint:
        wait = self._reads_wait()
        if kind != "write" and wait > 0:
            return NoSafePoint(
                f"reads have had {self._read_share:.0%} of the loop's time, and wait for {wait:.1f} s more",
                hint="read less at once, give a longer --timeout, or raise limits.read_share in attach",
            )
        return NoSafePoint(
            f"no point at which a {kind} is safe came before the deadline: {self.activity.describe()}",
            hint="give a longer --timeout; a loop without an optimizer calls scope.step() every iteration",
        )


def _hook_root(
    root: nn.Module,
    before: Callable[[nn.Module, tuple[Any, ...]], None],
    after: Callable[[nn.Module, tuple[Any, ...]], None],
) -> list[RemovableHandle]:
    """Put the safe point's two hooks on a root; a ScriptModule takes none."""
    if isinstance(root, torch.jit.ScriptModule):
        return []
    return [
        root.register_forward_pre_hook(RootHook(root, before), prepend=True),
        root.register_forward_hook(RootHook(root, after), always_call=True),
    ]
