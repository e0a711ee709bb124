"""OptimizerService as any gRPC client sees it, beside a loop that trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from google.protobuf import struct_pb2
from google.protobuf.json_format import MessageToDict
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from tests.server.freezing_support import Repeatable, layers, same_values
from tests.server.rpc import refused, serving, training_loop, until


def value(plain: Any) -> struct_pb2.Value:
    if plain is None:
        return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
    if isinstance(plain, bool):
        return struct_pb2.Value(bool_value=plain)
    if isinstance(plain, (int, float)):
        return struct_pb2.Value(number_value=plain)
    if isinstance(plain, str):
        return struct_pb2.Value(string_value=plain)
    return struct_pb2.Value(list_value=struct_pb2.ListValue(values=map(value, plain)))


def values(**hyperparameters: Any) -> dict[str, struct_pb2.Value]:
    return {name: value(plain) for name, plain in hyperparameters.items()}


def test_groups_on_the_wire() -> None:
    model = layers()
    stranger = nn.Parameter(torch.ones(3, dtype=torch.float64))
    split: list[dict[str, Any]] = [
        {"params": model[0].parameters()},
        {"params": [model[2].weight, stranger], "lr": 0.5},
    ]
    optimizer = AdamW(split, lr=0.25)
    scheduler = LambdaLR(optimizer, lambda epoch: 0.5)
    with serving(model, optimizer, extras={"scheduler": scheduler}) as rpc:
        response = rpc.ListOptimizers()
        assert list(response.unheld) == ["2.bias", "4.weight", "4.bias"]
        first, second = response.groups
        assert (first.optimizer, first.index, first.lr, first.weight_decay) == ("AdamW", 0, 0.125, 0.01)
        assert list(first.parameters) == ["0.weight", "0.bias"]
        assert (second.index, second.lr, second.base_lr, second.scheduler) == (1, 0.25, 0.5, "LambdaLR")
        assert list(second.strangers) == ["float64 [3]"]
        assert list(first.state_keys) == []
        told: dict[str, Any] = {name: MessageToDict(one) for name, one in first.options.items()}
        assert told["betas"] == [0.9, 0.999]
        assert told["amsgrad"] is False
        assert told["foreach"] is None
        assert told["initial_lr"] == 0.25
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        response = rpc.ListOptimizers()
        assert response.step == 1
        assert set(response.groups[0].state_keys) == {"step", "exp_avg", "exp_avg_sq"}


def test_what_an_optimizer_does_not_have_is_absent() -> None:
    model = layers()
    with serving(model, torch.optim.LBFGS(model.parameters())) as rpc:
        (group,) = rpc.ListOptimizers().groups
        assert group.lr == 1
        assert not group.HasField("weight_decay")
        assert not group.HasField("base_lr")
    with serving(model) as rpc:
        assert list(rpc.ListOptimizers().groups) == []
        assert len(rpc.ListOptimizers().unheld) == 6


def test_several_models_share_the_count_and_tell_their_own_paths() -> None:
    one, two = layers(), layers()
    optimizers = [SGD(one.parameters(), lr=0.1), SGD([*two.parameters()][:2], lr=0.1)]
    with serving({"one": one, "two": two}, optimizers) as rpc:
        first, second = rpc.ListOptimizers(model="two").groups
        assert (list(first.parameters), list(first.strangers)) == ([], [])
        assert list(second.parameters) == ["0.weight", "0.bias"]
        rpc.SetOptimizer(model="two", hyperparameters=values(lr=0.5))
        assert [one.param_groups[0]["lr"] for one in optimizers] == [0.1, 0.5]
        (_, note) = rpc.Unfreeze(model="two", glob="4.bias").operation.notes
        assert note.endswith("modscope --model two optim add 4.bias --group 0")
        refusal = refused(lambda: rpc.AddToOptimizer(model="two", glob="{0,2}.weight", group=1))
        assert refusal.hint == "the others alone: modscope --model two optim add 2.weight"


def test_a_new_lr_takes_effect_at_one_step_of_a_running_loop() -> None:
    """The oracle assigns it after the step that the reply names."""
    model, other = layers(), layers()
    run = Repeatable(model, SGD(model.parameters(), lr=0.02, momentum=0.9))
    with serving(model, run.optimizer) as rpc, training_loop(run.step):
        until(lambda: run.steps >= 3)
        operation = rpc.SetOptimizer(hyperparameters=values(lr=0.125, momentum=0.5)).operation
        until(lambda: run.steps >= operation.step + 5)
    assert (operation.kind, operation.outcome) == ("set_optimizer", "applied")
    assert list(operation.notes) == ["group 0 (SGD): lr 0.02 -> 0.125, momentum 0.9 -> 0.5"]
    twin = Repeatable(other, SGD(other.parameters(), lr=0.02, momentum=0.9))
    twin.run_to(operation.step)
    twin.optimizer.param_groups[0].update(lr=0.125, momentum=0.5)
    twin.run_to(run.steps)
    assert all(same_values(run.values[-1], twin.values[-1]))


def test_a_parameter_is_added_in_a_running_loop_and_trains() -> None:
    model = layers()
    run = Repeatable(model, AdamW([*model[0].parameters(), *model[2].parameters()], lr=0.02))
    with serving(model, run.optimizer) as rpc, training_loop(run.step):
        until(lambda: run.steps >= 3)
        operation = rpc.AddToOptimizer(glob="4.*").operation
        until(lambda: run.steps >= operation.step + 3)
        assert list(operation.paths) == ["4.weight", "4.bias"]
        assert all(same_values(run.values[0], run.values[operation.step])[4:])
        assert list(rpc.ListOptimizers().unheld) == []
        rpc.Undo(id=operation.id)
        assert list(rpc.ListOptimizers().unheld) == ["4.weight", "4.bias"]
        at = run.steps
        until(lambda: run.steps >= at + 3)
    assert len(run.optimizer.param_groups[0]["params"]) == 4
    assert all(same_values(run.values[-2], run.values[-1])[4:])


def test_base_lr_goes_to_the_scheduler_and_comes_back_with_an_undo() -> None:
    model = layers()
    optimizer = SGD(model.parameters(), lr=0.5)
    scheduler = LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    with serving(model, optimizer, extras={"schedulers": [scheduler]}) as rpc:
        (_, note) = rpc.SetOptimizer(hyperparameters=values(lr=0.25)).operation.notes
        assert "LambdaLR will set the lr" in note
        operation = rpc.SetOptimizer(hyperparameters=values(lr=0.125), base_lr=True).operation
        assert scheduler.base_lrs == [0.125]
        assert optimizer.param_groups[0]["initial_lr"] == 0.125
        assert rpc.ListOptimizers().groups[0].base_lr == 0.125
        rpc.Undo(id=operation.id)
        assert scheduler.base_lrs == [0.5]
        assert optimizer.param_groups[0]["initial_lr"] == 0.5
        assert optimizer.param_groups[0]["lr"] == 0.25
        dry = {"dry_run": True}
        operation = rpc.SetOptimizer(hyperparameters=values(lr=0.0625), base_lr=True, options=dry).operation
        assert operation.outcome == "dry_run"
        assert (scheduler.base_lrs, optimizer.param_groups[0]["lr"]) == ([0.5], 0.25)


SETTING: dict[str, tuple[dict[str, Any], str, str]] = {
    "no such name": ({"hyperparameters": values(rate=1.0)}, "BAD_REQUEST", "hyperparameters.rate"),
    "another kind": ({"hyperparameters": values(lr="fast")}, "BAD_REQUEST", "hyperparameters.lr"),
    "nan": ({"hyperparameters": values(lr=float("nan"))}, "BAD_REQUEST", "hyperparameters.lr"),
    "unset": ({"hyperparameters": {"lr": struct_pb2.Value()}}, "BAD_REQUEST", "hyperparameters.lr"),
    "object": (
        {"hyperparameters": {"lr": struct_pb2.Value(struct_value=struct_pb2.Struct())}},
        "BAD_REQUEST",
        "hyperparameters.lr",
    ),
    "nothing": ({}, "BAD_REQUEST", "hyperparameters"),
    "base_lr": ({"hyperparameters": values(momentum=0.5), "base_lr": True}, "BAD_REQUEST", "base_lr"),
    "no such group": ({"hyperparameters": values(lr=0.5), "group": 9}, "NO_MATCH", "group"),
    "negative group": ({"hyperparameters": values(lr=0.5), "group": -1}, "NO_MATCH", "group"),
    "no such model": ({"hyperparameters": values(lr=0.5), "model": "x"}, "UNKNOWN_MODEL", "model"),
}
ADDING: dict[str, tuple[dict[str, Any], str, str]] = {
    "held": ({"glob": "0.*", "group": 0}, "ALREADY_HELD", "glob"),
    "which": ({"glob": "4.*"}, "BAD_REQUEST", "group"),
    "no such path": ({"glob": "9.*", "group": 0}, "NO_MATCH", "glob"),
    "no glob": ({"glob": "[", "group": 0}, "BAD_GLOB", "glob"),
    "no such place": ({"glob": "4.*", "group": 2}, "NO_MATCH", "group"),
}
CODES = {
    "BAD_REQUEST": "INVALID_ARGUMENT",
    "BAD_GLOB": "INVALID_ARGUMENT",
    "NO_MATCH": "NOT_FOUND",
    "UNKNOWN_MODEL": "NOT_FOUND",
    "ALREADY_HELD": "FAILED_PRECONDITION",
}


@pytest.mark.parametrize("name", SETTING | ADDING)
def test_a_refusal_names_status_reason_and_field_and_changes_nothing(name: str) -> None:
    fields, reason, field = (SETTING | ADDING)[name]
    model = layers()
    optimizers = [SGD(model[0].parameters(), lr=0.5), SGD(model[2].parameters(), lr=0.5)]
    before = [str(one.state_dict()) for one in optimizers]
    with serving(model, optimizers) as rpc:
        method = rpc.SetOptimizer if name in SETTING else rpc.AddToOptimizer
        refusal = refused(lambda: method(**fields))
    assert (refusal.code, refusal.reason, refusal.fields) == (CODES[reason], reason, [field])
    assert refusal.hint
    assert [str(one.state_dict()) for one in optimizers] == before


def test_a_viewer_and_a_read_only_server_change_nothing() -> None:
    model = layers()
    optimizer = SGD(model[0].parameters(), lr=0.5)
    with serving(model, optimizer, writable=False) as rpc:
        assert rpc.ListOptimizers().groups[0].lr == 0.5
        assert refused(lambda: rpc.SetOptimizer(hyperparameters=values(lr=0.1))).reason == "READ_ONLY_SERVER"
        assert refused(lambda: rpc.AddToOptimizer(glob="4.*")).reason == "READ_ONLY_SERVER"
    assert optimizer.param_groups[0]["lr"] == 0.5
