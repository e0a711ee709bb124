"""A reinitialisation as a change: ties once, optimizers begin anew, all of it can be put back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adagrad, Adam, Optimizer

from modscope_server import reinit
from modscope_server.errors import SchemeUnsuitable
from modscope_server.inspection.backup import same_bits
from modscope_server.inspection.changes import Change
from modscope_server.inspection.optimizers import Groups
from tests.models import MLP, ZOO
from tests.server.reinit_support import SEED, agree, bits, random_state


def change(model: nn.Module, *optimizers: Optimizer, **options: Any) -> Change:
    return reinit.plan_reinitialize(model, groups=Groups.of(optimizers), seed=SEED, **options)


def step(model: nn.Module, optimizer: Optimizer) -> None:
    def loss() -> Any:
        optimizer.zero_grad()
        out = model(torch.linspace(-1, 1, 8).reshape(8, 1)).square().mean()
        out.backward()
        return out

    optimizer.step(loss)


def state_of(optimizer: Optimizer) -> dict[str, Any]:
    return copy.deepcopy(optimizer.state_dict())


def test_a_tied_tensor_is_as_its_first_visit_left_it() -> None:
    """nn.Module.apply would draw an embedding's weight, then draw it anew as a linear layer's."""
    model: Any = ZOO["tied"].build()
    twin: Any = ZOO["tied"].build()
    identity = id(model.embed.weight)
    before = random_state()
    planned = change(model)
    planned.apply()
    assert random_state() == before
    assert planned.paths[:3] == ("embed.weight", "decode.weight", "mirror.decode.weight")
    assert id(model.embed.weight) == id(model.decode.weight) == identity
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        twin.embed.reset_parameters()
        first = twin.embed.weight.detach().clone()
        twin.body.reset_parameters()
        twin.decode.reset_parameters()
    assert torch.equal(model.embed.weight, first)
    assert torch.equal(model.body.weight, twin.body.weight)
    assert torch.equal(model.decode.bias, twin.decode.bias)


def test_a_shared_module_is_initialised_once() -> None:
    calls: list[nn.Module] = []

    class Counted(nn.Linear):
        def reset_parameters(self) -> None:
            calls.append(self)
            super().reset_parameters()

    block = Counted(2, 2)
    model = nn.Sequential(block, nn.Sequential(block), nn.Linear(2, 2))
    model[2].weight = block.weight
    calls.clear()
    planned = change(model)
    planned.apply()
    assert calls == [block]
    assert planned.paths == ("0.weight", "1.0.weight", "2.weight", "0.bias", "1.0.bias", "2.bias")


@pytest.mark.parametrize("cls", [Adam, Adagrad, LBFGS])
@pytest.mark.parametrize("keep", [False, True])
def test_it_is_put_back_bit_for_bit_with_the_optimizers_state(cls: type[Optimizer], keep: bool) -> None:
    model = MLP()
    optimizer = cls(model.parameters())  # type: ignore[call-arg]
    for _ in range(3):
        step(model, optimizer)
    before, state = bits(model), state_of(optimizer)
    planned = change(model, optimizer, glob="w1", keep_optimizer_state=keep)
    assert bits(model) == before
    notes = planned.apply()
    assert bits(model) != before
    assert any("begins anew" in note for note in notes) is not keep
    assert same_states(state_of(optimizer), state) is keep
    planned.memento.settle()
    step(model, optimizer)
    planned.memento.restore()
    after = bits(model)
    assert after[:2] == before[:2]
    if not keep:
        put_back, kept = state_of(optimizer)["state"], state["state"]
        own = kept.keys() & {0, 1}
        assert own
        assert all(same_states(put_back[key], kept[key]) for key in own)
    planned = change(model, optimizer)
    state = state_of(optimizer)
    planned.apply()
    planned.memento.roll_back()
    assert bits(model) == after
    assert same_states(state_of(optimizer), state)


def test_what_a_reset_changes_in_its_children_begins_anew_too() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(1, 1)
            self.bias = nn.Parameter(torch.ones(1))

        def reset_parameters(self) -> None:
            self.inner.reset_parameters()
            nn.init.zeros_(self.bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.inner(x) + self.bias
            return out

    model = nn.Sequential(Layer(), nn.Linear(1, 1))
    optimizer = Adam(model.parameters())
    step(model, optimizer)
    before = bits(model)
    planned = change(model, optimizer, glob="0")
    notes = planned.apply()
    assert planned.paths == ("0.bias",)
    assert "reset_parameters changed 0.inner.weight, 0.inner.bias, too" in notes
    assert set(optimizer.state) == {model[1].weight, model[1].bias}
    planned.memento.roll_back()
    assert bits(model) == before
    assert len(optimizer.state) == 5


def test_a_reset_that_rebinds_and_fails_is_put_back() -> None:
    class Bad(nn.Linear):
        def reset_parameters(self) -> None:
            self.weight = nn.Parameter(torch.ones(2, 2))
            raise ValueError("in the middle")

    bad = nn.Linear(2, 2)
    bad.__class__ = Bad
    model = nn.Sequential(nn.Linear(2, 2), bad)
    before, twin = bits(model), copy.deepcopy(model)
    planned = change(model, SGD(model.parameters(), lr=0.1))
    with pytest.raises(SchemeUnsuitable, match="in the middle"):
        planned.apply()
    planned.memento.roll_back()
    assert bits(model) == before
    assert agree(model, twin)


def same_states(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and same_bits(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_states(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same_states, one, other))
    return bool(one == other)
