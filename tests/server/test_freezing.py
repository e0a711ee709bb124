"""Freezing keeps values as they are, and says what it would break."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from modscope_server.errors import (
    DtypeMismatch,
    NotMaterialized,
    WouldBreakTraining,
)
from modscope_server.inspection.freezing import plan_freeze, plan_unfreeze
from modscope_server.inspection.optimizer_additions import plan_add_to_optimizer
from modscope_server.inspection.optimizers import Groups
from tests.models import MLP, ZOO


@pytest.fixture
def model() -> MLP:
    torch.manual_seed(0)
    return MLP()


def freeze(
    model: nn.Module, glob: str, *optimizers: torch.optim.Optimizer, **options: Any
) -> tuple[str, ...]:
    return plan_freeze(model, glob, "", Groups.of(optimizers), **options).apply()


def unfreeze(model: nn.Module, glob: str, *optimizers: torch.optim.Optimizer) -> tuple[str, ...]:
    return plan_unfreeze(model, glob, "", Groups.of(optimizers)).apply()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, set_to_none: bool = True) -> None:
    optimizer.zero_grad(set_to_none=set_to_none)
    model(torch.ones(2, 1)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_frozen_parameter_does_not_move_any_more(model: MLP, set_to_none: bool) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    step(model, optimizer, set_to_none)
    notes = freeze(model, "w1.*", optimizer)
    assert notes == ()
    assert not model.w1.weight.requires_grad
    assert model.w1.weight.grad is None
    before = model.w1.weight.detach().clone(), model.w2.weight.detach().clone()
    for _ in range(3):
        step(model, optimizer, set_to_none)
    assert torch.equal(model.w1.weight, before[0])
    assert not torch.equal(model.w2.weight, before[1])
    assert unfreeze(model, "w1", optimizer) == ()
    step(model, optimizer, set_to_none)
    assert not torch.equal(model.w1.weight, before[0])


def test_a_gradient_that_no_optimizer_holds_stays_zeroed_for_manual_loops(model: MLP) -> None:
    model(torch.ones(2, 1)).sum().backward()
    grad = model.w1.weight.grad
    assert grad is not None
    freeze(model, "w1")
    assert model.w1.weight.grad is grad
    assert not grad.any()
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.zero_()


def test_notes_tell_what_was_so_before(model: MLP) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    freeze(model, "w1.weight", optimizer)
    assert freeze(model, "w1", optimizer) == ("1 of 2 were frozen before",)
    assert unfreeze(model, "*", optimizer) == ("4 of 6 were trainable before",)


def test_a_stale_gradient_of_one_frozen_before_goes_too(model: MLP) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer)
    model.w1.weight.requires_grad_(False)
    freeze(model, "w1.weight", optimizer)
    assert model.w1.weight.grad is None


def test_unfreeze_names_what_no_optimizer_holds_and_the_remedy(model: MLP) -> None:
    optimizer = torch.optim.SGD([model.w1.weight], lr=0.1)
    model.requires_grad_(False)
    (note,) = unfreeze(model, "w1", optimizer)
    assert note == "no optimizer holds w1.bias: to have them trained, modscope optim add w1.bias"
    _, note = unfreeze(model, "w[12].*", optimizer)
    assert "w1.bias, w2.weight, w2.bias" in note
    assert note.endswith("modscope optim add '{w1.bias,w2.weight,w2.bias}'")
    odd = nn.Module()
    odd.register_parameter("a b*", nn.Parameter(torch.ones(1)))
    (_, note) = unfreeze(odd, "*", optimizer)
    assert note.endswith(r"modscope optim add 'a b\*'")
    many = nn.ParameterList([torch.ones(1) for _ in range(50)])
    assert "and 30 more" in unfreeze(many, "*")[1]


def test_the_remedy_names_a_group_where_there_are_several(model: MLP) -> None:
    model.requires_grad_(False)
    small, large = torch.optim.SGD([model.w1.bias], lr=0.1), torch.optim.AdamW(model.w2.parameters())
    (note,) = unfreeze(model, "w3", small, large)
    assert note.endswith("modscope optim add '{w3.weight,w3.bias}' --group 1")
    plan_add_to_optimizer(model, Groups.of([small, large]), "{w3.weight,w3.bias}", 1).apply()
    model.requires_grad_(False)
    assert unfreeze(model, "w3", small, large) == ()
    model.requires_grad_(False)
    (note,) = unfreeze(model, "w3")
    assert "none is known here; give it in attach(model, optimizer)" in note


@pytest.mark.parametrize("held", [True, False])
def test_a_rollback_brings_the_gradients_back_and_an_undo_does_not(model: MLP, held: bool) -> None:
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1)] if held else []
    model(torch.ones(2, 1)).sum().backward()
    gradient = model.w3.weight.grad
    assert gradient is not None
    value = gradient.clone()
    change = plan_freeze(model, "w3", "", Groups.of(optimizers))
    change.apply()
    assert model.w3.weight.grad is (None if held else gradient)
    change.memento.roll_back()
    assert model.w3.weight.grad is gradient
    assert torch.equal(gradient, value)
    assert value.any()
    change.apply()
    change.memento.settle()
    change.memento.restore()
    assert model.w3.weight.requires_grad
    assert model.w3.weight.grad is None or not model.w3.weight.grad.any()


def test_freezing_everything_would_break_training(model: MLP) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(WouldBreakTraining, match=r"backward\(\) would raise"):
        freeze(model, "*", optimizer)
    assert all(parameter.requires_grad for parameter in model.parameters())
    freeze(model, "w[12].*", optimizer)
    with pytest.raises(WouldBreakTraining):
        freeze(model, "w3", optimizer)
    assert freeze(model, "*", optimizer, force=True) == ("4 of 6 were frozen before",)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    # Where nothing is trainable any more, freezing breaks nothing more.
    assert freeze(model, "*", optimizer) == ("6 of 6 were frozen before",)


def test_an_optimizer_that_a_scaler_steps_keeps_something_to_train(model: MLP) -> None:
    first = torch.optim.SGD(model.w1.parameters(), lr=0.1)
    second = torch.optim.SGD([*model.w2.parameters(), *model.w3.parameters()], lr=0.1)
    with pytest.raises(WouldBreakTraining, match=r"GradScaler\.step would raise"):
        freeze(model, "w1", first, second, scaled=[first, second])
    assert model.w1.weight.requires_grad
    freeze(model, "w1.weight", first, second, scaled=[first, second])
    freeze(model, "w1", first, second, scaled=[second])
    assert not model.w1.bias.requires_grad


@pytest.mark.parametrize("name", ["DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"])
def test_wrappers_that_wait_for_every_gradient(model: MLP, name: str) -> None:
    wrapper = type(name, (nn.Sequential,), {})
    root = nn.Sequential(wrapper(model), nn.Linear(1, 1))
    short = "DDP" if name.startswith("D") else "FSDP"
    with pytest.raises(WouldBreakTraining, match=f"{short} wraps them"):
        freeze(root, "0.0.w1*")
    assert model.w1.weight.requires_grad
    freeze(root, "1")
    freeze(root, "0.0.w1*", force=True)
    notes = unfreeze(root, "0.0.w1*")
    assert any(note.startswith(f"{short} was built while they were frozen") for note in notes)


def test_whole_numbers_take_no_gradient(model: MLP) -> None:
    model.register_parameter("table", nn.Parameter(torch.arange(3), requires_grad=False))
    model.w1.requires_grad_(False)
    with pytest.raises(DtypeMismatch, match="table is int64, which takes no gradient"):
        unfreeze(model, "*")
    assert not model.w1.weight.requires_grad
    freeze(model, "table")


def test_requires_grad_that_cannot_be_set() -> None:
    with torch.inference_mode():
        model = MLP()
    with pytest.raises(NotMaterialized, match="was made under inference_mode"):
        unfreeze(model, "*")
    lazy = ZOO["lazy"].build()
    freeze(lazy, "0")
    assert not any(parameter.requires_grad for parameter in lazy[0].parameters())  # type: ignore[index]
    unfreeze(lazy, "*")
    assert all(parameter.requires_grad for parameter in lazy.parameters())
