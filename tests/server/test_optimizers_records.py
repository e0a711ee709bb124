"""Optimizer groups as records: what is told of them is what PyTorch's own objects say."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, SequentialLR, StepLR

from modscope_server.inspection.optimizer_records import optimizer_groups, unheld_parameters
from modscope_server.inspection.optimizers import Groups
from modscope_server.inspection.records import OptimizerGroup
from modscope_server.inspection.schedulers import Schedulers
from tests.models import MLP, ZOO


def records(model: nn.Module, *optimizers: Optimizer, **extras: Any) -> list[OptimizerGroup]:
    return optimizer_groups(model, Groups.of(optimizers), [model], Schedulers(extras))


def test_groups_of_several_optimizers_are_counted_on() -> None:
    model, other = MLP(), MLP()
    stranger = nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
    split: list[dict[str, Any]] = [
        {"params": [model.w2.bias, model.w1.weight]},
        {"params": [other.w1.bias, stranger], "lr": 0.5},
    ]
    first = AdamW(
        split,
        lr=0.25,
        weight_decay=0.125,
        betas=(0.5, 0.75),
    )
    second = SGD(model.w3.parameters(), lr=1)
    groups = Groups.of([first, second])
    a, b, c = optimizer_groups(model, groups, [model, other])
    assert [(one.index, one.optimizer, one.lr, one.weight_decay) for one in (a, b, c)] == [
        (0, "AdamW", 0.25, 0.125),
        (1, "AdamW", 0.5, 0.125),
        (2, "SGD", 1.0, 0.0),
    ]
    assert [a.parameters, b.parameters, c.parameters] == [
        ("w2.bias", "w1.weight"),
        (),
        ("w3.weight", "w3.bias"),
    ]
    assert [a.strangers, b.strangers, c.strangers] == [(), ("float64 [3, 4]",), ()]
    assert a.options["betas"] == [0.5, 0.75]
    assert a.options["amsgrad"] is False
    assert a.options["foreach"] is None
    assert set(a.options) == set(first.param_groups[0]) - {"params", "lr", "weight_decay"}
    assert unheld_parameters(model, groups) == ["w1.bias", "w2.weight"]
    assert unheld_parameters(ZOO["tied"].build(), groups)[0] == "embed.weight"


def test_state_keys_are_there_after_the_first_step() -> None:
    model = MLP()
    optimizer = Adam(model.parameters())
    assert records(model, optimizer)[0].state_keys == ()
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert records(model, optimizer)[0].state_keys == tuple(optimizer.state[model.w1.weight])


def test_what_is_no_json_is_told_as_text() -> None:
    class Rude:
        def __repr__(self) -> str:
            raise ValueError

    model = MLP()
    optimizer = SGD(model.parameters(), lr=torch.tensor(0.25))
    optimizer.param_groups[0].update(table=torch.arange(3), dtype=torch.float32, rude=Rude())
    (record,) = records(model, optimizer)
    assert record.lr == 0.25
    assert record.options["table"] == [0, 1, 2]
    assert record.options["dtype"] == "torch.float32"
    assert record.options["rude"] == "Rude"
    (record,) = records(model, LBFGS(model.parameters()))
    assert (record.lr, record.weight_decay, record.options["max_iter"]) == (1.0, None, 20)


def test_schedulers_are_found_by_the_identity_of_their_optimizer() -> None:
    model = MLP()
    first, second = SGD(model.w1.parameters(), lr=0.5), SGD(model.w2.parameters(), lr=0.25)
    third = SGD(model.w3.parameters(), lr=0.125)
    one, two = LambdaLR(first, lambda epoch: 0.5), ReduceLROnPlateau(second)
    a, b, c = records(model, first, second, third, schedulers=[one, {"plateau": two}])
    assert (a.scheduler, a.base_lr, a.lr) == ("LambdaLR", 0.5, 0.25)
    assert (b.scheduler, b.base_lr) == ("ReduceLROnPlateau", None)
    assert (c.scheduler, c.base_lr) == ("", None)
    unknown = LambdaLR(third, lambda epoch: 0.5)
    assert unknown.base_lrs == [0.125]
    c = records(model, first, second, third)[2]
    assert (c.scheduler, c.base_lr) == ("", 0.125)
    inner = [StepLR(third, 5), LambdaLR(third, lambda epoch: 1.0)]
    sequence = SequentialLR(third, inner, [3])
    assert records(model, third, scheduler=sequence)[0].scheduler == "SequentialLR"

    class Own:
        optimizer, base_lrs = third, [7.0]

    c = records(model, third, own=Own(), other=object())[0]
    assert (c.scheduler, c.base_lr) == ("Own", 7.0)
