"""Pausing, stepping and resuming real loops: held at a boundary, as long as a lease, and not moved by it."""

from __future__ import annotations

import ctypes
import logging
import random
import threading
from collections.abc import Callable

import pytest
import torch

from modscope.v1 import run_pb2
from modscope.v1.parameter_service_pb2 import WriteTensorRequest
from modscope_server.inspection.tensors import to_data
from modscope_server.runtime import run_control
from tests.server.rpc import TIMEOUT, spec, until, uploaded
from tests.server.run_support import Run, running, state_of

PAUSED = run_pb2.RUN_STATE_PAUSED


def undisturbed(iterations: int) -> Run:
    with running(start=False) as run:
        run.start(iterations)
        assert run.ended()
    return run


def test_a_paused_run_serves_every_request_does_not_move_and_goes_on_bit_for_bit() -> None:
    with running(start=False) as run:
        run.rpc.AddBreak(expression="step == 7")
        run.start(30)
        assert run.paused().step == 7
        for path, parameter in run.model.named_parameters():
            assert run.rpc.ReadTensor(path=path).data == bytes(to_data(parameter).data)
            assert parameter.grad is not None
            assert run.rpc.ReadTensor(path=path, what="grad").data == bytes(to_data(parameter.grad).data)
        assert len(list(run.rpc.Download())) > 1
        bias = run.model.get_parameter("0.bias")
        write = WriteTensorRequest(path="0.bias", spec=spec(bias))
        written = run.rpc.WriteTensor(uploaded(write, bias.detach()))
        assert (written.operation.outcome, written.operation.step) == ("applied", 7)
        assert run.rpc.Freeze(glob="0.bias").operation.step == 7
        assert not bias.requires_grad
        assert run.rpc.Unfreeze(glob="0.bias").operation.step == 7
        status = run.status
        assert (status.step, status.state, len(run.losses)) == (7, PAUSED, 6)
        assert "held at a step boundary" in status.doing
        assert [m.points[-1].step for m in status.metrics] == [7, 7]
        run.rpc.Resume()
        assert run.ended()
    plain = undisturbed(30)
    assert run.losses == plain.losses
    assert all(torch.equal(one, state_of(plain)[key]) for key, one in state_of(run).items())


def test_step_goes_on_for_exactly_so_many_iterations() -> None:
    with running() as run:
        run.rpc.Pause()
        first = run.paused().step
        expected = first
        for steps in (1, 5, 0, 17):
            answer = run.rpc.Step(steps=steps).status
            assert (answer.step, answer.pause.reason) == (expected, "step")
            assert not answer.pause.HasField("since")
            expected += steps or 1
            until(lambda: run.status.state == PAUSED)
            assert run.status.step == expected
            assert len(run.losses) == expected - 1
        run.rpc.Resume()
        assert run.goes_on(expected)
        answer = run.rpc.Step(steps=3).status
        assert run.paused().step == answer.step + 3


def test_the_lease_of_a_pause_is_kept_by_its_steps_unless_another_is_given() -> None:
    with running() as run:
        lease = run.rpc.Pause(lease_seconds=77).status.pause.lease
        assert (lease.seconds, lease.holds) == (77, "pause")
        assert lease.who.startswith("operator")
        run.paused()
        assert run.rpc.Step().status.pause.lease.id == lease.id
        run.paused()
        other = run.rpc.Step(lease_seconds=5).status.pause.lease
        assert (other.id != lease.id, other.seconds) == (True, 5)
        run.paused()
        third = run.rpc.Pause(lease_seconds=40).status
        assert (third.state, third.pause.lease.seconds) == (PAUSED, 40)
        assert third.pause.lease.id not in (lease.id, other.id)
        assert run.rpc.Pause().status.pause.lease.seconds == 30


def test_a_pause_ends_with_its_lease_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with running() as run, caplog.at_level(logging.INFO, "modscope_server"):
        lease = run.rpc.Pause(lease_seconds=1).status.pause.lease
        until(lambda: run.status.last_resume)
        step = run.scope.step_count
        assert run.goes_on(step)
        status = run.status
        assert lease.id in status.last_resume
        assert "nobody renewed it for 1 s" in status.last_resume
        assert not status.HasField("pause")
        assert any(lease.id in record.getMessage() for record in caplog.records)


def test_a_renewed_lease_ends_later_and_a_released_one_at_once() -> None:
    with running() as run:
        lease = run.rpc.Pause().status.pause.lease
        run.paused()
        renewed = run.rpc.RenewLease(id=lease.id).lease
        assert renewed.expires.ToNanoseconds() > lease.expires.ToNanoseconds()
        assert run.status.pause.lease == renewed
        step = run.status.step
        run.rpc.ReleaseLease(id=lease.id)
        assert run.goes_on(step)
        assert f"{lease.id} was released by operator" in run.status.last_resume


