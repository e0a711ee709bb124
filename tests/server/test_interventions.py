"""Interventions over the wire, beside the same operation written by hand: values, gradients, training."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from modscope.v1 import event_pb2
from tests.plain_models import MLP
from tests.server.intervention_support import ACTING, ENDED, PRE, WAITING, here, intervened, told
from tests.server.rpc import refused
from tests.server.test_services_hook import message_of

VALUE = torch.tensor([[0.5, -2.0, 3.0]])

By = Callable[[torch.Tensor], torch.Tensor]


def written(index: Any, value: Any) -> By:
    """What one writes by hand to set a part."""

    def change(output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[index] = value
        return output

    return change


def noisy(application: int) -> By:
    def change(output: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(7 + application)
        return output + torch.randn(output.shape, generator=generator) * 0.25

    return change


CASES: dict[str, tuple[dict[str, Any], By]] = {
    "scale": ({"scale": 2.0}, lambda y: y * 2.0),
    "add": ({"add": -0.3}, lambda y: y + -0.3),
    "add_tensor": ({"add_tensor": True, "tensor": VALUE}, lambda y: y + VALUE),
    "clamp": ({"clamp": {"low": -0.1, "high": 0.2}}, lambda y: y.clamp(-0.1, 0.2)),
    "clamp_low": ({"clamp": {"low": 0.0}}, lambda y: y.clamp(min=0.0)),
    "zero": ({"zero": {}}, written(..., 0.0)),
    "replace": ({"replace": True, "tensor": VALUE}, written(..., VALUE)),
    "replace_cast": ({"replace": True, "tensor": VALUE.double()}, written(..., VALUE)),
    "noise": ({"noise": {"std": 0.25, "seed": 7}}, noisy(0)),
    "scale_at": ({"scale": 3.0, "index": "[:, -1]"}, lambda y: torch.cat((y[:, :-1], y[:, -1:] * 3.0), 1)),
    "zero_at": ({"zero": {}, "index": "[..., 1:]"}, written((..., slice(1, None)), 0.0)),
}


def run(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradient of the input and of every parameter."""
    x = x.clone().requires_grad_()
    output = model(x)
    output.pow(2).sum().backward()
    grads = [x.grad, *(parameter.grad for parameter in model.parameters())]
    model.zero_grad()
    return [output.detach(), *(torch.zeros(()) if grad is None else grad for grad in grads)]


def equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("hook", ["forward", "forward_pre"])
def test_values_and_gradients_are_those_of_the_operation_by_hand(case: str, hook: str) -> None:
    asked, by_hand = CASES[case]
    model = MLP()
    twin = copy.deepcopy(model)
    x = torch.randn(4, 1)
    untouched = run(model, x)
    if hook == "forward":
        twin.w2.register_forward_hook(lambda module, args, output: by_hand(output))
    else:
        twin.w2.register_forward_pre_hook(lambda module, args: (by_hand(args[0]),))
    with here(model) as rpc:
        kind = PRE if hook == "forward_pre" else event_pb2.HOOK_KIND_FORWARD
        made = intervened(rpc, "w2", hook=kind, **asked)
        assert (made.state, list(made.paths), made.applied) == (WAITING, ["w2"], 0)
        assert equal(run(model, x), run(twin, x))
        now = told(rpc, made)
        assert (now.state, now.applied, now.last_step) == (ACTING, 1, 0)
        (gone,) = rpc.RemoveInterventions(ids=[made.id]).interventions
        assert (gone.state, gone.applied) == (ENDED, 1)
        assert "removed by operator" in gone.note
        assert equal(run(model, x), untouched)
        assert not model.w2._forward_hooks and not model.w2._forward_pre_hooks


def trained(model: nn.Module, optimizer: Any, inputs: list[torch.Tensor]) -> list[float]:
    losses = []
    for x in inputs:
        optimizer.zero_grad()
        loss = model(x).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_after_one_that_never_acted_in_it_is_bit_identical() -> None:
    model = MLP()
    twin = copy.deepcopy(model)
    inputs = [torch.randn(4, 1) for _ in range(5)]
    optimizers = [torch.optim.Adam(one.parameters(), lr=0.05) for one in (model, twin)]
    with here(model, optimizers[0]) as rpc:
        made = intervened(rpc, "w*", scale=2.0, start=1000)
        losses = trained(model, optimizers[0], inputs[:3])
        assert told(rpc, made).state == WAITING
        rpc.RemoveInterventions(all=True)
        losses += trained(model, optimizers[0], inputs[3:])
    assert losses == trained(twin, optimizers[1], inputs)
    assert equal(list(model.parameters()), list(twin.parameters()))


def test_training_with_noise_and_after_it_is_that_of_the_hook_by_hand() -> None:
    """The training's own random numbers are untouched: Dropout draws the same."""
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    twin = copy.deepcopy(model)
    inputs = [torch.randn(4, 3) for _ in range(6)]
    optimizers = [torch.optim.Adam(one.parameters(), lr=0.05) for one in (model, twin)]
    numbers = iter(range(3))
    handle = twin[0].register_forward_hook(lambda module, args, output: noisy(next(numbers))(output))
    torch.manual_seed(0)
    expected = trained(twin, optimizers[1], inputs[:3])
    handle.remove()
    expected += trained(twin, optimizers[1], inputs[3:])
    with here(model, optimizers[0]) as rpc:
        made = intervened(rpc, "0", noise={"std": 0.25, "seed": 7}, stop=3)
        torch.manual_seed(0)
        assert trained(model, optimizers[0], inputs) == expected
        now = told(rpc, made)
        assert (now.state, now.applied, now.last_step) == (ENDED, 3, 2)
        assert "step 3" in now.note
    assert equal(list(model.parameters()), list(twin.parameters()))


