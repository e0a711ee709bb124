"""The training run under control: its status, pausing, stepping, breaks. aio/run.py is its twin."""

from __future__ import annotations

import contextlib
import time
from types import TracebackType

from modscope.v1 import lease_service_pb2, run_service_pb2
from modscope_client import run_control
from modscope_client.calls import Calls
from modscope_client.convert import request
from modscope_client.errors import DeadlineExceeded, ModscopeError, ResourceExhausted
from modscope_client.renewals import Renewals
from modscope_client.types import Break, RunStatus
from modscope_client.waiting import AGAIN_SECONDS, Waiting

__all__ = ["Paused", "Run"]


class Run(run_control.Controlling):
    """The training run of a server. `client.run` gives it.

    The lease of a pause or of steps is renewed in the background until `resume`, or until the client is
    closed or forgotten. Where that failed, the next status has a note of it.
    """

    def __init__(self, calls: Calls) -> None:
        def renew(lease: str) -> object:
            asked = lease_service_pb2.RenewLeaseRequest(id=lease)
            return calls.unary(run_control.RENEW_LEASE, asked)

        super().__init__(Renewals(renew))
        self._calls = calls

    def __repr__(self) -> str:
        return f"<Run at {self._calls.endpoint.address}>"

    def status(self, history: int = 0) -> RunStatus:
        """What it is doing, with so many points of each metric: 0 is the last alone, -1 all that are kept."""
        asked = request(run_service_pb2.GetRunStatusRequest, history=history)
        return self._told(self._calls.unary(run_control.GET_RUN_STATUS, asked).status)

    def pause(self, lease: float = 30, *, wait: bool = True) -> Paused:
        """Hold it at its next step boundary: `client.run.pause()`, or `with client.run.pause(): ...`.

        Leaving the `with` resumes it. Returns once it is held, unless `wait` is False. lease: seconds
        after which it goes on by itself where this client has died. Raises DeadlineExceeded, and
        withdraws the wish, where it is not held within the client's timeout.
        """
        asked = run_control.pause(lease)
        status = self._told(self._calls.unary(run_control.PAUSE, asked).status)
        self._take_lease(status)
        if wait and status.state != "paused":
            try:
                status = self._until(Waiting.for_pause(self._calls.timeout))
            except BaseException:
                with contextlib.suppress(ModscopeError):
                    self.resume()
                raise
        return Paused(self, status)

    def step(self, n: int = 1, *, wait: bool = True, lease: float | None = None) -> RunStatus:
        """Let it go on for n iterations and hold it again; returns then, unless `wait` is False.

        lease: of the pause that follows; None is that of the present pause, or 30 s. A break may hold
        it earlier. Where its thread ends before, the status says "no_training". Raises DeadlineExceeded
        where no step comes within the client's timeout; the run is then still held after the n-th.
        """
        asked = run_control.step(n, lease)
        status = self._told(self._calls.unary(run_control.STEP, asked).status)
        self._take_lease(status)
        if not wait or status.state == "paused":
            return status
        return self._until(Waiting.for_steps(self._calls.timeout))

    def resume(self) -> RunStatus:
        """End a pause, whoever asked for it, or the wish for one."""
        self._renewals.drop()
        answer = self._calls.unary(run_control.RESUME, run_service_pb2.ResumeRequest())
        return self._told(answer.status)

    def break_when(self, expression: str, lease: float = 600) -> Break:
        """Hold it at the first step boundary where a condition is true, such as "loss != loss".

        lease: seconds for which it is then held; `pause` takes such a pause over, and keeps it.
        Raises InvalidArgument (BAD_EXPRESSION), pointing at the place.
        """
        asked = run_control.add_break(expression, lease)
        return run_control.break_(self._calls.unary(run_control.ADD_BREAK, asked).added)

    def breaks(self) -> list[Break]:
        """The breaks that are set, in the order of their setting."""
        answer = self._calls.unary(run_control.LIST_BREAKS, run_service_pb2.ListBreaksRequest())
        return list(map(run_control.break_, answer.breaks))

    def clear(self, *ids: str) -> list[Break]:
        """Take breaks away, those of these ids or all; what they were."""
        asked = request(run_service_pb2.ClearBreaksRequest, ids=ids)
        answer = self._calls.unary(run_control.CLEAR_BREAKS, asked)
        return list(map(run_control.break_, answer.breaks))

    def wait(self, timeout: float | None = None) -> RunStatus:
        """Wait until it is paused, by a break or by anybody, and give its status then.

        timeout: seconds; None waits for as long as it takes. Where the thread that trained ends before,
        the status says "no_training". Raises DeadlineExceeded where the time is over.
        """
        return self._until(Waiting(run_control.wait_seconds(timeout)))

    def _until(self, waiting: Waiting) -> RunStatus:
        """The status that ends the wait; streams end early where the server or a deadline ends them."""
        asked = run_service_pb2.WaitForPauseRequest()
        while True:
            left = waiting.left()
            try:
                self._calls.listing(run_control.WAIT_FOR_PAUSE, asked, waiting.take, seconds=left)
            except (DeadlineExceeded, ResourceExhausted):
                # Over, or more streams than the server admits: its status is as good, only later.
                waiting.see(self.status())
            if waiting.done:
                return self._noted(waiting.status)
            time.sleep(AGAIN_SECONDS)


class Paused:
    """A run that is held, until the `with` of this is left or `resume` is called."""

    def __init__(self, run: Run, status: RunStatus) -> None:
        self._run = run
        self.status = status
        """Its status when it was held."""

    def __repr__(self) -> str:
        return f"<Paused at step {self.status.step}>"

    def __enter__(self) -> Paused:
        self._run.entered += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Resume, also where the block raised; a failure to do so does not hide what it raised.

        Where pauses of this client are nested, the outermost one does.
        """
        self._run.entered -= 1
        if self._run.entered == 0:
            with contextlib.suppress(*((ModscopeError,) if error is not None else ())):
                self.resume()

    def resume(self) -> RunStatus:
        """Let the run go on."""
        return self._run.resume()
