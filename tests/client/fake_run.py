"""A training run whose every move the test makes, served by RunService and LeaseService."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from modscope.v1 import lease_pb2, lease_service_pb2, run_pb2, run_service_pb2
from modscope_client import run_control

__all__ = ["FakeRun"]


class FakeRun:
    """Is held as soon as it is asked to be, unless `boundaries` is False; has one lease of `seconds`."""

    def __init__(self, *, boundaries: bool = True, seconds: float = 600) -> None:
        self.boundaries = boundaries
        self.seconds = seconds
        self.state = run_pb2.RUN_STATE_RUNNING
        self.step = 7
        self.calls: list[str] = []
        self.renewals = 0
        self.streams = 0
        self.refuse_renewals = False
        self.refuse_streams = 0
        self.messages_of_a_stream = 1_000_000
        self._wanted = False
        self._changed = threading.Condition()

    def change(self, **moves: Any) -> None:
        """The run has moved on."""
        with self._changed:
            for name, value in moves.items():
                setattr(self, name, value)
            self._changed.notify_all()

    def until(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition over this run holds."""
        with self._changed:
            assert self._changed.wait_for(condition, 30)

    def status(self) -> run_pb2.RunStatus:
        status = run_pb2.RunStatus(
            step=self.step,
            steps_per_second=2.5,
            state=self.state,
            doing="in forward of model",
            metrics=[run_pb2.Metric(name="loss", points=[run_pb2.MetricPoint(step=7, value=0.5)])],
            last_resume="resumed by operator",
            notes=["of the server"],
        )
        if self._wanted or self.state == run_pb2.RUN_STATE_PAUSED:
            lease = lease_pb2.Lease(
                id="lease-1",
                seconds=self.seconds,
                expires=Timestamp(seconds=100),
                holds="pause",
                who="operator",
            )
            status.pause.CopyFrom(run_pb2.Pause(lease=lease, reason="pause"))
            if self.state == run_pb2.RUN_STATE_PAUSED:
                status.pause.since.CopyFrom(Timestamp(seconds=50))
        return status

    def behaviours(self) -> dict[Any, Any]:
        return {
            run_control.GET_RUN_STATUS: self._get_status,
            run_control.PAUSE: self._pause,
            run_control.RESUME: self._resume,
            run_control.STEP: self._step,
            run_control.WAIT_FOR_PAUSE: self._wait,
            run_control.RENEW_LEASE: self._renew,
        }

    def _get_status(self, request: bytes, context: grpc.ServicerContext) -> Any:
        return run_service_pb2.GetRunStatusResponse(status=self._note("status"))

    def _pause(self, request: bytes, context: grpc.ServicerContext) -> Any:
        asked = run_service_pb2.PauseRequest.FromString(request)
        self.seconds = asked.lease_seconds if self.seconds > 1 else self.seconds
        self.change(_wanted=True)
        return run_service_pb2.PauseResponse(status=self._note("pause"))

    def _resume(self, request: bytes, context: grpc.ServicerContext) -> Any:
        self.change(_wanted=False, state=run_pb2.RUN_STATE_RUNNING)
        return run_service_pb2.ResumeResponse(status=self._note("resume"))

    def _step(self, request: bytes, context: grpc.ServicerContext) -> Any:
        steps = run_service_pb2.StepRequest.FromString(request).steps
        return run_service_pb2.StepResponse(status=self._note(f"step {steps}"))

    def _renew(self, request: bytes, context: grpc.ServicerContext) -> Any:
        self.change(renewals=self.renewals + 1)
        if self.refuse_renewals:
            context.abort(grpc.StatusCode.NOT_FOUND, "it was taken away")
        return lease_service_pb2.RenewLeaseResponse()

    def _wait(self, request: bytes, context: grpc.ServicerContext) -> Iterator[Any]:
        """Its status at once and at each change; as the real one it ends with a pause or without training."""
        self.change(streams=self.streams + 1)
        if self.streams <= self.refuse_streams:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams")
        context.add_callback(lambda: self.change(gone=True))
        last: run_pb2.RunStatus | None = None
        for _ in range(self.messages_of_a_stream):
            with self._changed:
                self._changed.wait_for(partial(self._has_moved, last, context), 30)
                if self._wanted and self.boundaries:
                    self.state = run_pb2.RUN_STATE_PAUSED
                last = self.status()
            yield run_service_pb2.WaitForPauseResponse(status=last)
            if last.state in (run_pb2.RUN_STATE_PAUSED, run_pb2.RUN_STATE_NO_TRAINING):
                return

    def _has_moved(self, last: run_pb2.RunStatus | None, context: grpc.ServicerContext) -> bool:
        held = self._wanted and self.boundaries
        return held or self.status() != last or not context.is_active()

    def _note(self, call: str) -> run_pb2.RunStatus:
        with self._changed:
            self.calls.append(call)
            self._changed.notify_all()
            return self.status()
