"""A request beside an idle training thread: whatever that thread begins to do, it waits for the request."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from modscope_server.errors import Closed
from modscope_server.runtime.safepoint import Kind, SafePoint

TIMEOUT = 20.0


class Busy:
    """A request that stays with the model until it is let go."""

    def __init__(self, point: SafePoint, kind: Kind = "read") -> None:
        self.inside, self.leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=point.run, args=(self._stay,), kwargs={"kind": kind})

    def _stay(self) -> None:
        self.inside.set()
        assert self.leave.wait(TIMEOUT)

    def __enter__(self) -> Busy:
        self._thread.start()
        assert self.inside.wait(TIMEOUT)
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave.set()
        self._thread.join(TIMEOUT)


class Trainer:
    """The training thread, which does what it is told and says when it has done that."""

    def __init__(self) -> None:
        self._told: list[Callable[[], Any]] = []
        self._wake = threading.Semaphore(0)
        self._done = threading.Semaphore(0)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            self._told.pop(0)()
            self._done.release()

    def begin(self, what: Callable[[], Any]) -> None:
        self._told.append(what)
        self._wake.release()

    def done(self, timeout: float = TIMEOUT) -> bool:
        return self._done.acquire(timeout=timeout)

    def do(self, what: Callable[[], Any]) -> None:
        self.begin(what)
        assert self.done()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def iterate(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    while True:
        iterate(model, optimizer)


@pytest.mark.parametrize("seen_before", [False, True])
def test_a_step_waits_for_a_request_that_found_the_thread_idle(model: nn.Module, seen_before: bool) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    point = SafePoint([model], optimizers=1)
    trainer = Trainer()
    if seen_before:
        trainer.do(lambda: iterate(model, optimizer))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = model.get_parameter("weight").detach().clone()
    with Busy(point):
        trainer.begin(optimizer.step)
        assert not trainer.done(0.2)
        assert torch.equal(model.get_parameter("weight"), before)
    assert trainer.done()
    assert torch.equal(model.get_parameter("weight"), before - 1)
    point.close()


def test_a_forward_waits(model: nn.Module) -> None:
    point = SafePoint([model])
    trainer = Trainer()
    with Busy(point, "write"):
        trainer.begin(lambda: model(torch.ones(1, 4)))
        assert not trainer.done(0.2)
    assert trainer.done()
    point.close()


def test_a_thread_that_closes_the_safe_point_waits_for_the_request_that_runs(model: nn.Module) -> None:
    point = SafePoint([model])
    trainer = Trainer()
    with Busy(point):
        trainer.begin(point.close)
        assert not trainer.done(0.2)
    assert trainer.done()


def test_a_backward_waits_for_a_read_of_gradients(model: nn.Module) -> None:
    point = SafePoint([model], optimizers=1)
    point.peek(lambda: None)
    trainer = Trainer()
    losses: list[torch.Tensor] = []
    trainer.do(lambda: losses.append(model(torch.ones(1, 4)).sum()))
    with Busy(point, "grad"):
        trainer.begin(lambda: losses.pop().backward())
        assert not trainer.done(0.2)
        assert model.get_parameter("weight").grad is None
    assert trainer.done()
    assert model.get_parameter("weight").grad is not None
    point.close()


def test_a_step_inside_of_backward_waits(model: nn.Module) -> None:
    weight = model.get_parameter("weight")
    optimizer = torch.optim.SGD([weight], lr=1.0)
    weight.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    point = SafePoint([model], optimizers=1)
    trainer = Trainer()
    losses: list[torch.Tensor] = []
    trainer.do(lambda: losses.append(model(torch.ones(1, 4)).sum()))
    before = weight.detach().clone()
    with Busy(point):
        trainer.begin(lambda: losses.pop().backward())
        assert not trainer.done(0.2)
        assert torch.equal(weight, before)
    assert trainer.done()
    assert not torch.equal(weight, before)
    point.close()


@pytest.mark.parametrize("when", [1, 2])
def test_an_interrupt_as_a_request_is_served_ends_it_and_leaves_the_loop_as_it_was(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    point = SafePoint([model], optimizers=1)
    iterate(model, optimizer)
    refresh = point._turns.refresh
    left = when
    ended = threading.Event()

    def interrupted() -> None:
        nonlocal left
        left -= threading.current_thread() is threading.main_thread()
        if left == 0:
            raise KeyboardInterrupt
        refresh()

    def ask() -> None:
        with contextlib.suppress(Closed):
            point.run(lambda: None, timeout=TIMEOUT)
        ended.set()

    monkeypatch.setattr(point._turns, "refresh", interrupted)
    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        train(model, optimizer)
    assert ended.wait(TIMEOUT)
    steps = point.step_count
    iterate(model, optimizer)
    assert point.step_count == steps + 1
    point.close()
