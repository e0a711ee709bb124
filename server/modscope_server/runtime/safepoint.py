"""Where requests meet the model: between steps of a running loop, at once beside an idle one.

`SafePoint.run` is the only way in which anything touches tensors of a registered model. See
README.md in this folder for why no read is torn and no write hits a step in flight.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import nn
from torch.optim.optimizer import Optimizer

from modscope_server.errors import Closed, NoSafePoint
from modscope_server.runtime.boundaries import Boundaries, Control
from modscope_server.runtime.queue import Kind, Place, Request
from modscope_server.runtime.turns import Answer

__all__ = ["Answer", "Caller", "Control", "Kind", "Place", "SafePoint"]

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


class SafePoint(Boundaries):
    """Decides when a request may touch the models, and counts steps.

    Args:
        roots: the registered root modules; each gets one pre- and one post-hook.
        is_ours: whether an optimizer's steps concern these models.
        ours: ids of optimizers of which that is known already; asking it costs less.
        optimizers: how many optimizers were given.
        boot_id: this machine's boot id, to recognise calls from the training thread itself.
        read_share: share of a running loop's time that reads may take; later ones wait.
        scaler: the loop's GradScaler, whose skipped steps end an iteration, too.
    """

    def __init__(
        self,
        roots: Iterable[nn.Module],
        *,
        is_ours: Callable[[Optimizer], bool] = lambda optimizer: True,
        ours: Collection[int] = (),
        optimizers: int = 0,
        boot_id: str = "",
        read_share: float = 0.05,
        scaler: Any = None,
    ) -> None:
        super().__init__(
            roots,
            is_ours=is_ours,
            ours=ours,
            optimizers=optimizers,
            read_share=read_share,
            scaler=scaler,
        )
        self._boot_id = boot_id
        self._read_share = read_share
        self._pid = os.getpid()

    @property
    def idle(self) -> bool:
        """Whether a request would be served at once, beside the training thread."""
        return self.activity.idle()

    @property
    def waiting(self) -> int:
        """Requests that wait for their point."""
        return len(self._turns.queue)

    @property
    def serving(self) -> bool:
        """Whether the calling thread runs a request: a forward on it is no training."""
        return self._turns.taken_by_caller

    def describe(self) -> str:
        """What the training thread was last seen doing, for a person."""
        return self.activity.describe(backward_expected=self.backward_expected)

    def run(
        self,
        fn: Callable[[], T],
        *,
        kind: Kind = "read",
        caller: Caller | None = None,
        timeout: float | None = None,
        cancelled: Cancelled | None = None,
        admits: Callable[[Place | None], bool] | None = None,
    ) -> Answer[T]:
        """Run `fn` where it can neither tear nor be torn, and return what it gave.

        Between steps of a running loop `fn` runs on the training thread; beside an idle model, or
        when the training thread itself is the caller, on the calling thread while the training
        thread is held at its next hook. It runs under neutral thread-local modes, without grad.
        `admits` chooses among the places of an iteration at which a loop that runs would serve it.

        Raises NoSafePoint when `timeout` seconds bring no point or the caller is gone: `fn` is then
        withdrawn and never runs. Raises Closed after `close`. What `fn` raises comes through.
        """
        if self._turns.closed:
            raise Closed
        self.pending.attend()
        deadline = None if timeout is None else time.monotonic() + timeout
        if self.calls(caller):
            return self._run_for_training_thread(fn, kind, timeout)
        if self._claim(kind):
            return self._turns.run(fn, self._notes(kind))
        return self._wait(Request(fn, kind, admits), deadline, cancelled)

    def peek(self, fn: Callable[[], T]) -> Answer[T]:
        """Run `fn`, which reads structure alone, at once and on the calling thread.

        A structure that changes meanwhile makes `fn` raise RuntimeError; it is then run again.
        """
        self.pending.attend()
        for _ in range(20):
            try:
                return Answer(fn(), self.step_count)
            except RuntimeError as error:
                if "changed size" not in str(error) and "mutated" not in str(error):
                    raise
        return Answer(fn(), self.step_count)

    def close(self) -> None:
        """Let the request that runs end, take all hooks off; what waits is withdrawn. Idempotent."""
        self._turns.closed = True
        self._turns.refresh()
        self._turns.settle()
        self.stop_sensing()

    def abandon(self) -> None:
        """Make all hooks inert without a lock: for a forked child, where locks may be held forever."""
        self._turns.abandon()

    def calls(self, caller: Caller | None) -> bool:
        """Whether a call comes from the training thread itself, which waits for it."""
        if self.activity.runs_on(threading.get_native_id()):
            return True
        return (
            caller is not None
            and caller.pid == self._pid
            and caller.boot_id == self._boot_id
            and self.activity.runs_on(caller.native_id)
        )

    def _run_for_training_thread(self, fn: Callable[[], T], kind: Kind, timeout: float | None) -> Answer[T]:
        """The training thread waits for this very call, so nothing moves; it may be anywhere, though."""
        if self._turns.taken_by_caller:
            return self._turns.run_inside(fn)
        if not self._turns.wait_for_turn(timeout):
            raise NoSafePoint("another request holds the model", hint="try again, or give a longer timeout")
        return self._turns.run(fn, self._notes(kind))

    def _claim(self, kind: Kind) -> bool:
        """Take the model from an idle training thread; a write into a pending graph wants it fast asleep."""
        asleep = kind == "write" and self.backward_expected
        return self.activity.idle(asleep=asleep) and self._turns.claim(asleep=asleep)

    def _notes(self, kind: Kind) -> tuple[str, ...]:
        pending = kind == "write" and self.backward_expected
        return (_PENDING_NOTE,) if pending else ()

    def _wait(self, request: Request, deadline: float | None, cancelled: Cancelled | None) -> Answer[Any]:
        turns = self._turns
        turns.queue.add(request)
        while not request.done.wait(_TICK):
            late = deadline is not None and time.monotonic() >= deadline
            gone = cancelled is not None and cancelled.is_set()
            if turns.closed or late or gone:
                if turns.queue.withdraw(request):
                    raise self._withdrawn(request.kind)
            elif self._claim(request.kind):
                if turns.queue.withdraw(request):
                    return turns.run(request.fn, self._notes(request.kind))
                turns.let_go()
        if request.error is not None:
            raise request.error
        answer: Answer[Any] = request.answer
        return answer

    def _withdrawn(self, kind: Kind) -> Closed | NoSafePoint:
        if self._turns.closed:
            return Closed("the server closed before the model could be reached")
        wait = self._turns.reads_wait()
        if kind != "write" and wait > 0:
            return NoSafePoint(
                f"reads have had {self._read_share:.0%} of the loop's time, and wait for {wait:.1f} s more",
                hint="read less at once, give a longer --timeout, or raise limits.read_share in attach",
            )
        return NoSafePoint(
            f"no point at which a {kind} is safe came before the deadline: {self.describe()}",
            hint="give a longer --timeout; a loop without an optimizer calls scope.step() every iteration",
        )
