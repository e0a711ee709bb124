"""At which boundary a run is held: control without a server, under loops that the test itself runs."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from modscope_server.runtime.breaks.parameters import Gradients
from modscope_server.runtime.breaks.sources import Sources
from modscope_server.runtime.breaks.table import BreakTable
from modscope_server.runtime.hooks import HookManager
from modscope_server.runtime.leases import Leases
from modscope_server.runtime.metrics import Metrics
from modscope_server.runtime.registry import Registry
from modscope_server.runtime.run_control import RunControl
from modscope_server.runtime.safepoint import SafePoint


class Held:
    """Notes where a loop would be held."""

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


def test_a_break_is_met_again_by_a_run_that_was_set_back() -> None:
    model = nn.Linear(3, 1)
    held, optimizer = Held(model), torch.optim.SGD(model.parameters(), lr=0.1)
    held.control.add_break("step == 4", 0, "test")
    iterations(held, model, optimizer, 6)
    held.point.set_step_count(2)
    iterations(held, model, optimizer, 6)
    assert held.at == [4, 4]
    held.close()


def test_a_new_pause_is_held_after_the_next_iteration_and_not_at_the_same_one_again() -> None:
    model = nn.Linear(3, 1)
    held, optimizer = Held(model), torch.optim.SGD(model.parameters(), lr=0.1)
    iterations(held, model, optimizer, 3)

    def again() -> None:
        held.control.resume("test")
        if len(held.at) < 3:
            held.control.pause(30, "test")

    held.then = again
    held.control.add_break("step == 4", 0, "test")
    iterations(held, model, optimizer, 6)
    assert held.at == [4, 5, 6]
    held.close()


def test_a_break_that_always_holds_stops_a_loop_that_is_never_safe_for_writes() -> None:
    model = nn.Linear(3, 1)
    held, optimizer = Held(model), torch.optim.SGD(model.parameters(), lr=0.1)
    kept = []
    held.control.add_break("step > 0", 0, "test")
    for _ in range(7):
        iterations(held, model, optimizer, 1)
        kept.append(model(torch.ones(2, 3)).sum())
    assert held.at == [1, 3, 5, 7]
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
