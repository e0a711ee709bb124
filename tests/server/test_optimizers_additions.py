"""Parameters that are given to an optimizer train as if it had held them when it was built."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adagrad, AdamW, Optimizer

from modscope_server.errors import (
    AlreadyHeld,
    BadGlobError,
    BadRequest,
    DtypeMismatch,
    NoMatch,
    NotMaterialized,
)
from modscope_server.inspection.optimizer_additions import plan_add_to_optimizer
from modscope_server.inspection.optimizers import Groups
from tests.models import MLP, ZOO
from tests.server.freezing_support import MAKERS, Maker, Repeatable, layers, same_values


def add(model: nn.Module, glob: str, *optimizers: Optimizer, group: int | None = None) -> tuple[str, ...]:
    return plan_add_to_optimizer(model, Groups.of(optimizers), glob, group).apply()


def split(model: nn.Sequential) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The first two layers' parameters, and the last one's."""
    last = list(model[4].parameters())
    return [one for one in model.parameters() if all(one is not other for other in last)], last


ALL: dict[str, Maker] = {**MAKERS, "lbfgs": lambda p: LBFGS(p, lr=0.05, max_iter=3)}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_it_steps_them_as_one_that_was_built_with_them(name: str, late: bool) -> None:
    model = layers(bias=name != "muon")
    twin = copy.deepcopy(model)
    run = Repeatable(model, ALL[name](split(model)[0]))
    held = run.optimizer.param_groups[0]["params"]
    if late:
        run.run_to(3)
        twin.load_state_dict(model.state_dict())
    add(model, "4.*", run.optimizer)
    assert run.optimizer.param_groups[0]["params"] is held
    assert held == [*model.parameters()]
    start = run.steps
    other = Repeatable(twin, ALL[name](twin.parameters()))
    other.values = list(run.values)
    if late and name != "lbfgs":
        # A new optimizer with the state that the old one has of what it held.
        for one, theirs in zip(*(split(part)[0] for part in (model, twin)), strict=True):
            other.optimizer.state[theirs] = copy.deepcopy(run.optimizer.state[one])
    if late and name == "sgd_fused":
        # PyTorch itself raises where some parameters have momentum and others none.
        for theirs in split(twin)[1]:
            other.optimizer.state[theirs]["momentum_buffer"] = torch.zeros_like(theirs)
    run.run_to(start + 4)
    other.run_to(start + 4)
    assert all(same_values(run.values[-1], other.values[-1]))
    assert not any(same_values(run.values[start], run.values[-1]))


def test_a_gradient_that_nobody_has_cleared_does_not_reach_the_next_step() -> None:
    """optimizer.zero_grad clears what the optimizer holds, so that of others sums up for ever."""
    model = layers()
    run = Repeatable(model, SGD(split(model)[0], lr=0.1))
    run.run_to(20)
    assert model[4].weight.grad is not None
    notes = add(model, "4.*", run.optimizer)
    assert notes == (
        "group 0 (SGD) holds 6 parameters now",
        "gradients that nobody had cleared were zeroed: 4.weight, 4.bias",
    )
    twin = copy.deepcopy(model)
    other = Repeatable(twin, SGD(twin.parameters(), lr=0.1))
    other.values = list(run.values)
    twin.zero_grad()
    run.run_to(22)
    other.run_to(22)
    assert all(same_values(run.values[-1], other.values[-1]))


def test_frozen_ones_are_taken_with_the_command_that_thaws_them() -> None:
    model: Any = layers()
    optimizer = AdamW(split(model)[0], weight_decay=0.1)
    model(torch.ones(1, 4)).sum().backward()
    model[4].requires_grad_(False)
    notes = add(model, "4.*", optimizer)
    assert notes[-1] == (
        "frozen: 4.weight, 4.bias; to have them trained, modscope unfreeze '{4.weight,4.bias}'"
    )
    before = model[4].weight.detach().clone()
    optimizer.step()
    assert torch.equal(model[4].weight, before)


def test_names_go_along_where_the_group_has_names() -> None:
    model = layers()
    named = dict(model.named_parameters())
    optimizer = SGD([(name, named[name]) for name in ("0.weight", "0.bias")], lr=0.1)
    if "param_names" not in optimizer.param_groups[0]:
        pytest.skip("this torch keeps no names")
    change = plan_add_to_optimizer(model, Groups.of([optimizer]), "4.*")
    change.apply()
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "4.weight", "4.bias"]
    change.memento.restore()
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias"]


