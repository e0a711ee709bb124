"""The run on the wire: the rpcs of RunService and LeaseService, their requests, their answers as records."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from modscope.v1 import lease_pb2, lease_service_pb2, run_pb2, run_service_pb2
from modscope_client import convert
from modscope_client.convert import request
from modscope_client.errors import InvalidArgument
from modscope_client.rpcs import plain
from modscope_client.types import Break, Lease, Metric, MetricPoint, Pause, RunStatus

if TYPE_CHECKING:
    from modscope_client.renewals import Held

__all__ = [
    "ADD_BREAK",
    "CLEAR_BREAKS",
    "GET_RUN_STATUS",
    "LIST_BREAKS",
    "PAUSE",
    "RENEW_LEASE",
    "RESUME",
    "STEP",
    "WAIT_FOR_PAUSE",
    "Controlling",
    "add_break",
    "break_",
    "lease",
    "lease_seconds",
    "pause",
    "run_status",
    "step",
    "wait_seconds",
]

_RUN = "modscope.v1.RunService"
_LEASES = "modscope.v1.LeaseService"

GET_RUN_STATUS = plain(
    _RUN, run_service_pb2.GetRunStatusRequest, run_service_pb2.GetRunStatusResponse, at_once=True
)
PAUSE = plain(_RUN, run_service_pb2.PauseRequest, run_service_pb2.PauseResponse, at_once=True)
RESUME = plain(_RUN, run_service_pb2.ResumeRequest, run_service_pb2.ResumeResponse, at_once=True)
STEP = plain(_RUN, run_service_pb2.StepRequest, run_service_pb2.StepResponse, at_once=True)
ADD_BREAK = plain(_RUN, run_service_pb2.AddBreakRequest, run_service_pb2.AddBreakResponse, at_once=True)
LIST_BREAKS = plain(_RUN, run_service_pb2.ListBreaksRequest, run_service_pb2.ListBreaksResponse, at_once=True)
CLEAR_BREAKS = plain(
    _RUN, run_service_pb2.ClearBreaksRequest, run_service_pb2.ClearBreaksResponse, at_once=True
)
WAIT_FOR_PAUSE = plain(
    _RUN, run_service_pb2.WaitForPauseRequest, run_service_pb2.WaitForPauseResponse, at_once=True
)
RENEW_LEASE = plain(
    _LEASES, lease_service_pb2.RenewLeaseRequest, lease_service_pb2.RenewLeaseResponse, at_once=True
)

_STATES = {
    run_pb2.RUN_STATE_RUNNING: "running",
    run_pb2.RUN_STATE_PAUSED: "paused",
    run_pb2.RUN_STATE_IDLE: "idle",
    run_pb2.RUN_STATE_NO_TRAINING: "no_training",
}


def lease_seconds(seconds: float) -> float:
    """The seconds of a lease. Raises InvalidArgument for what lasts no time; the server has a bound above."""
    return _above_zero(seconds, "lease", "give seconds, at least 1")


def wait_seconds(seconds: float | None) -> float | None:
    """The seconds of a wait; None means any time. Raises InvalidArgument for what lasts no time."""
    if seconds is None:
        return None
    return _above_zero(seconds, "timeout", "give seconds, or None to wait for as long as it takes")


def pause(lease: float) -> run_service_pb2.PauseRequest:
    """Asks to hold it at its next step boundary."""
    return request(run_service_pb2.PauseRequest, lease_seconds=lease_seconds(lease))


def step(n: int, lease: float | None) -> run_service_pb2.StepRequest:
    """Asks for n iterations. Raises InvalidArgument for less than one."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InvalidArgument(
            f"n is {n!r}", hint="give a number of iterations, at least 1", details={"field": "n"}
        )
    seconds = None if lease is None else lease_seconds(lease)
    return request(run_service_pb2.StepRequest, steps=n, lease_seconds=seconds)


def add_break(expression: str, lease: float) -> run_service_pb2.AddBreakRequest:
    """Asks to hold it where a condition is true."""
    return request(run_service_pb2.AddBreakRequest, expression=expression, lease_seconds=lease_seconds(lease))


def _above_zero(seconds: float, name: str, hint: str) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise InvalidArgument(f"{name} is {seconds!r}", hint=hint, details={"field": name})
    return float(seconds)


def run_status(m: run_pb2.RunStatus) -> RunStatus:
    """The record of a status."""
    return RunStatus(
        m.step,
        m.steps_per_second,
        _STATES.get(m.state, ""),
        m.doing,
        tuple(map(_metric, m.metrics)),
        _pause(m.pause) if m.HasField("pause") else None,
        tuple(map(break_, m.breaks)),
        m.waiting,
        m.skipped_steps,
        tuple(m.notes),
        m.last_resume,
    )


def break_(m: run_pb2.Break) -> Break:
    """A break's record."""
    return Break(m.id, m.expression, m.hits, tuple(m.notes), m.lease_seconds)


def _metric(m: run_pb2.Metric) -> Metric:
    return Metric(m.name, tuple(MetricPoint(point.step, point.value) for point in m.points))


def _pause(m: run_pb2.Pause) -> Pause:
    since = convert.seconds(m.since) if m.HasField("since") else None
    return Pause(lease(m.lease), m.reason, m.break_id, since)


def lease(m: lease_pb2.Lease) -> Lease:
    """A lease's record."""
    return Lease(m.id, m.seconds, convert.seconds(m.expires), m.holds, m.who)


class Controlling:
    """What a client keeps of the run that it controls; the same for the sync and the async client."""

    def __init__(self, renewals: Held) -> None:
        self._renewals = renewals
        self.entered = 0
        """How many `with` of a pause are being executed; leaving the outermost one resumes."""

    def close(self) -> None:
        """Renew no lease any more: a pause of this client ends with its lease. Idempotent."""
        self._renewals.drop()

    def _take_lease(self, status: RunStatus) -> None:
        if status.pause is not None:
            self._renewals.take(status.pause.lease)

    def _told(self, message: run_pb2.RunStatus) -> RunStatus:
        return self._noted(run_status(message))

    def _noted(self, status: RunStatus) -> RunStatus:
        news = self._renewals.news()
        return replace(status, notes=(*status.notes, *news)) if news else status
