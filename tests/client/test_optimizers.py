"""Optimizers against the real server: groups as PyTorch has them, hyper-parameters set, parameters added."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from modscope_client import optimizers, requests
from modscope_client.errors import FailedPrecondition, InvalidArgument, NotFound
from tests.client.both import CLIENTS, served_to, settle
from tests.end_to_end.serving import served

BOTH = pytest.mark.parametrize("kind", CLIENTS, ids=["sync", "aio"])


class Pair(nn.Sequential):
    """Two layers, whose names the type checker knows."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index)


@pytest.fixture
def model() -> Pair:
    torch.manual_seed(0)
    return Pair(nn.Linear(2, 2), nn.Linear(2, 2))


def adam(model: Pair) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [{"params": [model[0].weight], "lr": 0.5}, {"params": [model[0].bias]}]
    return torch.optim.AdamW(groups, lr=0.25, betas=(0.5, 0.75), weight_decay=0.125)


@BOTH
def test_groups(kind: Any, model: Pair) -> None:
    optimizer = adam(model)

    async def body(remote: Any) -> None:
        found = await settle(remote.optimizers())
        assert [(g.index, g.optimizer, g.lr, g.weight_decay, g.parameters, g.state_keys) for g in found] == [
            (0, "AdamW", 0.5, 0.125, ("0.weight",), ()),
            (1, "AdamW", 0.25, 0.125, ("0.bias",), ()),
        ]
        theirs = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in optimizer.param_groups[0].items()
            if name not in ("params", "lr", "weight_decay")
        }
        assert dict(found[0].options) == theirs
        assert await settle(remote.unheld_parameters()) == ["1.weight", "1.bias"]
        listed = await settle(remote.optimizer_list())
        assert (list(listed.groups), listed.unheld, listed.step) == (found, ("1.weight", "1.bias"), 0)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        after = await settle(remote.optimizer_list())
        assert set(after.groups[0].state_keys) == set(optimizer.state[model[0].weight]) and after.step == 1

    with served(model, optimizer) as live:
        served_to(kind, live.scope, body)


@BOTH
def test_hyperparameters(kind: Any, model: Pair) -> None:
    optimizer = adam(model)

    async def body(remote: Any) -> None:
        await settle(remote.set_optimizer(lr=0.0625))
        assert [group["lr"] for group in optimizer.param_groups] == [0.0625] * 2
        done = await settle(remote.set_optimizer(1, betas=[0.25, 0.5], weight_decay=0, amsgrad=False))
        assert (done.kind, done.outcome) == ("set_optimizer", "applied")
        assert [tuple(group["betas"]) for group in optimizer.param_groups] == [(0.5, 0.75), (0.25, 0.5)]
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.125, 0]
        for attempt, field in (
            (lambda: remote.set_optimizer(), "hyperparameters"),
            (lambda: remote.set_optimizer(lr=object()), "lr"),
            (lambda: remote.set_optimizer(momentum=0.5), None),
            (lambda: remote.set_optimizer(lr="fast"), None),
        ):
            with pytest.raises(InvalidArgument) as refusal:
                await settle(attempt())
            assert field is None or refusal.value.details["field"] == field
        with pytest.raises(NotFound):
            await settle(remote.set_optimizer(7, lr=1.0))
        assert [group["lr"] for group in optimizer.param_groups] == [0.0625] * 2

    with served(model, optimizer) as live:
        served_to(kind, live.scope, body)


@BOTH
def test_parameters_that_nobody_trained_train(kind: Any, model: Pair) -> None:
    optimizer = adam(model)
    before = model[1].weight.detach().clone()

    async def body(remote: Any) -> None:
        done = await settle(remote.add_to_optimizer("1", group=1))
        assert (done.kind, done.paths) == ("add_to_optimizer", ("1.weight", "1.bias"))
        assert await settle(remote.unheld_parameters()) == []
        with pytest.raises(FailedPrecondition) as held:
            await settle(remote.add_to_optimizer("1.weight", group=0))
        assert held.value.reason == "ALREADY_HELD"

    with served(model, optimizer) as live:
        served_to(kind, live.scope, body)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert any(parameter is model[1].weight for parameter in optimizer.param_groups[1]["params"])
    assert not torch.equal(model[1].weight, before)


def test_values_on_the_wire() -> None:
    values = {"a": 1, "b": 0.5, "c": True, "d": None, "e": "text", "f": (1, [False]), "g": torch.tensor(2.0)}
    options = requests.options(None, True, None)
    asked = optimizers.set_optimizer("m", None, values, base_lr=True, options=options)
    assert not asked.HasField("group") and asked.base_lr and asked.options.dry_run
    sent = asked.hyperparameters
    kinds = {name: sent[name].WhichOneof("kind") for name in sent}
    assert kinds == {
        "a": "number_value", "b": "number_value", "c": "bool_value", "d": "null_value",
        "e": "string_value", "f": "list_value", "g": "number_value",
    }  # fmt: skip
    assert sent["f"].list_value.values[1].list_value.values[0].bool_value is False
    assert sent["g"].number_value == 2.0
