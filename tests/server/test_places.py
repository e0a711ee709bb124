"""A request may choose at which place of an iteration a running loop serves it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from modscope_server.errors import NoSafePoint
from modscope_server.runtime.safepoint import Place, SafePoint
from tests.server.rpc import training_loop, until


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


@pytest.fixture
def safepoint(model: nn.Module) -> Iterator[SafePoint]:
    point = SafePoint([model])
    yield point
    point.close()


def iteration(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    for _ in range(2):
        model(torch.randn(8, 4)).square().mean().backward()
    with torch.no_grad():
        model(torch.randn(8, 4))
    optimizer.step()


def places(
    safepoint: SafePoint, admits: Callable[[Place | None], bool], times: int = 20
) -> set[Place | None]:
    """The places at which so many requests were served."""
    return {
        safepoint.run(lambda: safepoint.place, kind="write", admits=admits, timeout=30).value
        for _ in range(times)
    }


def test_requests_run_where_they_want_to(model: nn.Module, safepoint: SafePoint) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        iteration(model, optimizer)
        safepoint.mark_step()

    with training_loop(step):
        until(lambda: safepoint.step_count > 3)
        wanted: tuple[Place, ...] = ("optimizer", "mark", "forward")
        for place in wanted:
            assert places(safepoint, lambda here, place=place: here == place) == {place}  # type: ignore[misc]
        # Forwards inside of an iteration are no place of their own.
        assert places(safepoint, lambda here: here is None) == {None}


def test_an_iteration_that_is_marked_ends_there(model: nn.Module, safepoint: SafePoint) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        iteration(model, optimizer)
        safepoint.mark_step()

    with training_loop(step):
        until(lambda: safepoint.step_count > 3)
        assert places(safepoint, safepoint.ends_iteration) == {"mark"}


def test_an_iteration_without_a_mark_ends_with_its_optimizer(model: nn.Module, safepoint: SafePoint) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with training_loop(lambda: iteration(model, optimizer)):
        until(lambda: safepoint.step_count > 3)
        assert places(safepoint, safepoint.ends_iteration) == {"optimizer"}


def test_an_iteration_whose_optimizers_step_inside_backward_ends_at_the_next_forward(
    model: nn.Module, safepoint: SafePoint
) -> None:
    for parameter in model.parameters():
        own = torch.optim.SGD([parameter], lr=0.01)

        def update(held: torch.Tensor, own: torch.optim.Optimizer = own) -> None:
            own.step()
            own.zero_grad()

        parameter.register_post_accumulate_grad_hook(update)
    with training_loop(lambda: model(torch.randn(8, 4)).mean().backward()):
        until(lambda: safepoint.step_count > 3)
        assert places(safepoint, safepoint.ends_iteration) == {"forward"}


def test_beside_a_standing_loop_it_is_served_at_once_and_nowhere_in_particular(safepoint: SafePoint) -> None:
    assert places(safepoint, lambda here: False) == {None}


def test_a_held_loop_serves_it_where_it_is_held(model: nn.Module, safepoint: SafePoint) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    released = threading.Event()

    class Holding:
        def updated(self, optimizer: torch.optim.Optimizer) -> None:
            pass

        def boundary(self, step: int, place: Place, write_point: bool) -> None:
            safepoint.hold(released.is_set)

    with training_loop(lambda: iteration(model, optimizer)):
        safepoint.control = Holding()
        until(lambda: safepoint.activity.held)
        assert places(safepoint, lambda here: here == "mark") == {"optimizer"}
        safepoint.control = None
        released.set()


def test_a_place_that_never_comes_is_waited_for_until_the_deadline(
    model: nn.Module, safepoint: SafePoint
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ran = threading.Event()
    with training_loop(lambda: iteration(model, optimizer)):
        until(lambda: safepoint.step_count > 3)
        with pytest.raises(NoSafePoint):
            safepoint.run(ran.set, kind="write", admits=lambda here: here == "mark", timeout=0.5)
    assert not ran.is_set()
