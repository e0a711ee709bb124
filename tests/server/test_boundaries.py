"""Step boundaries: who is told of them, a loop that is held there, and the steps that a scaler skips."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from modscope_server.runtime.safepoint import SafePoint
from tests.server.rpc import until
from tests.server.safepoint_support import small_model, train

TIMEOUT = 20.0


class Heard:
    """A control that notes what it is told, and holds where it is asked to."""

    def __init__(self, point: SafePoint) -> None:
        self.point = point
        self.boundaries: list[tuple[int, str, bool]] = []
        self.updates: list[Optimizer] = []
        self.hold_at = -1
        self.holding = threading.Event()
        self.go_on = threading.Event()

    def updated(self, optimizer: Optimizer) -> None:
        self.updates.append(optimizer)

    def boundary(self, step: int, place: str, write_point: bool) -> None:
        self.boundaries.append((step, place, write_point))
        if step == self.hold_at and not self.go_on.is_set():
            self.holding.set()
            self.point.hold(self.go_on.is_set)


@pytest.fixture
def model() -> nn.Module:
    return small_model()


def repeat(what: Callable[[], None], times: int) -> None:
    for _ in range(times):
        what()


def heard(point: SafePoint) -> Heard:
    control = Heard(point)
    point.control = control
    return control


def test_a_boundary_is_told_after_the_last_step_and_at_the_next_forward(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    point = SafePoint([model], optimizers=1)
    control = heard(point)
    point.peek(lambda: None)
    train(model, optimizer)
    assert control.boundaries == [(1, "optimizer", True)]
    train(model, optimizer)
    assert control.boundaries[1:] == [(1, "forward", True), (2, "optimizer", True)]
    assert control.updates == [optimizer, optimizer]
    point.control = None
    train(model, optimizer)
    assert len(control.boundaries) == 3
    point.close()


def test_a_pending_forward_makes_it_no_write_point(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    point = SafePoint([model], optimizers=1)
    control = heard(point)
    point.peek(lambda: None)
    kept = model(torch.randn(2, 4))
    model(torch.randn(16, 4)).sum().backward()
    optimizer.step()
    assert control.boundaries == [(1, "optimizer", False)]
    del kept
    model(torch.randn(2, 4))
    assert control.boundaries[1:] == [(1, "forward", True)]
    point.close()


def test_a_held_loop_serves_everything_and_does_not_move(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    point = SafePoint([model], optimizers=1, read_share=1e-9)
    control = heard(point)
    control.hold_at = 3
    point.peek(lambda: None)
    loop = threading.Thread(target=repeat, args=(lambda: train(model, optimizer), 5))
    loop.start()
    assert control.holding.wait(TIMEOUT)
    weight = model.get_parameter("0.weight")
    for _ in range(3):
        read = point.run(lambda: (threading.get_ident(), weight.clone()), timeout=TIMEOUT)
        assert read.value[0] == loop.ident
        assert point.run(lambda: weight.grad is not None, kind="grad", timeout=TIMEOUT).value
        written = point.run(lambda: weight.fill_(1.0), kind="write", timeout=TIMEOUT)
        assert (read.step, written.step, point.step_count) == (3, 3, 3)
        assert not point.idle
        assert "held" in point.describe()
    control.go_on.set()
    point.wake()
    loop.join(TIMEOUT)
    assert not loop.is_alive()
    assert point.step_count == 5
    point.close()


def test_the_time_of_a_hold_is_not_the_loops_own_pace(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    point = SafePoint([model], optimizers=1)
    for _ in range(3):
        train(model, optimizer)
    assert point.steps_per_second > 0

    class Holding(Heard):
        def boundary(self, step: int, place: str, write_point: bool) -> None:
            self.point.hold(lambda: True)

    point.control = Holding(point)
    train(model, optimizer)
    assert point.steps_per_second == 0.0
    point.close()


def test_closing_lets_a_held_loop_go(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    point = SafePoint([model], optimizers=1)
    control = heard(point)
    control.hold_at = 1
    loop = threading.Thread(target=lambda: train(model, optimizer))
    loop.start()
    assert control.holding.wait(TIMEOUT)
    point.close()
    loop.join(TIMEOUT)
    assert not loop.is_alive()


def test_an_interrupt_reaches_a_held_loop_and_ends_the_hold(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    point = SafePoint([model], optimizers=1)
    asked: list[int] = []

    class Interrupting(Heard):
        def boundary(self, step: int, place: str, write_point: bool) -> None:
            self.point.hold(self.interrupt)

        def interrupt(self) -> bool:
            asked.append(1)
            raise KeyboardInterrupt

    point.control = Interrupting(point)
    with pytest.raises(KeyboardInterrupt):
        train(model, optimizer)
    assert asked
    point.control = None
    assert point.run(lambda: 1, timeout=TIMEOUT).value == 1
    point.close()


class Inner(nn.Linear):
    interrupted = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.interrupted:
            raise KeyboardInterrupt
        return super().forward(x)


@pytest.mark.parametrize("nested", [False, True])
def test_after_a_forward_that_was_interrupted_iterations_count_as_before(nested: bool) -> None:
    inner = Inner(4, 1)
    model = nn.Sequential(inner) if nested else inner
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    point = SafePoint([model, inner] if nested else [model], optimizers=1)
    control = heard(point)
    train(model, optimizer)
    inner.interrupted = True
    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        model.eval()(torch.ones(2, 4))
    inner.interrupted = False
    model.train()
    repeat(lambda: train(model, optimizer), 2)
    assert point.step_count == 3
    assert [(step, place) for step, place, _ in control.boundaries][1:] == [
        (1, "forward"),
        (2, "optimizer"),
        (2, "forward"),
        (3, "optimizer"),
    ]
    point.close()


def test_a_chore_is_done_at_each_outermost_forward_and_after_each_step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    point = SafePoint([model], optimizers=1)
    norm = nn.BatchNorm1d(4)
    point.add_chore(norm.eval)
    norm.train()
    model(torch.randn(2, 4))
    assert not norm.training
    norm.train()
    optimizer.step()
    assert not norm.training
    point.remove_chore(norm.eval)
    norm.train()
    train(model, optimizer)
    assert norm.training
    point.close()


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize("overflows", [[0], [1], [0, 1, 2], [2, 4], []])
def test_a_skipped_step_ends_an_iteration_and_is_told(
    model: nn.Module, overflows: list[int], marks: bool
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    point = SafePoint([model], optimizers=1, scaler=scaler)
    control = heard(point)
    for number in range(6):
        optimizer.zero_grad()
        loss = model(torch.randn(16, 4)).square().mean() * (torch.inf if number in overflows else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if marks:
            point.mark_step()
        assert len(control.updates) == sum(done not in overflows for done in range(number + 1))
    model(torch.randn(2, 4))
    assert point.step_count == 6
    assert point.skipped_steps == len(overflows)
    assert {step for step, _, _ in control.boundaries} == set(range(1, 7))
    point.close()


def test_accumulation_under_a_scaler_skips_nothing(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    point = SafePoint([model], optimizers=1, scaler=scaler)
    for _ in range(3):
        for _ in range(4):
            scaler.scale(model(torch.randn(16, 4)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    model(torch.randn(2, 4))
    assert (point.step_count, point.skipped_steps) == (3, 0)
    point.close()


def test_nothing_is_served_inside_a_closure(model: nn.Module) -> None:
    """Between two evaluations of its closure, LBFGS has moved the weights and may move them back."""
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5)
    point = SafePoint([model], optimizers=1)
    x = torch.randn(16, 4)
    inside: list[int] = []
    evaluations = 0
    waiting = threading.Thread(target=lambda: point.run(lambda: inside.append(evaluations), timeout=TIMEOUT))

    def closure() -> torch.Tensor:
        nonlocal evaluations
        optimizer.zero_grad()
        loss: torch.Tensor = model(x).square().mean()
        loss.backward()
        evaluations += 1
        if evaluations == 1:
            waiting.start()
            while not point.waiting:
                pass
        return loss

    step: Callable[..., object] = optimizer.step
    point.mark_step()
    step(closure)
    waiting.join(TIMEOUT)
    assert evaluations > 1
    assert inside == [evaluations]
    point.close()


def test_closures_count_and_have_their_chores_done(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    done: list[int] = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(torch.ones(2, 4)).sum()
        loss.backward()
        return loss

    point = SafePoint([model], optimizers=1)
    repeat(lambda: optimizer.step(closure), 2)  # type: ignore[arg-type]
    point.add_chore(lambda: done.append(point.step_count))
    repeat(lambda: optimizer.step(closure), 3)  # type: ignore[arg-type]
    point.close()
    assert point.step_count == 5
    assert done == [2, 3, 3, 4, 4, 5]


def test_a_mark_reports_before_requests_and_boundaries(model: nn.Module) -> None:
    point = SafePoint([model])
    control = heard(point)
    told: list[object] = []
    point.mark_step(lambda step: told.append((step, list(control.boundaries))))
    assert told == [(1, [])]
    assert control.boundaries == [(1, "mark", True)]
    assert point.steps_per_second == 0.0
    point.mark_step()
    assert point.steps_per_second > 0.0
    point.close()


def test_followers_see_what_an_iteration_leaves_before_requests_and_holds(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    point = SafePoint([model], optimizers=1)
    order: list[object] = []

    class Follower:
        def updated(self, optimizer: Optimizer, step: int) -> None:
            order.append(("updated", step))

        def boundary(self, step: int, place: str) -> None:
            order.append((place, step))

    class Control(Heard):
        def boundary(self, step: int, place: str, write_point: bool) -> None:
            order.append("control")

    follower = Follower()
    point.add_follower(follower)
    point.control = Control(point)
    reader = threading.Thread(target=lambda: point.run(lambda: order.append("read"), timeout=TIMEOUT))

    def ask(where: str) -> None:
        if where == "backward":
            reader.start()
            until(lambda: point.waiting == 1)

    train(model, optimizer, ask)
    reader.join(TIMEOUT)
    assert order == [("updated", 1), ("optimizer", 1), "read", "control"]
    order.clear()
    point.mark_step()
    train(model, optimizer)
    assert order == [
        ("mark", 1),
        "control",
        ("forward", 1),
        "control",
        ("updated", 2),
        ("optimizer", 2),
        "control",
    ]
    order.clear()
    point.remove_follower(follower)
    point.remove_follower(follower)
    point.mark_step()
    assert order == ["control"]
    point.close()


def test_root_hooks_that_cannot_fire_are_told(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    point = SafePoint([model], optimizers=1)
    assert not point.notes
    for _ in range(3):
        optimizer.zero_grad()
        model.forward(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
    assert point.step_count == 3
    assert "do not fire" in point.notes[0]
    train(model, optimizer)
    assert not point.notes
    point.close()
