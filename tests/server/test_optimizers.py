"""Groups: which optimizer holds what, its state, and beginning anew with a parameter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop, Rprop

from modscope_server.errors import BadRequest
from modscope_server.inspection.optimizers import Groups
from tests.models import MLP


def step(model: nn.Module, optimizer: Optimizer) -> None:
    def loss() -> Any:
        optimizer.zero_grad()
        out = model(torch.linspace(-1, 1, 8).reshape(8, 1)).square().mean()
        out.backward()
        return out

    optimizer.step(loss)


def test_groups_are_counted_over_all_optimizers() -> None:
    model = MLP()
    one: list[dict[str, Any]] = [{"params": [model.w1.weight]}, {"params": [model.w1.bias]}]
    two: list[dict[str, Any]] = [{"params": model.w2.parameters()}, {"params": [model.w1.bias]}]
    first, second = SGD(one, lr=0.1), Adam(two)
    groups = Groups.of([first, second])
    assert groups.index(model.w1.weight) == 0
    assert groups.index(model.w1.bias) == 1
    assert groups.index(model.w2.bias) == 2
    assert groups.index(model.w3.bias) is None
    assert groups.holders(model.w1.bias) == [first, second]
    assert groups.holders(model.w3.bias) == []
    assert groups.holds(model.w2.weight)
    assert not groups.holds(model.w3.weight)
    assert not groups.holds(model.w2.weight.clone())
    assert groups.count_for(model) == 2
    assert groups.count_for(model.w2) == 1
    assert groups.count_for(model.w3) == 0
    assert Groups.of([]).index(model.w1.weight) is None


def test_state_is_the_optimizers_own() -> None:
    model = MLP()
    optimizer = AdamW(model.parameters())
    groups = Groups.of([optimizer])
    with pytest.raises(BadRequest, match="no optimizer state 'exp_avg'") as caught:
        groups.state(model.w1.weight, "exp_avg")
    assert "before its first step" in caught.value.hint
    step(model, optimizer)
    for key in ("exp_avg", "exp_avg_sq", "step"):
        assert groups.state(model.w1.weight, key) is optimizer.state[model.w1.weight][key]
    with pytest.raises(BadRequest) as caught:
        groups.state(model.w1.weight, "momentum_buffer")
    assert caught.value.field == "what"
    assert "step, exp_avg, exp_avg_sq" in caught.value.hint
    with pytest.raises(BadRequest, match="no optimizer state") as caught:
        groups.state(torch.zeros(1), "exp_avg")
    assert "no optimizer known here holds it" in caught.value.hint
    assert set(optimizer.state) == set(model.parameters())


def test_numbers_in_the_state_become_tensors() -> None:
    model = MLP()
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.state[model.w1.weight] = {"count": 3, "scale": 0.1, "on": True, "text": "x"}
    groups = Groups.of([optimizer])
    assert torch.equal(groups.state(model.w1.weight, "count"), torch.tensor(3))
    assert torch.equal(groups.state(model.w1.weight, "scale"), torch.tensor(0.1, dtype=torch.float64))
    assert torch.equal(groups.state(model.w1.weight, "on"), torch.tensor(True))
    with pytest.raises(BadRequest) as caught:
        groups.state(model.w1.weight, "text")
    assert caught.value.hint.endswith("count, scale, on")


MAKERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "sgd_fused": lambda p: SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: Adam(p, lr=0.1),
    "adamw_amsgrad": lambda p: AdamW(p, lr=0.1, amsgrad=True),
    "nadam": lambda p: NAdam(p, lr=0.1),
    "rmsprop": lambda p: RMSprop(p, lr=0.1, momentum=0.9),
    "rprop": lambda p: Rprop(p, lr=0.1),
    "adagrad": lambda p: Adagrad(p, lr=0.1, initial_accumulator_value=0.3),
    "lbfgs": lambda p: LBFGS(p, lr=0.1),
}


@pytest.mark.parametrize("name", MAKERS)
def test_cleared_state_is_as_that_of_a_new_optimizer(name: str) -> None:
    model = MLP()
    optimizer = MAKERS[name](model.parameters())
    for _ in range(3):
        step(model, optimizer)
    twin = copy.deepcopy(model)
    fresh = MAKERS[name](twin.parameters())
    groups = Groups.of([optimizer])
    assert all([groups.clear_state(p) for p in model.parameters()][:1])
    for p in model.parameters():
        groups.clear_state(p)
    step(model, optimizer)
    step(twin, fresh)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_clearing_one_leaves_the_others() -> None:
    model = MLP()
    optimizer = Adam(model.parameters())
    step(model, optimizer)
    groups = Groups.of([optimizer])
    assert groups.clear_state(model.w1.weight)
    assert not groups.clear_state(model.w1.weight)
    assert not groups.clear_state(torch.zeros(1))
    assert set(optimizer.state) == set(model.parameters()) - {model.w1.weight}


@pytest.mark.parametrize("name", MAKERS)
def test_the_loop_goes_on_after_clearing_one(name: str) -> None:
    torch.manual_seed(0)
    model = MLP()
    optimizer = MAKERS[name](model.parameters())
    for _ in range(2):
        step(model, optimizer)
    assert Groups.of([optimizer]).clear_state(model.w2.weight)
    before = model.w2.weight.detach().clone()
    for _ in range(2):
        step(model, optimizer)
    assert not torch.equal(model.w2.weight, before)