def test_several_act_in_the_order_of_their_making_and_before_a_watch() -> None:
    model = MLP()
    x = torch.randn(2, 1)
    with here(model) as rpc:
        stream = rpc.Watch(glob="w2", hooks=[1, 2], payload=event_pb2.PAYLOAD_TENSOR)
        next(stream)
        intervened(rpc, "w2", add=1.0)
        intervened(rpc, "w2", scale=3.0)
        intervened(rpc, "w2", scale=0.5, hook=PRE)
        seen: list[torch.Tensor] = []
        handle = model.w3.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
        model(x)
        handle.remove()
        hidden = torch.relu(model.w1(x)) * 0.5
        expected = (hidden @ model.get_parameter("w2.weight").T + model.get_parameter("w2.bias") + 1.0) * 3.0
        assert torch.equal(seen[0], torch.relu(expected))
        size = hidden.numel() + expected.numel()
        data = bytearray()
        while len(data) < 4 * size:
            data += message_of(stream).data
        arrived = torch.frombuffer(data, dtype=torch.float32).split([hidden.numel(), expected.numel()])
        assert torch.equal(arrived[0], hidden.reshape(-1))
        assert torch.equal(arrived[1], expected.detach().reshape(-1))


def test_it_never_writes_into_what_the_module_has_made() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    model[0].register_forward_hook(lambda module, args, output: kept.append((output, output.clone())))
    with here(model) as rpc:
        intervened(rpc, "1", zero={})
        intervened(rpc, "1", scale=2.0, index="[0]")
        assert not model(torch.ones(2, 2)).any()
        assert torch.equal(*kept[0])


def test_calls_bound_it_at_each_module() -> None:
    model = MLP()
    x = torch.randn(2, 1)
    untouched = model(x)
    with here(model) as rpc:
        made = intervened(rpc, "w[12]", scale=2.0, calls=2)
        assert list(made.paths) == ["w1", "w2"]
        changed = [torch.equal(model(x), untouched) for _ in range(4)]
        assert changed == [False, False, True, True]
        now = told(rpc, made)
        assert (now.state, now.applied) == (ENDED, 4)
        assert "2 times" in now.note
        assert not rpc.ListInterventions().interventions


def test_copies_and_pickles_of_the_model_are_free_of_it() -> None:
    model = MLP()
    x = torch.randn(2, 1)
    untouched = model(x)
    with here(model) as rpc:
        made = intervened(rpc, "w2", scale=2.0)
        intervened(rpc, "w2", scale=2.0, hook=PRE)
        saved = io.BytesIO()
        torch.save(model, saved)
        saved.seek(0)
        for twin in (copy.deepcopy(model), torch.load(saved, weights_only=False)):
            assert torch.equal(twin(x), untouched)
        assert told(rpc, made).applied == 0
        assert not torch.equal(model(x), untouched)
        assert told(rpc, made).applied == 1


def test_the_end_of_the_server_ends_it() -> None:
    model = MLP()
    x = torch.randn(2, 1)
    untouched = model(x)
    with here(model) as rpc:
        intervened(rpc, "*", scale=2.0, persist=True)
        assert not torch.equal(model(x), untouched)
    assert torch.equal(model(x), untouched)
    assert not any(part._forward_hooks for part in model.modules())


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"glob": "w9", "scale": 2.0}, "NO_MATCH"),
        ({"glob": "[", "scale": 2.0}, "BAD_GLOB"),
        ({"glob": "w1"}, "BAD_REQUEST"),
        ({"glob": "w1", "scale": float("nan")}, "NOT_FINITE"),
        ({"glob": "w1", "noise": {"std": -1.0}}, "BAD_REQUEST"),
        ({"glob": "w1", "clamp": {}}, "BAD_REQUEST"),
        ({"glob": "w1", "clamp": {"low": 2.0, "high": 1.0}}, "BAD_REQUEST"),
        ({"glob": "w1", "zero": {}, "index": "[__import__('os')]"}, "BAD_REQUEST"),
        ({"glob": "w1", "zero": {}, "hook": 3}, "BAD_REQUEST"),
        ({"glob": "w1", "zero": {}, "calls": -1}, "BAD_REQUEST"),
        ({"glob": "w1", "zero": {}, "start": 5, "stop": 5}, "BAD_REQUEST"),
        ({"glob": "w1", "zero": {}, "lease": 0.1}, "BAD_REQUEST"),
        ({"glob": "w1", "zero": {}, "lease": 5, "persist": True}, "BAD_REQUEST"),
        ({"glob": "w1", "replace": {"dtype_name": "float32", "shape": [3]}}, "BAD_REQUEST"),
    ],
    ids=str,
)
def test_one_that_is_refused_leaves_no_hook(asked: dict[str, Any], reason: str) -> None:
    model = MLP()
    with here(model) as rpc:
        refusal = refused(lambda: intervened(rpc, **asked))
        assert refusal.reason == reason
        assert refusal.fields
        assert not model.w1._forward_hooks
        assert not rpc.ListInterventions().interventions


def test_one_that_was_never_made_cannot_be_removed() -> None:
    with here(MLP()) as rpc:
        made = intervened(rpc, "w1", zero={})
        refusal = refused(lambda: rpc.RemoveInterventions(ids=[made.id, "intervention-9"]))
        assert refusal.reason == "UNKNOWN_INTERVENTION"
        assert len(rpc.ListInterventions().interventions) == 1
        assert len(rpc.RemoveInterventions(ids=[made.id]).interventions) == 1
        assert len(rpc.RemoveInterventions(ids=[made.id]).interventions) == 0
        assert refused(lambda: rpc.RemoveInterventions()).reason == "BAD_REQUEST"
