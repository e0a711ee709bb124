"""A frozen weight does not move by one bit, and the others move as in a run of PyTorch alone."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, AdamW, Optimizer, SparseAdam

from modscope_server.inspection.freezing import plan_freeze, plan_unfreeze
from modscope_server.inspection.optimizers import Groups
from tests.server.freezing_support import MAKERS, Repeatable, layers, same_values
from tests.server.rpc import serving, training_loop, until


def freeze_by_hand(model: nn.Module) -> None:
    for parameter in model[2].parameters():
        parameter.requires_grad_(False)
        parameter.grad = None


def built(name: str) -> tuple[nn.Sequential, nn.Sequential]:
    model = layers(bias=name != "muon")
    return model, copy.deepcopy(model)


def places(model: nn.Module) -> list[int]:
    frozen = {id(parameter) for parameter in model[2].parameters()}
    return [place for place, parameter in enumerate(model.parameters()) if id(parameter) in frozen]


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("name", MAKERS)
def test_frozen_in_a_running_loop(name: str, set_to_none: bool, micro: int) -> None:
    model, other = built(name)
    run = Repeatable(model, MAKERS[name](model.parameters()), set_to_none=set_to_none, micro=micro)
    with serving(model, run.optimizer) as rpc, training_loop(run.step):
        until(lambda: run.steps >= 3)
        at = rpc.Freeze(glob="2.*").operation.step
        until(lambda: run.steps >= at + 6)
    frozen = places(model)
    for values in run.values[at:]:
        assert [same_values(values, run.values[at])[place] for place in frozen] == [True] * len(frozen)
    # Over all steps: Rprop leaves an element where it is for one whose gradient has changed its sign.
    assert not any(same_values(run.values[0], run.values[at]))

    twin = Repeatable(other, MAKERS[name](other.parameters()), set_to_none=set_to_none, micro=micro)
    twin.run_to(at)
    freeze_by_hand(other)
    twin.run_to(run.steps)
    for step, (ours, theirs) in enumerate(zip(run.values, twin.values, strict=True)):
        assert all(same_values(ours, theirs)), step


def test_every_optimizer_of_torch_is_among_them() -> None:
    classes = {
        cls for cls in vars(torch.optim).values() if isinstance(cls, type) and issubclass(cls, Optimizer)
    }
    parameters = [nn.Parameter(torch.ones(1, 1))]
    tried = {type(make(parameters)) for make in MAKERS.values()}
    assert classes == tried | {Optimizer, LBFGS, SparseAdam}


@pytest.mark.parametrize("name", ["sgd_momentum", "adamw", "adam_fused", "rmsprop_foreach"])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_frozen_in_the_middle_of_an_accumulation(name: str, set_to_none: bool) -> None:
    model, other = built(name)
    waiting, go_on = threading.Event(), threading.Event()

    def pause(step: int, number: int) -> None:
        if (step, number) == (4, 0):
            waiting.set()
            go_on.wait(60)

    run = Repeatable(model, MAKERS[name](model.parameters()), set_to_none=set_to_none, micro=3, pause=pause)
    with serving(model, run.optimizer) as rpc, training_loop(run.step):
        assert waiting.wait(60)
        assert model[2].weight.grad is not None
        assert rpc.Freeze(glob="2.*").operation.step == 4
        assert model[2].weight.grad is None
        go_on.set()
        until(lambda: run.steps >= 10)
    frozen = places(model)
    for values in run.values[4:]:
        assert [same_values(values, run.values[4])[place] for place in frozen] == [True] * len(frozen)
    twin = Repeatable(
        other,
        MAKERS[name](other.parameters()),
        set_to_none=set_to_none,
        micro=3,
        pause=lambda step, number: freeze_by_hand(other) if (step, number) == (4, 0) else None,
    )
    twin.run_to(run.steps)
    assert all(same_values(run.values[-1], twin.values[-1]))


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_leaves_out_what_is_frozen(search: str | None) -> None:
    """It moves its parameters along one flat history, with or without a gradient, nan included."""
    model, other = built("lbfgs")

    def make(parameters: Any) -> LBFGS:
        return LBFGS(parameters, lr=0.05, max_iter=4, line_search_fn=search)

    run = Repeatable(model, make(model.parameters()))
    with serving(model, run.optimizer) as rpc:
        run.run_to(3)
        operation = rpc.Freeze(glob="2.*").operation
        assert any("LBFGS begins its history anew" in note for note in operation.notes)
        run.run_to(9)
        again = rpc.Unfreeze(glob="2.weight").operation
        assert any("LBFGS begins its history anew" in note for note in again.notes)
        run.run_to(12)
    twin = Repeatable(other, make(other.parameters()))
    twin.run_to(3)
    freeze_by_hand(other)
    twin.optimizer = make([parameter for parameter in other.parameters() if parameter.requires_grad])
    twin.run_to(9)
    other[2].weight.requires_grad_(True)
    twin.optimizer = make([parameter for parameter in other.parameters() if parameter.requires_grad])
    twin.run_to(12)
    for step, (ours, theirs) in enumerate(zip(run.values, twin.values, strict=True)):
        assert all(same_values(ours, theirs)), step
    assert len(run.optimizer.param_groups[0]["params"]) == 6
    assert not same_values(run.values[9], run.values[12])[2]
    assert same_values(run.values[3], run.values[12])[3]


def test_lbfgs_of_which_all_is_frozen_stands_still() -> None:
    model = layers()
    run = Repeatable(model, LBFGS(model[0].parameters(), lr=0.05))
    with serving(model, run.optimizer) as rpc:
        run.run_to(2)
        rpc.Freeze(glob="0.*")
        run.run_to(5)
    assert all(same_values(run.values[2], run.values[5]))


def test_sparse_gradients() -> None:
    tables = nn.ModuleList([nn.Embedding(5, 2, sparse=True) for _ in range(2)])
    optimizer = SparseAdam(list(tables.parameters()), lr=0.1)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        (tables[0](torch.tensor([0, 1])) * tables[1](torch.tensor([1, 2]))).sum().backward()
        optimizer.step()

    with serving(tables, optimizer) as rpc:
        step()
        rpc.Freeze(glob="0.*")
        before = [parameter.detach().clone() for parameter in tables.parameters()]
        for _ in range(5):
            step()
    assert same_values(before, list(tables.parameters())) == [True, False]


def test_frozen_between_a_forward_and_its_backward() -> None:
    """A call beside a loop that stands there: the graph knows the weight as trainable still."""
    model = layers()
    optimizer = AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    run = Repeatable(model, optimizer)
    with serving(model, optimizer) as rpc:
        run.run_to(2)
        loss: Any = model(torch.ones(2, 4)).sum()
        rpc.Freeze(glob="2.*")
        loss.backward()
        optimizer.step()
    assert [same_values(run.values[2], list(model.parameters()))[place] for place in (2, 3)] == [True, True]


def test_an_optimizer_that_has_not_stepped_yet_does_not_move_it() -> None:
    """Nobody has told of it, so the gradient of its parameters must not stay as zeros either."""
    model = layers()
    optimizer = AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with serving(model) as rpc:
        model(torch.ones(2, 4)).sum().backward()
        rpc.Freeze(glob="2.*")
        assert model[2].weight.grad is None
        optimizer.step()
    assert same_values(before, list(model.parameters())) == [False, False, True, True, False, False]


@pytest.mark.parametrize("name", ["sgd_momentum", "adamw", "adamw_fused"])
def test_under_a_scaler_that_skips_a_step(name: str) -> None:
    model = layers()
    optimizer = MAKERS[name](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)

    def step(scale: float) -> None:
        optimizer.zero_grad(set_to_none=False)
        with torch.autocast("cpu"):
            loss = model(torch.ones(2, 4)).square().mean()
        scaler.scale(loss * scale).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    with serving(model, optimizer, extras={"scaler": scaler}) as rpc:
        for _ in range(3):
            step(1.0)
        rpc.Freeze(glob="2.*")
        before = [parameter.detach().clone() for parameter in model.parameters()]
        for scale in (1.0, 1.0, float("inf"), 1.0, 1.0, 1.0):
            step(scale)
    same = same_values(before, [parameter.detach() for parameter in model.parameters()])
    assert same == [False, False, True, True, False, False]


def test_thawed_it_goes_on_as_in_pytorch() -> None:
    model, other = built("adamw")
    run = Repeatable(model, AdamW(model.parameters(), lr=0.02))
    twin = Repeatable(other, AdamW(other.parameters(), lr=0.02))
    with serving(model, run.optimizer) as rpc:
        run.run_to(3)
        rpc.Freeze(glob="2.*")
        run.run_to(6)
        assert list(rpc.Unfreeze(glob="2.*").operation.notes) == []
        run.run_to(9)
    twin.run_to(3)
    freeze_by_hand(other)
    twin.run_to(6)
    other.requires_grad_(True)
    twin.run_to(9)
    assert all(same_values(run.values[-1], twin.values[-1]))
    assert not any(same_values(run.values[6], run.values[9]))


@pytest.mark.parametrize("name", MAKERS)
def test_thawed_after_it_was_frozen_from_the_start(name: str) -> None:
    """The optimizer has made no state of it so far."""
    model, other = built(name)
    run = Repeatable(model, MAKERS[name](model.parameters()))
    twin = Repeatable(other, MAKERS[name](other.parameters()))
    plan_freeze(model, "2.*", "", Groups.of([run.optimizer])).apply()
    run.run_to(3)
    plan_unfreeze(model, "2.*", "", Groups.of([run.optimizer])).apply()
    run.run_to(6)
    freeze_by_hand(other)
    twin.run_to(3)
    other.requires_grad_(True)
    if name == "sgd_fused":
        # PyTorch itself raises here: some parameters have momentum, and these have none.
        for parameter in other[2].parameters():
            twin.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    twin.run_to(6)
    assert all(same_values(run.values[-1], twin.values[-1]))
    assert not any(same_values(run.values[3], run.values[-1]))


def test_a_loop_by_hand_keeps_its_gradients() -> None:
    model: Any = layers()
    with serving(model) as rpc:
        model(torch.ones(2, 4)).sum().backward()
        rpc.Freeze(glob="2.*")
        before = model[2].weight.detach().clone()
        for _ in range(5):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
                    parameter.grad.zero_()
            model(torch.ones(2, 4)).sum().backward()
    assert torch.equal(model[2].weight, before)
