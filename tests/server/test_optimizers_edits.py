"""Hyper-parameters are set as the kind that they are; schedulers and compiled steps go on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer, RMSprop, Rprop, lr_scheduler

from modscope_server.errors import BadRequest, NoMatch
from modscope_server.inspection.changes import Change
from modscope_server.inspection.optimizer_edits import plan_set_optimizer
from modscope_server.inspection.optimizers import Groups
from modscope_server.inspection.schedulers import Schedulers
from tests.models import MLP


def planned(
    optimizer: Optimizer | list[Optimizer],
    model: nn.Module | None = None,
    group: int | None = 0,
    base_lr: bool = False,
    scheduler: Any = None,
    **values: Any,
) -> Change:
    groups = Groups.of(optimizer if isinstance(optimizer, list) else [optimizer])
    schedulers = Schedulers({"scheduler": scheduler})
    return plan_set_optimizer(model or MLP(), groups, values, group, base_lr=base_lr, schedulers=schedulers)


def options(optimizer: Optimizer) -> list[dict[str, Any]]:
    groups = ({k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups)
    return copy.deepcopy(list(groups))


def step(model: nn.Module, optimizer: Optimizer) -> None:
    def loss() -> Any:
        optimizer.zero_grad()
        out = model(torch.linspace(-1, 1, 8).reshape(8, 1)).square().mean()
        out.backward()
        return out

    optimizer.step(loss)


def test_values_keep_their_kind() -> None:
    model = MLP()
    optimizer = AdamW(model.parameters(), lr=1, eps=1e-8)
    params = optimizer.param_groups[0]["params"]
    change = planned(optimizer, lr=0.5, betas=[0.5, 0.75], maximize=True, foreach=False, weight_decay=0)
    assert optimizer.param_groups[0]["lr"] == 1
    assert change.paths == ()
    (note,) = change.apply()
    assert note == (
        "group 0 (AdamW): lr 1 -> 0.5, betas [0.9, 0.999] -> [0.5, 0.75], weight_decay 0.01 -> 0.0, "
        "maximize False -> True, foreach None -> False"
    )
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["maximize"], group["foreach"]) == (
        0.5,
        (0.5, 0.75),
        True,
        False,
    )
    assert group["params"] is params
    planned(optimizer, foreach=None).apply()
    assert group["foreach"] is None
    lbfgs = LBFGS(model.parameters())
    planned(lbfgs, max_iter=5.0, lr=0.5, line_search_fn="strong_wolfe").apply()
    assert (lbfgs.param_groups[0]["max_iter"], lbfgs.param_groups[0]["lr"]) == (5, 0.5)
    assert isinstance(lbfgs.param_groups[0]["max_iter"], int)
    step(model, lbfgs)


def test_tensors_are_filled_in_place_and_put_back_in_place() -> None:
    """A capturable optimizer, and a step that was compiled, read the tensor that they know."""
    model = MLP()
    lr = torch.tensor(0.5)
    optimizer = Adam(model.parameters(), lr=lr)
    change = planned(optimizer, lr=0.25)
    change.apply()
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.25
    change.memento.restore()
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.5
    with pytest.raises(BadRequest, match="a number that float32 can hold"):
        planned(optimizer, lr=1e300)


REFUSED: dict[str, tuple[Callable[[Any], Optimizer], dict[str, Any], str]] = {
    "unknown": (AdamW, {"momentum": 0.5}, "has no hyper-parameter 'momentum'"),
    "params": (AdamW, {"params": 1.0}, "has no hyper-parameter 'params'"),
    "bool for number": (AdamW, {"lr": True}, "takes a number, not True"),
    "number for bool": (AdamW, {"amsgrad": 1.0}, "takes true or false, not 1.0"),
    "text for number": (AdamW, {"lr": "0.1"}, "takes a number, not '0.1'"),
    "nothing": (AdamW, {"lr": None}, "takes a value, not None"),
    "nan": (AdamW, {"lr": float("nan")}, "takes a finite number"),
    "inf": (AdamW, {"eps": float("inf")}, "takes a finite number"),
    "inf in a list": (AdamW, {"betas": [0.5, float("-inf")]}, "takes a finite number"),
    "negative": (AdamW, {"lr": -0.1}, "lr cannot be negative"),
    "list of another length": (AdamW, {"betas": [0.5]}, "takes a list of 2"),
    "number for list": (AdamW, {"betas": 0.5}, "takes a list of 2"),
    "range of torch": (AdamW, {"betas": [0.5, 1.5]}, "Invalid beta parameter at index 1: 1.5"),
    "negative decay": (AdamW, {"weight_decay": -1.0}, "Invalid weight_decay value"),
    "half an iteration": (LBFGS, {"max_iter": 2.5}, "takes a whole number"),
    "no such search": (LBFGS, {"line_search_fn": "armijo"}, "line_search_fn is 'strong_wolfe' or null"),
    "built in": (AdamW, {"capturable": True}, "capturable decides how the optimizer is built"),
    "nesterov": (lambda p: SGD(p, lr=0.1), {"nesterov": True}, "Nesterov momentum requires a momentum"),
    "empty": (AdamW, {}, "no hyper-parameter is named"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_optimizer_would_not_take_is_refused(name: str) -> None:
    make, values, message = REFUSED[name]
    model = MLP()
    optimizer = make(model.parameters())
    before = options(optimizer)
    with pytest.raises(BadRequest, match=message) as caught:
        planned(optimizer, **values)
    assert caught.value.hint
    assert caught.value.field.startswith("hyperparameters")
    assert options(optimizer) == before


LATE: dict[str, tuple[Callable[[Any], Optimizer], dict[str, Any]]] = {
    "amsgrad": (AdamW, {"amsgrad": True}),
    "centered": (RMSprop, {"centered": True}),
    "rmsprop momentum": (RMSprop, {"momentum": 0.5}),
    "history_size": (LBFGS, {"history_size": 200.0}),
}


@pytest.mark.parametrize("name", LATE)
def test_what_needs_other_state_is_possible_before_the_first_step_alone(name: str) -> None:
    make, values = LATE[name]
    model = MLP()
    optimizer = make(model.parameters())
    planned(optimizer, **values).apply()
    for _ in range(3):
        step(model, optimizer)
    optimizer = make(model.parameters())
    step(model, optimizer)
    with pytest.raises(BadRequest, match="cannot go on with"):
        planned(optimizer, **values)
    sgd = SGD(model.parameters(), lr=0.1)
    step(model, sgd)
    planned(sgd, momentum=0.5).apply()
    step(model, sgd)


def test_groups_are_chosen_by_index_or_by_model() -> None:
    model, other = MLP(), MLP()
    first = AdamW([{"params": model.w1.parameters()}, {"params": other.parameters()}], lr=0.5)
    split: list[dict[str, Any]] = [
        {"params": model.w2.parameters()},
        {"params": [nn.Parameter(torch.ones(1))]},
    ]
    second = SGD(split, lr=0.5)
    both: list[Optimizer] = [first, second]
    planned(both, model, None, lr=0.25).apply()
    assert [g["lr"] for one in both for g in one.param_groups] == [0.25, 0.5, 0.25, 0.5]
    planned(both, model, 3, lr=0.125).apply()
    assert [g["lr"] for one in both for g in one.param_groups] == [0.25, 0.5, 0.25, 0.125]
    with pytest.raises(NoMatch, match="there is no optimizer group 4") as caught:
        planned(both, model, 4, lr=0.1)
    assert "group 3 (SGD)" in caught.value.hint
    with pytest.raises(NoMatch, match="no known optimizer holds"):
        planned(both, MLP(), None, lr=0.1)
    with pytest.raises(NoMatch, match="no optimizer is known"):
        plan_set_optimizer(model, Groups.of([]), {"lr": 0.1}, 0)
    with pytest.raises(BadRequest, match="has no hyper-parameter 'momentum'"):
        planned(both, model, None, momentum=0.5)


def test_rprop_tells_that_it_has_no_use_for_a_new_lr() -> None:
    model = MLP()
    optimizer = Rprop(model.parameters())
    step(model, optimizer)
    assert "Rprop uses lr at its first step alone" in planned(optimizer, lr=0.5).apply()[-1]


def test_a_rollback_and_an_undo_bring_everything_back() -> None:
    model = MLP()
    optimizer = AdamW(model.parameters(), lr=0.5)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    before, bases = options(optimizer), list(scheduler.base_lrs)
    change = planned(optimizer, base_lr=True, scheduler=scheduler, lr=0.25, betas=[0.1, 0.2])
    change.apply()
    again = change.memento.again()
    after = options(optimizer)
    assert after != before
    change.memento.roll_back()
    assert (options(optimizer), scheduler.base_lrs) == (before, bases)
    again.restore()
    assert (options(optimizer), scheduler.base_lrs) == (after, [0.25])
