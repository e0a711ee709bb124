"""Schedulers go on after a new lr as they do in PyTorch after `group["lr"] = ...`, and the reply says how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, lr_scheduler

from modscope_server.inspection.optimizer_edits import plan_set_optimizer
from modscope_server.inspection.optimizers import Groups
from modscope_server.inspection.schedulers import Schedulers
from tests.models import MLP

Make = Callable[[SGD], Any]

LASTING: dict[str, Make] = {
    "step": lambda o: lr_scheduler.StepLR(o, 3),
    "multi step": lambda o: lr_scheduler.MultiStepLR(o, [2, 6]),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "linear": lambda o: lr_scheduler.LinearLR(o, total_iters=20),
    "constant": lambda o: lr_scheduler.ConstantLR(o, total_iters=9),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, total_iters=20),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "chained": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.StepLR(o, 3)]),
}
OVERWRITING: dict[str, Make] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.5, total_steps=30),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.5, step_size_up=3),
}


class Run:
    """A loop with a scheduler; tells the lr of each step."""

    def __init__(self, make: Make) -> None:
        torch.manual_seed(0)
        self.model = MLP()
        self.optimizer = SGD(self.model.parameters(), lr=0.5, momentum=0.9)
        self.scheduler = make(self.optimizer)

    def steps(self, count: int) -> list[float]:
        rates = []
        for _ in range(count):
            self.optimizer.zero_grad()
            self.model(torch.ones(1, 1)).square().sum().backward()
            self.optimizer.step()
            plateau = isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau)
            self.scheduler.step(*([1.0] if plateau else []))
            rates.append(self.optimizer.param_groups[0]["lr"])
        return rates

    def set(self, *, known: bool = True, base_lr: bool = False, **values: Any) -> tuple[str, ...]:
        extras = {"scheduler": self.scheduler} if known else {}
        groups = Groups.of([self.optimizer])
        plan = plan_set_optimizer(self.model, groups, values, base_lr=base_lr, schedulers=Schedulers(extras))
        return plan.apply()[1:]


@pytest.mark.parametrize("name", LASTING | OVERWRITING)
def test_it_goes_on_as_after_an_assignment(name: str) -> None:
    make = (LASTING | OVERWRITING)[name]
    run, twin = Run(make), Run(make)
    assert run.steps(3) == twin.steps(3)
    run.set(lr=0.25)
    twin.optimizer.param_groups[0]["lr"] = 0.25
    assert run.steps(9) == twin.steps(9)


@pytest.mark.parametrize("name", LASTING | OVERWRITING)
def test_the_reply_says_whether_the_new_lr_lasts(name: str) -> None:
    """It lasts where a loop that was given it goes on otherwise than one that was not."""
    make = (LASTING | OVERWRITING)[name]
    run, twin = Run(make), Run(make)
    run.steps(1), twin.steps(1)
    notes = run.set(lr=0.0625)
    lasts = run.steps(1) != twin.steps(1)
    assert lasts is (name in LASTING)
    if lasts:
        assert notes == ()
        return
    (note,) = notes
    cls = type(run.scheduler).__name__
    assert note.startswith(f"{cls} will set the lr of group 0 (SGD) again at its next step, from base_lr ")
    assert note.endswith("modscope optim set lr=0.0625 --group 0 --base-lr changes that, too")


def test_base_lr_is_what_a_scheduler_computes_from() -> None:
    run = Run(OVERWRITING["lambda"])
    run.steps(2)
    groups, schedulers = Groups.of([run.optimizer]), Schedulers({"any name": run.scheduler})
    change = plan_set_optimizer(run.model, groups, {"lr": 0.25}, base_lr=True, schedulers=schedulers)
    assert change.apply() == (f"group 0 (SGD): lr {0.5 * 0.9**2} -> 0.25, base_lr 0.5 -> 0.25",)
    assert run.optimizer.param_groups[0]["initial_lr"] == 0.25
    assert run.optimizer.param_groups[0]["lr"] == 0.25
    assert run.steps(3) == [0.25 * 0.9**epoch for epoch in (3, 4, 5)]


@pytest.mark.parametrize("name", ["one cycle", "cyclic"])
def test_what_a_scheduler_computes_from_besides_is_told(name: str) -> None:
    run = Run(OVERWRITING[name])
    run.steps(2)
    (note,) = run.set(base_lr=True, lr=0.25)
    assert note.startswith(f"{type(run.scheduler).__name__} also computes from max_lr")
    assert run.scheduler.base_lrs == [0.25]
    if name == "one cycle":
        assert run.set(max_lr=0.25, initial_lr=0.25, min_lr=0.25) == ()
        assert run.steps(3) == pytest.approx([0.25] * 3)
    run.steps(5)


def test_milestones_of_a_sequence() -> None:
    def make(optimizer: SGD) -> Any:
        inner: list[Any] = [lr_scheduler.StepLR(optimizer, 2), lr_scheduler.StepLR(optimizer, 2)]
        return lr_scheduler.SequentialLR(optimizer, inner, [5])

    run = Run(make)
    run.steps(1)
    (note,) = run.set(lr=0.25)
    assert "SequentialLR will set the lr of group 0 (SGD) again at its next milestone" in note
    assert run.set(base_lr=True, lr=0.25) == ()
    assert run.steps(6)[4] == 0.25


def test_a_scheduler_that_nobody_has_told_of_shows_in_initial_lr() -> None:
    run = Run(OVERWRITING["lambda"])
    run.steps(1)
    (note,) = run.set(known=False, lr=0.25)
    assert note.startswith("a scheduler has left initial_lr 0.5 in group 0 (SGD) and may set the lr again")
    (note,) = run.set(known=False, base_lr=True, lr=0.25)
    assert "attach(extras={'scheduler': scheduler})" in note
    assert run.optimizer.param_groups[0]["initial_lr"] == 0.25
    assert run.scheduler.base_lrs == [0.5]
    del run.optimizer.param_groups[0]["initial_lr"]
    assert run.set(known=False, lr=0.125) == ()
    (note,) = run.set(known=False, base_lr=True, lr=0.125)
    assert note.startswith("no scheduler of group 0 (SGD) is known")
