"""Interventions where training is not plain: recomputed, compiled, forked, bypassed, ended half way."""

from __future__ import annotations

import copy
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from modscope.v1 import hook_service_pb2
from tests.plain_models import MLP
from tests.server.compiled_support import Backend
from tests.server.intervention_support import (
    ACTING,
    ENDED,
    NOT_ACTING,
    WAITING,
    here,
    intervened,
    intervening,
    told,
)
from tests.server.rpc import Rpc, serving, until


class Checkpointed(nn.Module):
    """Its layers are run again in the backward."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(3))
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=self.reentrant)
        return x


class Plain(Checkpointed):
    """The same, not run again."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def noise_by_hand(module: nn.Module, calls: int) -> None:
    numbers = iter(range(calls))

    def hook(_: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        number = next(numbers, None)
        if number is None:
            return output
        generator = torch.Generator().manual_seed(3 + number)
        return output + torch.randn(output.shape, generator=generator) * 0.5

    module.register_forward_hook(hook)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputed_forward_gets_what_its_first_run_got(reentrant: bool) -> None:
    """Noise, and no call too many: with another value in the recomputation the gradients would be wrong."""
    model = Checkpointed(reentrant=reentrant)
    twin = Plain(reentrant=False)
    twin.load_state_dict(model.state_dict())
    for layer in twin.layers:
        noise_by_hand(layer[0], calls=2)
    x = torch.randn(4, 3, requires_grad=True)
    with here(model) as rpc:
        made = intervened(rpc, "layers.*.0", noise={"std": 0.5, "seed": 3}, calls=2)
        for _ in range(3):
            grads = []
            for one in (model, twin):
                one.zero_grad()
                one(x).square().sum().backward()
                grads.append([parameter.grad.clone() for parameter in one.parameters()])
            assert all(map(torch.equal, *grads))
        assert told(rpc, made).applied == 6


def test_one_that_is_removed_between_forward_and_backward_is_still_in_this_gradient() -> None:
    model = Checkpointed(reentrant=False)
    twin = Plain(reentrant=False)
    twin.load_state_dict(model.state_dict())
    handle = twin.layers[1].register_forward_hook(lambda _, args, output: output * 3.0)
    x = torch.randn(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with serving(model, optimizer) as rpc:
        made = intervened(rpc, "layers.1", scale=3.0)
        loss = model(x).square().sum()
        rpc.RemoveInterventions(ids=[made.id])
        loss.backward()
        twin(x).square().sum().backward()
        assert [p.grad.tolist() for p in model.parameters()] == [p.grad.tolist() for p in twin.parameters()]
        optimizer.step()
        handle.remove()
        assert torch.equal(model(x), twin(x))
        assert told(rpc, made).applied == 1


@pytest.fixture
def dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def by_call(model: nn.Module) -> Callable[[torch.Tensor], Any]:
    model.compile(backend="aot_eager", fullgraph=True)
    return model


def by_wrapper(model: nn.Module) -> Callable[[torch.Tensor], Any]:
    return torch.compile(model, backend="aot_eager", fullgraph=True)


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("compiled", [by_call, by_wrapper])
@pytest.mark.parametrize("first", [False, True], ids=["after", "before"])
def test_compiled_code_runs_eagerly_while_an_intervention_acts_and_it_says_so(
    compiled: Any, first: bool
) -> None:
    """Made after the graphs were built, and before; fullgraph=True is as good as without it."""
    model = MLP()
    x = torch.randn(2, 1)
    run = compiled(model)
    root = model if compiled is by_call else run
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def iteration() -> torch.Tensor:
        output: torch.Tensor = run(x)
        output.sum().backward()
        optimizer.step()
        return output

    untouched = model.w3(model.w2(model.w1(x).relu()).relu())
    doubled = model.w3((model.w2(model.w1(x).relu()) * 2).relu())
    if not first:
        iteration()
    with here(root, optimizer) as rpc:
        answer = intervening(rpc, "w2", scale=2.0)
        made = answer.intervention
        assert any("it acts in run eagerly, by torch.compiler.set_stance" in note for note in answer.notes)
        for _ in range(3):
            assert torch.equal(iteration(), doubled)
        now = told(rpc, made)
        assert (now.state, now.applied) == (ACTING, 3)
        (hook,) = [one for one in rpc.ListHooks().hooks if one.intervention_id == made.id]
        assert (hook.state, hook.remedy) == (hook_service_pb2.HOOK_STATE_FIRED, "eager steps: 3")
        rpc.RemoveInterventions(ids=[made.id])
        assert torch._dynamo.eval_frame._stance.stance == "default"
        assert torch.allclose(iteration(), untouched)


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("asked", [{"start": 2, "stop": 4}, {"calls": 2}])
def test_steps_in_which_it_does_not_act_run_compiled(asked: dict[str, int]) -> None:
    model, backend = MLP(), Backend("aot_eager")
    x = torch.randn(2, 1)
    untouched = model(x)
    model.compile(backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with here(model, optimizer) as rpc:
        made = intervened(rpc, "w3", scale=2.0, **asked)
        acted, eager = [], []
        for number in range(6):
            runs = backend.runs
            output = model(x)
            output.sum().backward()
            optimizer.step()
            if backend.runs == runs:
                eager.append(number)
            if torch.equal(output, untouched * 2):
                acted.append(number)
        assert acted == eager == ([2, 3] if "start" in asked else [0, 1])
        assert told(rpc, made).state == ENDED


@pytest.mark.usefixtures("dynamo")
def test_compiled_code_that_the_program_keeps_is_told_by_the_intervention() -> None:
    model = MLP()
    x = torch.randn(2, 1)
    model.compile(backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    untouched = model(x)
    with torch.compiler.set_stance("eager_on_recompile"), here(model, optimizer) as rpc:
        made = intervened(rpc, "w2", scale=2.0)
        for _ in range(2):
            output = model(x)
            output.sum().backward()
            optimizer.step()
            assert torch.equal(output, untouched)
        now = told(rpc, made)
        assert (now.state, now.applied) == (NOT_ACTING, 0)
        assert "it is compiled" in now.note and "'eager_on_recompile'" in now.note


class Bypassed(nn.Module):
    """Calls one of its layers around its hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(2, 2)
        self.around = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.around.forward(self.used(x))


def test_a_module_whose_hooks_never_run_is_told_with_the_steps_that_have_passed() -> None:
    model = Bypassed()
    x = torch.randn(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with here(model, optimizer) as rpc:
        both = intervened(rpc, "{used,around}", scale=2.0)
        assert (both.state, "not been called yet" in both.note) == (WAITING, True)
        for _ in range(2):
            model(x).sum().backward()
            optimizer.step()
        now = told(rpc, both)
        assert (now.state, now.applied, now.last_step) == (NOT_ACTING, 2, 1)
        assert now.note == "around: never called since step 0"
        for _ in range(2):
            model(x).sum().backward()
            optimizer.step()
        assert told(rpc, both).note.startswith(
            "around: called as module.forward(...), or its weights are used"
        )
        model.around = nn.Linear(2, 2)
        assert "another one now" in told(rpc, both).note


class Switched(nn.Module):
    """Calls one of its layers only while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.extra = nn.Linear(1, 1), nn.Linear(1, 1)
        self.on = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        return self.extra(x) if self.on else x


def test_one_that_was_acting_and_is_called_no_more() -> None:
    model = Switched()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with here(model, optimizer) as rpc:
        made = intervened(rpc, "extra", scale=2.0)
        for on, state in ((True, ACTING), (True, ACTING), (False, NOT_ACTING)):
            model.on = on
            model(torch.ones(1, 1)).sum().backward()
            optimizer.step()
            assert told(rpc, made).state == state
        assert told(rpc, made).note == "the module was called last at step 1"


def test_its_last_step_passes_whether_it_is_called_or_not() -> None:
    model = Switched()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with here(model, optimizer) as rpc:
        made = intervened(rpc, "extra", scale=2.0, stop=1)
        model.on = False
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        assert (told(rpc, made).state, told(rpc, made).applied) == (ENDED, 0)
        assert not rpc.ListInterventions().interventions


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_script_module_takes_none_and_is_told() -> None:
    model = nn.Sequential(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), nn.Linear(2, 2))
    x = torch.ones(1, 2)
    untouched = model(x)
    with here(model) as rpc:
        made = intervened(rpc, "0", scale=2.0)
        assert (made.state, "ScriptModule" in made.note) == (NOT_ACTING, True)
        assert torch.equal(model(x), untouched)


def test_a_lease_that_nobody_renews_gives_the_values_back() -> None:
    model = nn.Identity()
    ones = torch.ones(2)
    with serving(model) as rpc:
        made = intervened(rpc, "", scale=2.0, lease=1.0)
        assert made.lease.holds == made.id
        assert torch.equal(model(ones), ones * 2)
        until(lambda: torch.equal(model(ones), ones))
        now = told(rpc, made)
        assert now.state == ENDED and "nobody renewed it" in now.note
        released = intervened(rpc, "", scale=3.0)
        rpc.ReleaseLease(id=released.lease.id)
        assert torch.equal(model(ones), ones)
        assert "released" in told(rpc, released).note


def test_a_forked_child_sees_the_model_as_it_is() -> None:
    model = MLP()
    x = torch.randn(2, 1)
    untouched = model(x).detach()
    with here(model) as rpc:
        intervened(rpc, "*", scale=2.0)
        context = multiprocessing.get_context("fork")
        mine, theirs = context.Pipe()
        child = context.Process(target=lambda: theirs.send(model(x).tolist()))
        child.start()
        assert mine.poll(60)
        assert mine.recv() == untouched.tolist()
        child.join(60)
        assert not torch.equal(model(x), untouched)


def acted(rpc: Rpc, made: Any) -> bool:
    return bool(told(rpc, made).applied)


def test_many_come_and_go_while_the_model_trains_and_leave_no_trace() -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = copy.deepcopy(model.state_dict())
    stop, failures = threading.Event(), []

    def loop() -> None:
        x = torch.ones(3, 1)
        expected = model(x).detach()
        ours = (expected, expected * 0)
        while not stop.is_set():
            optimizer.zero_grad()
            output = model(x)
            output.sum().backward()
            optimizer.step()
            if not any(torch.equal(output, one) for one in ours):
                failures.append(output)

    thread = threading.Thread(target=loop, daemon=True)
    with serving(model, optimizer) as rpc:
        thread.start()
        for _ in range(15):
            made = intervened(rpc, "w3", zero={})
            until(partial(acted, rpc, made))
            rpc.RemoveInterventions(ids=[made.id])
        assert not model.w3._forward_hooks
        stop.set()
        thread.join(30)
    assert not failures
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
