"""Forwards that wait for their backward: what tells of them, and that no write falls in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from modscope_server.runtime.safepoint import SafePoint
from tests.server.safepoint_support import small_model, train


@pytest.fixture
def model() -> nn.Module:
    return small_model()


@pytest.fixture
def safepoint(model: nn.Module) -> Iterator[SafePoint]:
    point = SafePoint([model], optimizers=1, boot_id="boot")
    yield point
    point.close()


def test_a_write_waits_while_a_forward_awaits_its_backward(model: nn.Module, safepoint: SafePoint) -> None:
    seen: list[str] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer)
    waiting = threading.Thread(
        target=lambda: seen.append(safepoint.run(lambda: "written", kind="write", timeout=20).value)
    )

    def between(where: str) -> None:
        if where == "forward":
            waiting.start()
            while not safepoint.waiting:
                pass
            with torch.no_grad():
                model(torch.randn(2, 4))
        seen.append(where)

    train(model, optimizer, between)
    waiting.join(20)
    assert seen.index("written") > seen.index("backward")


def test_a_forgotten_forward_is_no_pending_forward(model: nn.Module, safepoint: SafePoint) -> None:
    safepoint.peek(lambda: None)
    output = model(torch.randn(2, 4))
    assert safepoint.backward_expected
    loss = output.sum()
    del output
    assert safepoint.backward_expected
    del loss
    assert not safepoint.backward_expected
    model(torch.randn(2, 4)).sum().backward()
    assert not safepoint.backward_expected


def test_forwards_from_before_the_first_call_are_pending_until_all_optimizers_have_stepped() -> None:
    torch.manual_seed(0)
    generator, critic = nn.Linear(2, 2), nn.Linear(2, 1)
    point = SafePoint([generator, critic], optimizers=2)
    first, second = (torch.optim.SGD(model.parameters(), lr=0.1) for model in (generator, critic))

    def iterate(after: Callable[[], None]) -> None:
        fake = generator(torch.randn(4, 2))
        second.zero_grad()
        critic(fake.detach()).mean().backward()
        second.step()
        after()
        first.zero_grad()
        critic(fake).mean().backward()
        first.step()

    def call() -> None:
        assert point.pending.any()
        point.peek(lambda: None)
        assert point.pending.any()

    for _ in range(2):
        iterate(lambda: None)
    iterate(call)
    assert not point.pending.any()
    point.close()


def test_a_forward_from_before_the_first_call_is_forgotten_where_nothing_ever_steps(
    model: nn.Module, safepoint: SafePoint
) -> None:
    model(torch.randn(2, 4))
    safepoint.peek(lambda: None)
    assert safepoint.backward_expected
    for _ in range(64):
        model(torch.randn(2, 4))
    assert not safepoint.backward_expected


def test_an_optimizer_that_steps_no_more_is_no_obstacle_however_often_somebody_calls(
    model: nn.Module, safepoint: SafePoint
) -> None:
    before, now = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    train(model, before)
    train(model, now)
    for _ in range(64):
        safepoint.peek(lambda: None)
        assert safepoint.backward_expected
        train(model, now)
    assert not safepoint.backward_expected
