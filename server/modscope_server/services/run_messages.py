"""The run's records -> protobuf messages. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable

from modscope.v1 import lease_pb2, run_pb2
from modscope_server.runtime.leases import Lease
from modscope_server.runtime.metrics import Metric
from modscope_server.runtime.run_status import BreakState, PauseState, RunStatus
from modscope_server.services.convert import plain_text, timestamp

__all__ = ["break_state", "lease", "run_status"]

_STATES: dict[str, run_pb2.RunState.ValueType] = {
    "running": run_pb2.RUN_STATE_RUNNING,
    "paused": run_pb2.RUN_STATE_PAUSED,
    "idle": run_pb2.RUN_STATE_IDLE,
    "no_training": run_pb2.RUN_STATE_NO_TRAINING,
}


def run_status(status: RunStatus, metrics: Iterable[Metric]) -> run_pb2.RunStatus:
    """What the run is doing, and what it has reported."""
    return run_pb2.RunStatus(
        step=status.step,
        steps_per_second=status.steps_per_second,
        state=_STATES[status.state],
        doing=plain_text(status.doing),
        metrics=map(_metric, metrics),
        pause=None if status.pause is None else _pause(status.pause),
        breaks=map(break_state, status.breaks),
        waiting=status.waiting,
        skipped_steps=status.skipped_steps,
        notes=map(plain_text, status.notes),
        last_resume=status.last_resume,
    )


def break_state(state: BreakState) -> run_pb2.Break:
    """A break."""
    return run_pb2.Break(
        id=state.id,
        expression=state.expression,
        hits=state.hits,
        notes=map(plain_text, state.notes),
        lease_seconds=state.lease_seconds,
    )


def lease(record: Lease) -> lease_pb2.Lease:
    """A lease."""
    return lease_pb2.Lease(
        id=record.id,
        seconds=record.seconds,
        expires=timestamp(record.expires),
        holds=record.holds,
        who=record.who,
    )


def _metric(metric: Metric) -> run_pb2.Metric:
    message = run_pb2.Metric(name=plain_text(metric.name))
    points = message.points
    for point in metric.points:
        points.add(step=point.step, value=point.value)
    return message


def _pause(state: PauseState) -> run_pb2.Pause:
    since = None if state.since is None else timestamp(state.since)
    return run_pb2.Pause(lease=lease(state.lease), reason=state.reason, break_id=state.break_id, since=since)
