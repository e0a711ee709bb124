"""RunService: the training run's status, pausing, stepping and breaks."""

from __future__ import annotations

from collections.abc import Iterator

from modscope.v1 import run_pb2, run_service_pb2
from modscope_server.errors import BadRequest
from modscope_server.runtime.breaks.parser import parse
from modscope_server.runtime.breaks.syntax import looks_at_hooks
from modscope_server.services import run_messages
from modscope_server.services.auth import changes
from modscope_server.services.call import Call
from modscope_server.services.serving import Serving

__all__ = ["RunServicer"]

_ENDS = (run_pb2.RUN_STATE_PAUSED, run_pb2.RUN_STATE_NO_TRAINING)


class RunServicer:
    """Translates RunService's calls."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._control = serving.control

    def get_run_status(
        self, request: run_service_pb2.GetRunStatusRequest, call: Call
    ) -> run_service_pb2.GetRunStatusResponse:
        """What the run is doing."""
        if request.history < -1:
            raise BadRequest(
                f"history is {request.history}",
                hint="give a number of points, or -1 for all",
                field="history",
            )
        return run_service_pb2.GetRunStatusResponse(status=self._status(request.history or 1))

    @changes
    def pause(self, request: run_service_pb2.PauseRequest, call: Call) -> run_service_pb2.PauseResponse:
        """Ask the run to stop at its next step boundary."""
        self._control.pause(request.lease_seconds, call.who, own=self._own(call))
        return run_service_pb2.PauseResponse(status=self._status())

    @changes
    def resume(self, request: run_service_pb2.ResumeRequest, call: Call) -> run_service_pb2.ResumeResponse:
        """Let it go on."""
        self._control.resume(call.who)
        return run_service_pb2.ResumeResponse(status=self._status())

    @changes
    def step(self, request: run_service_pb2.StepRequest, call: Call) -> run_service_pb2.StepResponse:
        """Let it go on for some iterations."""
        begun = self._control.step(request.steps, request.lease_seconds, call.who, own=self._own(call))
        status = self._status()
        status.step = begun
        return run_service_pb2.StepResponse(status=status)

    @changes
    def add_break(
        self, request: run_service_pb2.AddBreakRequest, call: Call
    ) -> run_service_pb2.AddBreakResponse:
        """Set a condition at which it pauses; its hooks, where it has any, are put on at a safe point."""
        expression, seconds = request.expression, request.lease_seconds
        if looks_at_hooks(parse(expression)):
            state = self._serving.run(
                call, lambda: self._control.add_break(expression, seconds, call.who)
            ).value
        else:
            state = self._control.add_break(expression, seconds, call.who)
        return run_service_pb2.AddBreakResponse(added=run_messages.break_state(state))

    def list_breaks(
        self, request: run_service_pb2.ListBreaksRequest, call: Call
    ) -> run_service_pb2.ListBreaksResponse:
        """The conditions that are set."""
        breaks = map(run_messages.break_state, self._control.breaks())
        return run_service_pb2.ListBreaksResponse(breaks=breaks)

    @changes
    def clear_breaks(
        self, request: run_service_pb2.ClearBreaksRequest, call: Call
    ) -> run_service_pb2.ClearBreaksResponse:
        """Take conditions away."""
        gone = map(run_messages.break_state, self._control.clear(request.ids))
        return run_service_pb2.ClearBreaksResponse(breaks=gone)

    def wait_for_pause(
        self, request: run_service_pb2.WaitForPauseRequest, call: Call
    ) -> Iterator[run_service_pb2.WaitForPauseResponse]:
        """Send the status until the run is paused, or nothing trains."""
        call.when_gone(self._control.wake)
        heartbeat = self._serving.config.limits.heartbeat
        while not call.is_set():
            status = self._status()
            yield run_service_pb2.WaitForPauseResponse(status=status)
            if status.state in _ENDS:
                return
            self._control.wait(heartbeat, call)

    def _status(self, history: int = 1) -> run_pb2.RunStatus:
        metrics = self._serving.metrics
        return run_messages.run_status(self._control.status(metrics.notes), metrics.history(history))

    def _own(self, call: Call) -> bool:
        """Whether the training thread itself calls."""
        return self._serving.safepoint.calls(call.caller)
