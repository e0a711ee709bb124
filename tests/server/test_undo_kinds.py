"""Undo of every kind of change: model, optimizer and flags are bit for bit what they were before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.server.change_kinds import CHANGES, Options
from tests.server.rpc import Rpc, refused, serving, training_loop, until
from tests.server.undo_support import OPTIMIZERS, Net, bits, make_model, optimizer_bits, stepper

Make = Callable[..., torch.optim.Optimizer]

kinds = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
optimizers = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def prepared(make: Make, steps: int = 3) -> tuple[Net, torch.optim.Optimizer]:
    """A model after some steps: `last.weight` is frozen, and the optimizer does not hold `last.bias`."""
    model = make_model()
    model.last.weight.requires_grad = False
    optimizer = make([tensor for name, tensor in model.named_parameters() if name != "last.bias"])
    step = stepper(model, optimizer)
    for _ in range(steps):
        step()
    return model, optimizer


def twin(model: Net, optimizer: torch.optim.Optimizer, make: Make) -> tuple[Net, torch.optim.Optimizer]:
    """A copy that modscope never sees."""
    other = copy.deepcopy(model)
    held = make([tensor for name, tensor in other.named_parameters() if name != "last.bias"])
    held.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other, held


def whole(model: Net, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    return bits(model), optimizer_bits(model, optimizer)


def trained_on(model: Net, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    torch.manual_seed(5)
    step = stepper(model, optimizer)
    for _ in range(3):
        step()
    return whole(model, optimizer)


@kinds
@optimizers
def test_undone_at_once(make: Make, change: Callable[[Rpc, Any], Any]) -> None:
    model, optimizer = prepared(make)
    other, held = twin(model, optimizer, make)
    before = whole(model, optimizer)
    assert before == whole(other, held)
    with serving(model, optimizer) as rpc:
        operation = change(rpc, Options()).operation
        changed = whole(model, optimizer)
        assert changed != before
        undo = rpc.Undo(id=operation.id).operation
        assert whole(model, optimizer) == before
        redo = rpc.Undo(id=undo.id).operation
        assert whole(model, optimizer) == changed
        rpc.Undo(id=redo.id)
        assert whole(model, optimizer) == before
        assert trained_on(model, optimizer) == trained_on(other, held)


@kinds
@optimizers
def test_undone_after_more_training(make: Make, change: Callable[[Rpc, Any], Any]) -> None:
    model, optimizer = prepared(make)
    before = whole(model, optimizer)
    with serving(model, optimizer) as rpc:
        operation = change(rpc, Options()).operation
        changed = whole(model, optimizer)
        trained_on(model, optimizer)
        rpc.Undo(id=operation.id)
        after = whole(model, optimizer)
    touched_values = [name for name in before[0] if before[0][name] != changed[0][name]]
    assert {name: after[0][name] for name in touched_values} == {
        name: before[0][name] for name in touched_values
    }
    states = before[1]["state"]
    touched_states = [
        name
        for name in {**states, **changed[1]["state"]}
        if states.get(name) != changed[1]["state"].get(name)
    ]
    assert {name: after[1]["state"].get(name) for name in touched_states} == {
        name: states.get(name) for name in touched_states
    }
    assert after[1]["groups"] == before[1]["groups"]


@kinds
def test_a_dry_run_changes_nothing_and_tells_the_paths(change: Callable[[Rpc, Any], Any]) -> None:
    model, optimizer = prepared(OPTIMIZERS["adam"])
    before = whole(model, optimizer)
    with serving(model, optimizer) as rpc:
        dry = change(rpc, Options(dry_run=True)).operation
        assert (dry.outcome, dry.not_undoable) == ("dry_run", "it changed nothing")
        assert whole(model, optimizer) == before
        assert not rpc.ListOperations().operations
        assert list(change(rpc, Options()).operation.paths) == list(dry.paths)


@kinds
@pytest.mark.parametrize("name", ["sgd", "adamw", "lbfgs"])
def test_undone_in_mid_run(name: str, change: Callable[[Rpc, Any], Any]) -> None:
    model, optimizer = prepared(OPTIMIZERS[name])
    ended: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    began: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    # The optimizer's own hook runs before the safe point's, the second pre-hook of the root after it.
    optimizer.register_step_post_hook(lambda *_: ended.__setitem__(len(ended) + 1, whole(model, optimizer)))
    with serving(model, optimizer) as rpc:
        model.register_forward_pre_hook(
            lambda *_: began.setdefault(len(ended), whole(model, optimizer)) and None
        )
        with training_loop(stepper(model, optimizer)):
            until(lambda: len(ended) >= 2)
            operation = change(rpc, Options()).operation
            until(lambda: len(ended) >= operation.step + 3)
            undo = rpc.Undo(id=operation.id).operation
            until(lambda: len(began) > undo.step + 1)
    (values, state), (changed, changed_state) = ended[operation.step], began[operation.step]
    now, now_state = began[undo.step]
    assert undo.step >= operation.step + 3
    assert changed != values or changed_state != state
    for path in values:
        if changed[path] != values[path]:
            assert now[path] == values[path], path
    for path in {**state["state"], **changed_state["state"]}:
        if changed_state["state"].get(path) != state["state"].get(path):
            assert now_state["state"].get(path) == state["state"].get(path), path
    assert now_state["groups"] == state["groups"]
    assert {path: undo.after[path] for path in operation.before} == dict(operation.before)


def test_gradients_of_a_parameter_that_is_frozen_again_do_not_move_it() -> None:
    model, optimizer = prepared(OPTIMIZERS["sgd"])
    with serving(model, optimizer) as rpc:
        rpc.Unfreeze(glob="last.weight")
        trained_on(model, optimizer)
        model(torch.randn(8, 3)).square().sum().backward()
        rpc.Undo(id="op-1")
        value = model.last.weight.detach().clone()
        optimizer.step()
        trained_on(model, optimizer)
    assert torch.equal(model.last.weight, value)


def test_an_undo_of_what_training_has_moved_since_says_so() -> None:
    model, optimizer = prepared(OPTIMIZERS["sgd"])
    with serving(model, optimizer) as rpc:
        write = CHANGES["write"](rpc, Options()).operation
        undo = rpc.Undo(id=write.id, options=Options(dry_run=True)).operation
        assert not undo.notes
        trained_on(model, optimizer)
        undo = rpc.Undo(id=write.id).operation
        assert list(undo.notes) == [
            "moved since op-1, by training or by hand, and put back with it: first.weight"
        ]


def test_a_parameter_that_was_replaced_since_is_refused() -> None:
    model, optimizer = prepared(OPTIMIZERS["sgd"])
    with serving(model, optimizer) as rpc:
        write = CHANGES["write"](rpc, Options()).operation
        model.first.weight = torch.nn.Parameter(torch.zeros(4, 3))
        refusal = refused(lambda: rpc.Undo(id=write.id))
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "NOT_UNDOABLE")
        assert refusal.message.endswith("cannot be undone: first.weight is not the same tensor any more")
        assert refusal.hint.endswith("write the values that you want")
    assert torch.equal(model.first.weight, torch.zeros(4, 3))


def test_an_undo_leaves_what_a_scheduler_has_set_since() -> None:
    model, optimizer = prepared(OPTIMIZERS["adam"])
    with serving(model, optimizer) as rpc:
        added = CHANGES["add_to_optimizer"](rpc, Options()).operation
        optimizer.param_groups[0]["lr"] = 0.125
        rpc.Undo(id=added.id)
        assert optimizer.param_groups[0]["lr"] == 0.125
        assert all(tensor is not model.last.bias for tensor in optimizer.param_groups[0]["params"])