def test_resume_ends_the_wish_for_a_pause_too_and_is_no_error_without_one() -> None:
    with running(start=False) as run:
        run.rpc.Resume()
        assert run.status.last_resume == ""
        status = run.rpc.Pause().status
        assert status.state == run_pb2.RUN_STATE_NO_TRAINING
        assert status.pause.reason == "pause"
        assert not status.pause.HasField("since")
        status = run.rpc.Resume().status
        assert not status.HasField("pause")
        assert status.last_resume.startswith("it was not held yet")
        run.start()
        assert run.goes_on(5)


def test_nothing_is_asked_of_the_loop_while_there_is_neither_pause_nor_break() -> None:
    with running() as run:
        safepoint = run.scope._backend._safepoint
        assert safepoint.control is None
        run.rpc.Pause()
        assert safepoint.control is not None
        run.paused()
        run.rpc.Resume()
        assert safepoint.control is None
        run.rpc.AddBreak(expression="step < 0")
        assert safepoint.control is not None
        run.rpc.ClearBreaks()
        assert safepoint.control is None


def test_an_interrupt_while_paused_reaches_the_loop() -> None:
    with running() as run:
        run.rpc.Pause()
        run.paused()
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(run.ident), ctypes.py_object(KeyboardInterrupt)
        )
        assert run.ended()
        assert isinstance(run.error, KeyboardInterrupt)
        status = run.status
        assert status.last_resume == "KeyboardInterrupt was raised into the loop"
        assert not status.HasField("pause")
        assert run.scope._backend._safepoint.control is None


def test_an_interrupt_that_comes_just_before_the_loop_is_held_ends_the_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hold(until: Callable[[], bool]) -> None:
        raise AssertionError("the loop is held")

    def told(message: str, *args: object) -> None:
        if message.startswith("the run is paused"):
            raise KeyboardInterrupt

    with running(start=False) as run:
        monkeypatch.setattr(run_control._LOG, "info", told)
        monkeypatch.setattr(run.scope._backend._safepoint, "hold", hold)
        run.rpc.Pause()
        run.start()
        assert run.ended()
        assert isinstance(run.error, KeyboardInterrupt)
        assert not run.status.HasField("pause")


def test_closing_the_scope_lets_a_paused_loop_go() -> None:
    with running() as run:
        run.rpc.Pause()
        step = run.paused().step
        run.scope.close()
        until(lambda: len(run.losses) > step + 3)


def test_a_run_that_ends_while_a_pause_is_asked_for_is_told() -> None:
    with running(start=False) as run:
        entered, leave = threading.Event(), threading.Event()

        def stand(number: int) -> None:
            entered.set()
            assert leave.wait(TIMEOUT)
            raise InterruptedError

        run.before_backward = stand
        run.start()
        assert entered.wait(TIMEOUT)
        run.rpc.Pause()
        leave.set()
        assert run.ended()
        (status,) = (answer.status for answer in run.rpc.WaitForPause())
        assert status.state == run_pb2.RUN_STATE_NO_TRAINING
        assert status.pause.reason == "pause"
        assert any("has ended" in note for note in status.notes)
        run.error = None


def test_whoever_controls_a_run_together_never_stops_it_for_good() -> None:
    conditions = ["nan(forward:*) == 0", "step > 0", "grad.norm(*) > 0", "loss > 0"]
    acts: list[Callable[[Run, random.Random], object]] = [
        lambda run, chance: run.rpc.Pause(lease_seconds=60),
        lambda run, chance: run.rpc.Resume(),
        lambda run, chance: run.rpc.Step(steps=chance.randrange(1, 4)),
        lambda run, chance: run.rpc.AddBreak(expression=chance.choice(conditions)),
        lambda run, chance: run.rpc.ClearBreaks(),
        lambda run, chance: run.rpc.ReadTensor(path="0.weight"),
        lambda run, chance: run.rpc.Freeze(glob="0.bias"),
        lambda run, chance: run.rpc.Unfreeze(glob="0.bias"),
        lambda run, chance: run.rpc.GetRunStatus(),
    ]
    with running() as run:
        errors: list[BaseException] = []

        def control(seed: int) -> None:
            chance = random.Random(seed)
            try:
                for _ in range(120):
                    chance.choice(acts)(run, chance)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=control, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT * 2)
        assert not errors
        assert not any(thread.is_alive() for thread in threads)
        run.rpc.ClearBreaks()
        run.rpc.Resume()
        assert run.goes_on(run.scope.step_count)
        assert run.scope._backend._safepoint.control is None
        assert len(run.scope._backend._leases) == 0