@pytest.mark.parametrize("name", ["sgd_momentum", "adamw", "adagrad", "lbfgs"])
def test_a_rollback_and_a_late_undo(name: str) -> None:
    model = layers()
    run = Repeatable(model, ALL[name](split(model)[0]))
    run.run_to(2)
    before = copy.deepcopy(run.optimizer.state_dict())
    gradients = [copy.deepcopy(parameter.grad) for parameter in model.parameters()]
    change = plan_add_to_optimizer(model, Groups.of([run.optimizer]), "4.*")
    change.apply()
    change.memento.roll_back()
    assert str(run.optimizer.state_dict()) == str(before)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]
    change = plan_add_to_optimizer(model, Groups.of([run.optimizer]), "4.*")
    change.apply()
    change.memento.settle()
    run.run_to(5)
    change.memento.restore()
    assert len(run.optimizer.param_groups[0]["params"]) == 4
    assert not set(run.optimizer.state) & set(model[4].parameters())
    run.run_to(7)
    assert all(same_values(run.values[5], run.values[7])[4:])
    assert not any(same_values(run.values[5], run.values[7])[:4])


def test_what_is_held_already_is_named_with_its_group() -> None:
    model = layers()
    first, second = SGD(model[0].parameters(), lr=0.1), AdamW(model[2].parameters())
    with pytest.raises(AlreadyHeld) as caught:
        add(model, "*", first, second, group=0)
    assert (
        caught.value.message == "group 0 (SGD) holds 0.weight, 0.bias; group 1 (AdamW) holds 2.weight, 2.bias"
    )
    assert caught.value.hint == "the others alone: modscope optim add '{4.weight,4.bias}'"
    with pytest.raises(AlreadyHeld, match=r"group 1 \(AdamW\) holds 2.bias"):
        add(model, "2.bias", first, second, group=0)


def test_which_group_takes_them() -> None:
    model = layers()
    first, second = SGD(model[0].parameters(), lr=0.1), AdamW(model[2].parameters())
    with pytest.raises(BadRequest, match="there are 2 optimizer groups") as caught:
        add(model, "4.*", first, second)
    assert "group 0 (SGD), group 1 (AdamW)" in caught.value.hint
    add(model, "4.*", first, second, group=1)
    assert second.param_groups[0]["params"][2:] == [*model[4].parameters()]
    with pytest.raises(NoMatch, match="there is no optimizer group 2"):
        add(nn.Sequential(nn.Linear(1, 1)), "*", first, second, group=2)
    with pytest.raises(NoMatch, match="no optimizer is known"):
        add(nn.Sequential(nn.Linear(1, 1)), "*")
    with pytest.raises(NoMatch, match=r"no parameter matches '9\.\*'"):
        add(model, "9.*", first)
    with pytest.raises(BadGlobError):
        add(model, "[", first)


def test_what_no_optimizer_can_step() -> None:
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    model = nn.Module()
    model.register_parameter("table", nn.Parameter(torch.arange(3), requires_grad=False))
    with pytest.raises(DtypeMismatch, match="table is int64"):
        add(model, "*", optimizer)
    with pytest.raises(NotMaterialized, match="has no shape yet"):
        add(ZOO["lazy"].build(), "*", optimizer)
    with torch.inference_mode():
        model = MLP()
    with pytest.raises(NotMaterialized, match="was made under inference_mode"):
        add(model, "*", optimizer)
    assert len(optimizer.param_groups[0]["params"]) == 1


class Flat(SGD):
    """Keeps a list of its parameters, as LBFGS does."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        self.flat = list(self.param_groups[0]["params"])


class Own(SGD):
    """Does more than torch when it gets a group."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)


REFUSING: dict[str, tuple[Callable[[Any], Optimizer], str]] = {
    "flat": (Flat, "it keeps a list of its parameters of its own"),
    "own": (lambda p: Own(p, lr=0.1), "its class has its own add_param_group"),
}
if "muon" in MAKERS:
    REFUSING["muon"] = (MAKERS["muon"], "2D parameters")


@pytest.mark.parametrize("name", REFUSING)
def test_an_optimizer_that_could_not_go_on_is_left_alone(name: str) -> None:
    make, why = REFUSING[name]
    model = layers()
    optimizer = make([model[0].weight])
    with pytest.raises(BadRequest, match=why) as caught:
        add(model, "4.*", optimizer)
    assert caught.value.hint
    assert len(optimizer.param_groups[0]["params"]) == 1


def test_adagrad_starts_where_it_would_have_started() -> None:
    model = layers()
    optimizer = Adagrad(model[0].parameters(), initial_accumulator_value=0.5)
    add(model, "4.*", optimizer)
    assert torch.equal(optimizer.state[model[4].weight]["sum"], torch.full((2, 8), 0.5))
    assert optimizer.state[model[4].weight]["step"].dtype == optimizer.state[model[0].weight]["step"].dtype
