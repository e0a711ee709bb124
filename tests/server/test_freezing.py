"""Freezing keeps values as they are, and says what it would break."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modscope_server.errors import (
    DtypeMismatch,
    NotMaterialized,
    WouldBreakTraining,
)
from modscope_server.inspection.edits import (
    freeze,
    unfreeze,
)
from modscope_server.inspection.optimizers import Groups
from modscope_server.inspection.records import LocatedTensor
from modscope_server.inspection.selection import select_located_parameters
from tests.models import MLP, ZOO

NO_GROUPS = Groups.of(())


@pytest.fixture
def model() -> MLP:
    torch.manual_seed(0)
    return MLP()


def select(model: nn.Module, glob: str = "", type: str = "") -> list[LocatedTensor]:
    return select_located_parameters(model, glob, type)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, set_to_none: bool = True) -> None:
    optimizer.zero_grad(set_to_none=set_to_none)
    model(torch.ones(2, 1)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_frozen_parameter_does_not_move_any_more(model: MLP, set_to_none: bool) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    step(model, optimizer, set_to_none)
    notes = freeze(select(model, "w1.*"), Groups.of([optimizer]), model)
    assert notes == ()
    assert not model.w1.weight.requires_grad
    assert model.w1.weight.grad is None
    before = model.w1.weight.detach().clone(), model.w2.weight.detach().clone()
    for _ in range(3):
        step(model, optimizer, set_to_none)
    assert torch.equal(model.w1.weight, before[0])
    assert not torch.equal(model.w2.weight, before[1])
    assert unfreeze(select(model, "w1"), Groups.of([optimizer]), model) == ()
    step(model, optimizer, set_to_none)
    assert not torch.equal(model.w1.weight, before[0])


def test_a_gradient_that_no_optimizer_holds_stays_zeroed_for_manual_loops(model: MLP) -> None:
    model(torch.ones(2, 1)).sum().backward()
    grad = model.w1.weight.grad
    assert grad is not None
    freeze(select(model, "w1"), NO_GROUPS, model)
    assert model.w1.weight.grad is grad
    assert not grad.any()
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.zero_()


def test_notes_tell_what_was_so_before(model: MLP) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    groups = Groups.of([optimizer])
    freeze(select(model, "w1.weight"), groups, model)
    assert freeze(select(model, "w1"), groups, model) == ("1 of 2 were frozen before",)
    assert unfreeze(select(model), groups, model) == ("4 of 6 were trainable before",)


def test_a_stale_gradient_of_one_frozen_before_goes_too(model: MLP) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer)
    model.w1.weight.requires_grad_(False)
    freeze(select(model, "w1.weight"), Groups.of([optimizer]), model)
    assert model.w1.weight.grad is None


def test_unfreeze_names_what_no_optimizer_holds_and_the_remedy(model: MLP) -> None:
    optimizer = torch.optim.SGD([model.w1.weight], lr=0.1)
    groups = Groups.of([optimizer])
    model.requires_grad_(False)
    (note,) = unfreeze(select(model, "w1"), groups, model)
    assert note == "no optimizer holds w1.bias: to have them trained, modscope optim add w1.bias"
    _, note = unfreeze(select(model, "w[12].*"), groups, model)
    assert "w1.bias, w2.weight, w2.bias" in note
    assert note.endswith("modscope optim add '{w1.bias,w2.weight,w2.bias}'")
    odd = nn.Module()
    odd.register_parameter("a b*", nn.Parameter(torch.ones(1)))
    (_, note) = unfreeze(select(odd), groups, odd)
    assert note.endswith(r"modscope optim add 'a b\*'")
    many = nn.ParameterList([torch.ones(1) for _ in range(50)])
    assert "and 30 more" in unfreeze(select(many), NO_GROUPS, many)[1]


def test_freezing_everything_would_break_training(model: MLP) -> None:
    groups = Groups.of([torch.optim.SGD(model.parameters(), lr=0.1)])
    with pytest.raises(WouldBreakTraining, match=r"backward\(\) would raise"):
        freeze(select(model), groups, model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    freeze(select(model, "w[12].*"), groups, model)
    with pytest.raises(WouldBreakTraining):
        freeze(select(model, "w3"), groups, model)
    assert freeze(select(model), groups, model, force=True) == ("4 of 6 were frozen before",)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    # Where nothing is trainable any more, freezing breaks nothing more.
    assert freeze(select(model), groups, model) == ("6 of 6 were frozen before",)


def test_an_optimizer_that_a_scaler_steps_keeps_something_to_train(model: MLP) -> None:
    first = torch.optim.SGD(model.w1.parameters(), lr=0.1)
    second = torch.optim.SGD([*model.w2.parameters(), *model.w3.parameters()], lr=0.1)
    groups = Groups.of([first, second])
    with pytest.raises(WouldBreakTraining, match=r"GradScaler\.step would raise"):
        freeze(select(model, "w1"), groups, model, scaled=[first, second])
    assert model.w1.weight.requires_grad
    freeze(select(model, "w1.weight"), groups, model, scaled=[first, second])
    freeze(select(model, "w1"), groups, model, scaled=[second])
    assert not model.w1.bias.requires_grad


@pytest.mark.parametrize("name", ["DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"])
def test_wrappers_that_wait_for_every_gradient(model: MLP, name: str) -> None:
    wrapper = type(name, (nn.Sequential,), {})
    root = nn.Sequential(wrapper(model), nn.Linear(1, 1))
    short = "DDP" if name.startswith("D") else "FSDP"
    with pytest.raises(WouldBreakTraining, match=f"{short} wraps them"):
        freeze(select(root, "0.0.w1*"), NO_GROUPS, root)
    assert model.w1.weight.requires_grad
    freeze(select(root, "1"), NO_GROUPS, root)
    freeze(select(root, "0.0.w1*"), NO_GROUPS, root, force=True)
    notes = unfreeze(select(root, "0.0.w1*"), NO_GROUPS, root)
    assert any(note.startswith(f"{short} was built while they were frozen") for note in notes)


def test_whole_numbers_take_no_gradient(model: MLP) -> None:
    model.register_parameter("table", nn.Parameter(torch.arange(3), requires_grad=False))
    model.w1.requires_grad_(False)
    with pytest.raises(DtypeMismatch, match="table is int64, which takes no gradient"):
        unfreeze(select(model), NO_GROUPS, model)
    assert not model.w1.weight.requires_grad
    freeze(select(model, "table"), NO_GROUPS, model)


def test_requires_grad_that_cannot_be_set() -> None:
    with torch.inference_mode():
        model = MLP()
    with pytest.raises(NotMaterialized, match="was made under inference_mode"):
        unfreeze(select(model), NO_GROUPS, model)
    lazy = ZOO["lazy"].build()
    freeze(select(lazy, "0"), NO_GROUPS, lazy)
    assert not any(parameter.requires_grad for parameter in lazy[0].parameters())  # type: ignore[index]
    unfreeze(select(lazy), NO_GROUPS, lazy)
    assert all(parameter.requires_grad for parameter in lazy.parameters())
