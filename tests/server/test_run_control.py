"""Pausing, stepping and resuming real loops: held at a boundary, as long as a lease, and not moved by it."""

from __future__ import annotations

import ctypes
import logging
import random
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from modscope.v1 import run_pb2
from modscope.v1.parameter_service_pb2 import WriteTensorRequest
from modscope_server.inspection.tensors import to_data
from modscope_server.runtime.breaks.parameters import Gradients
from modscope_server.runtime.breaks.sources import Sources
from modscope_server.runtime.breaks.table import BreakTable
from modscope_server.runtime.hooks import HookManager
from modscope_server.runtime.leases import Leases
from modscope_server.runtime.metrics import Metrics
from modscope_server.runtime.registry import Registry
from modscope_server.runtime.run_control import RunControl
from modscope_server.runtime.safepoint import SafePoint
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


class Held:
    """Control without a server, under a loop that the test itself runs: what it would be held at is noted."""

    def __init__(self, model: nn.Module) -> None:
        self.point = SafePoint([model], optimizers=1)
        registry = Registry({"model": model})
        hooks = HookManager(watches=4, events=4, size=4)
        self.metrics = Metrics()
        sources = Sources(registry, self.metrics, hooks, lambda: False)
        self.leases = Leases()
        self.control = RunControl(self.point, BreakTable(sources), self.leases)
        self.at: list[int] = []
        self.point.hold = self._hold  # type: ignore[method-assign]
        self.then = lambda: self.control.resume("test")

    def _hold(self, until: object) -> None:
        assert self.control.status().state == "paused"
        self.at.append(self.point.step_count)
        self.then()

    def close(self) -> None:
        self.control.close()
        self.leases.close()
        self.point.close()


def iterations(held: Held, model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()


def test_a_step_count_that_goes_back_takes_the_steps_to_come_with_it() -> None:
    model = nn.Linear(3, 1)
    held, optimizer = Held(model), torch.optim.SGD(model.parameters(), lr=0.1)
    iterations(held, model, optimizer, 20)
    held.control.pause(30, "test")

    def back() -> None:
        held.point.set_step_count(5)
        held.control.step(3, 0, "test")
        held.then = lambda: held.control.resume("test")

    held.then = back
    iterations(held, model, optimizer, 10)
    assert held.at == [20, 8]
    assert held.point.step_count == 15
    held.control.step(6, 0, "test")
    iterations(held, model, optimizer, 2)
    held.point.set_step_count(3)
    iterations(held, model, optimizer, 10)
    assert held.at == [20, 8, 7]
    held.close()


def test_a_pause_waits_for_a_point_at_which_writes_are_safe_but_no_more_than_an_iteration() -> None:
    model = nn.Linear(3, 1)
    held, optimizer = Held(model), torch.optim.SGD(model.parameters(), lr=0.1)
    iterations(held, model, optimizer, 3)
    held.point.pending.attend()
    kept = [model(torch.ones(2, 3)).sum()]
    held.control.pause(30, "test")
    iterations(held, model, optimizer, 1)
    assert held.at == []
    kept.clear()
    iterations(held, model, optimizer, 1)
    assert held.at == [4]
    kept.append(model(torch.ones(2, 3)).sum())
    held.at.clear()
    before = held.point.step_count
    held.control.pause(30, "test")
    iterations(held, model, optimizer, 3)
    assert held.at == [before + 2]
    held.close()


def test_a_pause_that_the_training_thread_asks_for_cannot_be_renewed() -> None:
    model = nn.Linear(3, 1)
    held, optimizer = Held(model), torch.optim.SGD(model.parameters(), lr=0.1)
    held.control.pause(30, "test", own=True)
    pause = held.control.status().pause
    assert pause is not None
    assert held.leases.renew(pause.lease.id) == pause.lease
    assert any("itself" in note for note in held.control.status().notes)
    iterations(held, model, optimizer, 2)
    assert held.at == [1]
    held.close()


def test_a_break_that_fails_is_told_and_looked_at_no_more(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(3, 1)
    held, optimizer = Held(model), torch.optim.SGD(model.parameters(), lr=0.1)
    held.control.add_break("loss > 1 or norm(*) > 1e9 or grad.norm(*) > 1e9", 0, "test")
    held.control.add_break("step == 5", 0, "test")

    class Bad:
        def latest(self, name: str) -> float:
            raise ValueError("no way")

    held.control._breaks._sources._metrics = Bad()  # type: ignore[assignment]
    with caplog.at_level(logging.ERROR, "modscope_server"):
        iterations(held, model, optimizer, 8)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert held.at == [5]
    first, second = held.control.breaks()
    assert first.notes == ("it failed and is looked at no more: ValueError: no way",)
    assert (first.hits, second.hits) == (0, 1)
    held.close()


def test_gradients_that_cannot_be_reduced_fail_those_breaks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(3, 1)
    held, optimizer = Held(model), torch.optim.SGD(model.parameters(), lr=0.1)
    held.control.add_break("grad.norm(*) >= 0", 0, "test")
    held.control.add_break("norm(*) >= 0 and step == 4", 0, "test")

    def fail(gradients: object, step: int, optimizer: object) -> None:
        raise MemoryError("of the device")

    monkeypatch.setattr(Gradients, "updated", fail)
    iterations(held, model, optimizer, 6)
    first, second = held.control.breaks()
    assert first.notes == ("it failed and is looked at no more: MemoryError: of the device",)
    assert (held.at, second.notes) == ([4], ())
    held.close()


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
