"""RunService and LeaseService over raw gRPC: what is told, what is refused, and where breaks stop a loop."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
import torch

from modscope.v1 import run_pb2
from modscope_server import Limits
from modscope_server.errors import Closed
from tests.server.rpc import TIMEOUT, Rpc, admitted, refused, until
from tests.server.run_support import Run, running

PAUSED = run_pb2.RUN_STATE_PAUSED


def hook_counts(run: Run) -> list[int]:
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in run.model.modules()]


def test_the_status_tells_of_metrics_and_of_what_the_thread_does() -> None:
    with running(start=False) as run:
        before = run.status
        assert (before.step, before.state) == (0, run_pb2.RUN_STATE_NO_TRAINING)
        assert before.doing == "no training thread is alive"
        run.rpc.AddBreak(expression="step == 40")
        run.start()
        status = run.paused()
        assert status.steps_per_second > 0
        assert "run_support.py" in status.doing
        loss, number = status.metrics
        assert (loss.name, number.name) == ("loss", "number")
        assert [point.step for point in loss.points] == list(range(1, 41))
        assert [point.value for point in loss.points][:39] == run.losses
        assert [point.value for point in number.points] == list(range(1, 41))
        last = run.rpc.GetRunStatus().status.metrics
        assert [len(metric.points) for metric in last] == [1, 1]
        five = run.rpc.GetRunStatus(history=5).status.metrics
        assert five[0].points == loss.points[-5:]


def test_a_thread_that_stands_is_idle() -> None:
    with running() as run:
        stand, leave = threading.Event(), threading.Event()

        def standing(number: int, x: torch.Tensor) -> torch.Tensor:
            stand.set()
            leave.wait(TIMEOUT)
            return x

        run.spoil = standing
        assert stand.wait(TIMEOUT)
        until(lambda: run.status.state == run_pb2.RUN_STATE_IDLE)
        leave.set()
        until(lambda: run.status.state == run_pb2.RUN_STATE_RUNNING)


def spoiled(at: int) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """Batches of which that of one iteration holds a nan."""

    def spoil(number: int, x: torch.Tensor) -> torch.Tensor:
        return x * math.nan if number == at else x

    return spoil


@pytest.mark.parametrize(
    "expression",
    [
        "step == 12",
        "loss != loss",
        "nan(forward:*) > 0",
        "nan(forward_pre:0) >= 1 and step > 3",
        "nan(backward_pre:*) > 0",
        "nan(backward:2) > 0",
        "grad.nan(*) > 0",
        "nan(2.weight) > 0",
        "not norm(*) < inf or loss * 0 != 0",
        '"number" >= 12 and number < 13',
        "unheard_of > 1 or number == 12",
    ],
)
def test_a_break_stops_the_loop_at_exactly_that_step(expression: str) -> None:
    with running(start=False) as run:
        bare = hook_counts(run)
        run.spoil = spoiled(12)
        added = run.rpc.AddBreak(expression=expression).added
        assert (added.expression, added.hits, added.lease_seconds) == (expression, 0, 600)
        run.start()
        status = run.paused()
        assert status.step == 12
        assert (status.pause.reason, status.pause.break_id) == (expression, added.id)
        assert (status.pause.lease.seconds, status.breaks[0].hits) == (600, 1)
        assert run.rpc.ClearBreaks(ids=[added.id]).breaks[0].hits == 1
        assert hook_counts(run) == bare
        assert run.status.state == PAUSED, "a pause outlives its break"
        run.rpc.Resume()
        assert run.goes_on(14)


def test_what_the_first_iteration_reports_stops_it() -> None:
    with running(start=False) as run:
        run.spoil = spoiled(1)
        run.rpc.AddBreak(expression="loss != loss")
        run.start()
        assert run.paused().step == 1


def test_a_break_on_the_norm_of_gradients_is_that_of_torch() -> None:
    with running(start=False) as run:
        norms: list[float] = []

        def note(optimizer: torch.optim.Optimizer, *rest: Any) -> None:
            gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(gradients).item())

        handle = run.optimizer.register_step_pre_hook(note)
        run.start(30)
        assert run.ended()
        handle.remove()
    limit = sorted(norms)[20]
    expected = 1 + next(index for index, norm in enumerate(norms) if norm > limit)
    with running(start=False) as run:
        run.rpc.AddBreak(expression=f"grad.norm(*) > {(limit + norms[expected - 1]) / 2!r}")
        run.start()
        assert run.paused().step == expected


def test_a_break_that_holds_on_stops_every_iteration_and_counts() -> None:
    with running(start=False) as run:
        run.rpc.AddBreak(expression="step >= 3", lease_seconds=100)
        run.start()
        for step in (3, 4, 5):
            status = run.paused()
            assert (status.step, status.breaks[0].hits) == (step, step - 2)
            run.rpc.Resume()
            run.goes_on(step)


def test_a_break_stops_a_run_that_is_stepping_and_keeps_its_lease() -> None:
    with running() as run:
        lease = run.rpc.Pause().status.pause.lease
        step = run.paused().step
        added = run.rpc.AddBreak(expression=f"step == {step + 4}").added
        run.rpc.Step(steps=100)
        status = run.paused()
        assert status.step == step + 4
        assert (status.pause.break_id, status.pause.lease.id) == (added.id, lease.id)
        assert status.pause.lease.seconds == 600


def test_what_a_break_cannot_see_is_told() -> None:
    with running(start=False) as run:
        added = run.rpc.AddBreak(
            expression="val/acc > 1 or grad.norm(nothing.*) > 1 or nan(forward:no) > 0"
        ).added
        assert len(added.notes) == 3
        assert "val/acc" in added.notes[0]
        run.start()
        assert run.goes_on(5)
        assert list(run.rpc.ListBreaks().breaks[0].notes) == list(added.notes)


def test_breaks_are_listed_in_their_order_and_cleared_by_id_or_all() -> None:
    with running(start=False) as run:
        ids = [run.rpc.AddBreak(expression=f"step == {number}").added.id for number in range(3)]
        assert [one.id for one in run.rpc.ListBreaks().breaks] == ids
        assert refused(lambda: run.rpc.ClearBreaks(ids=[ids[0], "break-99"])).reason == "UNKNOWN_BREAK"
        assert [one.id for one in run.rpc.ClearBreaks(ids=[ids[1]]).breaks] == [ids[1]]
        assert [one.id for one in run.rpc.ClearBreaks().breaks] == [ids[0], ids[2]]
        assert not run.rpc.ListBreaks().breaks
        assert not run.rpc.ClearBreaks().breaks


def test_hooks_of_breaks_are_listed_as_theirs() -> None:
    with running() as run:
        run.rpc.AddBreak(expression="nan(forward:{0,2}) > 0")
        owned = [hook.path for hook in run.rpc.ListHooks().hooks if hook.owner == "break"]
        assert owned == ["0", "2"]
        run.rpc.ClearBreaks()
        assert not [hook for hook in run.rpc.ListHooks().hooks if hook.owner == "break"]


@pytest.mark.parametrize(
    ("call", "code", "reason", "field"),
    [
        (lambda rpc: rpc.Pause(lease_seconds=0.5), "INVALID_ARGUMENT", "BAD_REQUEST", "lease_seconds"),
        (lambda rpc: rpc.Pause(lease_seconds=-1), "INVALID_ARGUMENT", "BAD_REQUEST", "lease_seconds"),
        (lambda rpc: rpc.Pause(lease_seconds=math.nan), "INVALID_ARGUMENT", "BAD_REQUEST", "lease_seconds"),
        (lambda rpc: rpc.Pause(lease_seconds=1e6), "INVALID_ARGUMENT", "BAD_REQUEST", "lease_seconds"),
        (lambda rpc: rpc.Step(steps=-1), "INVALID_ARGUMENT", "BAD_REQUEST", "steps"),
        (
            lambda rpc: rpc.Step(steps=1, lease_seconds=0.1),
            "INVALID_ARGUMENT",
            "BAD_REQUEST",
            "lease_seconds",
        ),
        (
            lambda rpc: rpc.AddBreak(expression="step == 1", lease_seconds=9e9),
            "INVALID_ARGUMENT",
            "BAD_REQUEST",
            "lease_seconds",
        ),
        (lambda rpc: rpc.AddBreak(expression="loss >"), "INVALID_ARGUMENT", "BAD_EXPRESSION", "expression"),
        (lambda rpc: rpc.AddBreak(), "INVALID_ARGUMENT", "BAD_EXPRESSION", "expression"),
        (lambda rpc: rpc.GetRunStatus(history=-2), "INVALID_ARGUMENT", "BAD_REQUEST", "history"),
        (lambda rpc: rpc.ClearBreaks(ids=["break-7"]), "NOT_FOUND", "UNKNOWN_BREAK", "ids"),
        (lambda rpc: rpc.RenewLease(id="lease-7"), "NOT_FOUND", "UNKNOWN_LEASE", "id"),
        (lambda rpc: rpc.ReleaseLease(id=""), "NOT_FOUND", "UNKNOWN_LEASE", "id"),
    ],
)
def test_refusals_say_what_is_wrong_and_change_nothing(
    call: Callable[[Rpc], Any], code: str, reason: str, field: str
) -> None:
    with running(start=False) as run:
        refusal = refused(lambda: call(run.rpc))
        assert (refusal.code, refusal.reason, refusal.fields) == (code, reason, [field])
        assert refusal.hint
        status = run.status
        assert not status.HasField("pause")
        assert not status.breaks
        assert run.scope._backend._safepoint.control is None


def test_a_wrong_expression_is_pointed_at() -> None:
    with running(start=False) as run:
        refusal = refused(lambda: run.rpc.AddBreak(expression="loss >> 3"))
        assert refusal.message.endswith("at column 7\n  loss >> 3\n        ^")


def test_there_may_be_64_breaks() -> None:
    with running(start=False) as run:
        for number in range(64):
            run.rpc.AddBreak(expression=f"step == {number} and 1 > 2")
        assert refused(lambda: run.rpc.AddBreak(expression="step == 1")).reason == "LIMIT"
        assert len(run.rpc.ListBreaks().breaks) == 64


def test_hooks_of_breaks_are_watches_and_count_as_such() -> None:
    with running(start=False, limits=Limits(streams=1)) as run:
        bare = hook_counts(run)
        kept = run.rpc.AddBreak(expression="nan(forward:0) > 0").added
        watched = hook_counts(run)
        same = run.rpc.AddBreak(expression="mean(forward:0) > 0 and step > 3").added
        assert hook_counts(run) == watched, "two breaks that look at the same have one watch"
        refusal = refused(lambda: run.rpc.AddBreak(expression="nan(forward:0) > 0 or nan(forward:2) > 0"))
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "LIMIT")
        assert [one.id for one in run.rpc.ListBreaks().breaks] == [kept.id, same.id]
        assert hook_counts(run) == watched
        run.rpc.ClearBreaks(ids=[kept.id])
        assert hook_counts(run) == watched
        run.rpc.ClearBreaks()
        assert hook_counts(run) == bare


CHANGES: list[Callable[[Rpc], Any]] = [
    lambda rpc: rpc.Pause(),
    lambda rpc: rpc.Resume(),
    lambda rpc: rpc.Step(),
    lambda rpc: rpc.AddBreak(expression="step == 1"),
    lambda rpc: rpc.ClearBreaks(),
    lambda rpc: rpc.RenewLease(id="lease-1"),
    lambda rpc: rpc.ReleaseLease(id="lease-1"),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_viewers_and_read_only_servers_control_nothing(number: int) -> None:
    with running(start=False) as run, Rpc(run.scope.address, run.scope.viewer_token) as viewer:
        refusal = refused(lambda: CHANGES[number](viewer))
        assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "VIEWER_TOKEN")
        assert viewer.GetRunStatus().status.step == 0
        assert not viewer.ListBreaks().breaks
        assert len(list(viewer.WaitForPause())) == 1
    with running(start=False, writable=False) as run:
        assert refused(lambda: CHANGES[number](run.rpc)).reason == "READ_ONLY_SERVER"


def test_waiting_sends_the_status_at_once_and_ends_with_the_pause() -> None:
    with running() as run:
        stream = run.rpc.WaitForPause()
        assert next(stream).status.state != PAUSED
        run.rpc.Pause()
        *_, last = stream
        assert last.status.state == PAUSED
        assert last.status.pause.HasField("since")
        (only,) = run.rpc.WaitForPause()
        assert only.status.pause == last.status.pause


def test_waiting_sends_heartbeats_and_ends_when_the_training_thread_does() -> None:
    with running(limits=Limits(heartbeat=0.05)) as run:
        stream = run.rpc.WaitForPause()
        steps = [next(stream).status.step for _ in range(4)]
        assert steps == sorted(steps)
        run.end()
        *_, last = stream
        assert last.status.state == run_pb2.RUN_STATE_NO_TRAINING


def test_a_cancelled_wait_leaves_its_worker_free() -> None:
    with running(limits=Limits(streams=1)) as run:
        for _ in range(3):
            streams: list[Any] = []

            def opened(streams: list[Any] = streams) -> None:
                streams.append(run.rpc.WaitForPause())
                next(streams[-1])

            until(lambda opened=opened: admitted(opened))  # type: ignore[misc]
            streams[-1].cancel()


def test_a_wait_ends_when_the_server_closes() -> None:
    with running() as run:
        stream = run.rpc.WaitForPause()
        next(stream)
        run.scope.close()
        with pytest.raises(grpc.RpcError):
            list(stream)


def test_a_closed_server_pauses_no_more() -> None:
    with running() as run:
        control = run.scope._backend._control
        run.scope.close()
        for act in (
            lambda: control.pause(30, "me"),
            lambda: control.step(1, 0, "me"),
            lambda: control.add_break("step > 0", 0, "me"),
        ):
            with pytest.raises(Closed, match="closing"):
                act()
        step = len(run.losses)
        until(lambda: len(run.losses) > step)
