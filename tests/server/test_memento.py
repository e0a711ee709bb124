"""Mementos: what they keep comes back bit for bit, at once and much later."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable

import pytest
import torch
from torch import nn

from modscope_server.inspection.memento import Memento
from modscope_server.inspection.tensors import to_data
from tests.server.undo_support import OPTIMIZERS, bits, optimizer_bits, trained


def kept_whole(model: nn.Module, optimizer: torch.optim.Optimizer) -> Memento:
    memento = Memento()
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        memento.keep_tensor(path, tensor)
    memento.keep_groups(optimizer)
    for group in optimizer.param_groups:
        for param in group["params"]:
            memento.keep_state(optimizer, param)
    for module in model.modules():
        memento.keep_training(module)
    return memento


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("way", ["roll_back", "restore"])
def test_model_and_optimizer_come_back(make: Callable[..., torch.optim.Optimizer], way: str) -> None:
    model, optimizer, step = trained(make)
    before = bits(model), optimizer_bits(model, optimizer)
    memento = kept_whole(model, optimizer)
    for _ in range(3):
        step()
    model.eval()
    model.first.weight.requires_grad = False
    optimizer.param_groups[0]["lr"] = 7.0
    assert bits(model) != before[0]
    assert optimizer_bits(model, optimizer) != before[1]
    getattr(memento, way)()
    assert (bits(model), optimizer_bits(model, optimizer)) == before


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_was_restored_trains_on_as_a_copy_does(make: Callable[..., torch.optim.Optimizer]) -> None:
    model, optimizer, step = trained(make)
    memento = kept_whole(model, optimizer)
    torch.manual_seed(1)
    for _ in range(3):
        step()
    once = bits(model), optimizer_bits(model, optimizer)
    for _ in range(2):
        memento.restore()
        torch.manual_seed(1)
        for _ in range(3):
            step()
        assert (bits(model), optimizer_bits(model, optimizer)) == once


def test_a_state_that_was_not_there_goes() -> None:
    model, optimizer, step = trained(OPTIMIZERS["adam"], steps=0)
    memento = Memento()
    memento.keep_state(optimizer, model.first.weight)
    assert model.first.weight not in optimizer.state
    step()
    assert memento.nbytes == 0
    memento.restore()
    assert model.first.weight not in optimizer.state
    assert model.first.bias in optimizer.state


def test_identity_is_kept() -> None:
    model, optimizer, step = trained(OPTIMIZERS["adam"])
    weight = model.first.weight
    state = optimizer.state[weight]
    places = (weight.data_ptr(), id(state), id(state["exp_avg"]), id(optimizer.param_groups[0]["params"]))
    memento = kept_whole(model, optimizer)
    step()
    memento.restore()
    state = optimizer.state[weight]
    assert places == (
        weight.data_ptr(), id(state), id(state["exp_avg"]), id(optimizer.param_groups[0]["params"]),
    )  # fmt: skip


def test_a_rollback_leaves_the_version_and_gives_replaced_memory_back() -> None:
    weight = nn.Parameter(torch.arange(4.0))
    memento = Memento()
    memento.keep_tensor("weight", weight)
    version, place = weight._version, weight.data_ptr()
    weight.data = torch.zeros(4)
    memento.roll_back()
    assert (weight._version, weight.data_ptr()) == (version, place)
    assert weight.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_later_restore_writes_into_the_memory_that_there_is_now() -> None:
    weight = nn.Parameter(torch.arange(4.0))
    memento = Memento()
    memento.keep_tensor("weight", weight)
    weight.data = torch.zeros(4)
    place = weight.data_ptr()
    memento.restore()
    assert weight.data_ptr() == place
    assert weight.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_another_shape_is_an_obstacle() -> None:
    weight = nn.Parameter(torch.arange(4.0))
    memento = Memento()
    memento.keep_tensor("weight", weight)
    assert memento.obstacle() == ""
    weight.data = torch.zeros(2)
    assert memento.obstacle() == "a tensor was float32 [4] and is float32 [2] now"


def test_a_gradient_comes_back_in_a_rollback_and_never_later() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = grad = torch.ones(2)
    memento = Memento()
    memento.keep_gradient(weight)
    grad.zero_()
    weight.grad = None
    memento.roll_back()
    assert weight.grad is grad
    assert grad.tolist() == [1.0, 1.0]
    weight.grad = None
    memento.restore()
    assert weight.grad is None


def test_settled_it_holds_what_changed_alone() -> None:
    model, optimizer, _ = trained(OPTIMIZERS["adam"])
    memento = Memento()
    memento.keep_flag("first.weight", model.first.weight)
    memento.keep_flag("first.bias", model.first.bias)
    memento.keep_groups(optimizer)
    memento.keep_state(optimizer, model.first.weight)
    memento.keep_state(optimizer, model.first.bias)
    memento.keep_training(model)
    model.first.bias.requires_grad = False
    optimizer.param_groups[0]["lr"] = 0.5
    del optimizer.state[model.first.weight]
    memento.settle()
    group = optimizer.param_groups[0]
    assert memento.keys == {
        ("flag", id(model.first.bias)),
        ("groups", id(optimizer), id(group), "lr"),
        ("state", id(optimizer), id(model.first.weight)),
    }
    optimizer.param_groups[0]["weight_decay"] = 0.25
    memento.restore()
    assert (group["lr"], group["weight_decay"]) == (0.01, 0.25)


def test_again_keeps_the_same_things_as_they_are_then() -> None:
    model, optimizer, step = trained(OPTIMIZERS["adamw"])
    memento = kept_whole(model, optimizer)
    step()
    after = bits(model), optimizer_bits(model, optimizer)
    now = memento.again()
    assert now.keys == memento.keys
    memento.restore()
    assert (bits(model), optimizer_bits(model, optimizer)) != after
    now.restore()
    assert (bits(model), optimizer_bits(model, optimizer)) == after


def test_of_two_that_are_one_the_first_holds() -> None:
    weight = nn.Parameter(torch.zeros(2))
    first, second = Memento(), Memento()
    first.keep_tensor("weight", weight)
    with torch.no_grad():
        weight.fill_(1.0)
    second.keep_tensor("also.weight", weight)
    with torch.no_grad():
        weight.fill_(2.0)
    first.absorb(second)
    first.restore()
    assert weight.tolist() == [0.0, 0.0]
    assert set(first.digests()) == {"weight", "also.weight"}


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3),
        torch.tensor(2.5, dtype=torch.bfloat16),
        torch.zeros(0, 3, dtype=torch.int64),
        torch.arange(6.0).reshape(2, 3).t(),
        torch.tensor([1 + 2j]).conj(),
        torch.tensor(1.5).expand(1, 1),
        torch.tensor(1.5).expand(3, 2),
    ],
    ids=["plain", "scalar", "empty", "strided", "conjugate", "expanded to one", "expanded"],
)
def test_digests_are_those_of_the_contract(tensor: torch.Tensor) -> None:
    memento = Memento()
    memento.keep_tensor("t", tensor)
    data = to_data(copy.deepcopy(tensor))
    text = data.dtype.encode() + str(list(data.shape)).encode() + bytes(data.data)
    assert memento.digests() == {"t": f"sha256:{hashlib.sha256(text).hexdigest()}"}


def test_present_values_are_copied_unless_they_are_known() -> None:
    weight, bias, whole = torch.zeros(2), torch.zeros(2), torch.zeros(4)
    left, right = whole[:2], whole[1:3]
    memento = Memento()
    for path, tensor in {"weight": weight, "bias": bias, "left": left, "right": right}.items():
        memento.keep_tensor(path, tensor)
    known = memento.ids({"weight": torch.ones(2), "left": torch.ones(2), "elsewhere": torch.ones(2)})
    assert (known[id(weight)] is None, known[id(bias)] is None) == (False, True)
    values = memento.values_now(known)
    assert {path: value.tolist() for path, value in values.items()} == {
        "weight": [1.0, 1.0], "bias": [0.0, 0.0], "left": [0.0, 0.0], "right": [0.0, 0.0],
    }  # fmt: skip
    bias.fill_(2.0)
    assert values["bias"].tolist() == [0.0, 0.0]


def test_a_sparse_tensor_is_kept_and_has_no_digest() -> None:
    tensor = torch.eye(2).to_sparse()
    memento = Memento()
    memento.keep_tensor("t", tensor)
    assert memento.digests() == {}
    tensor.zero_()
    memento.restore()
    assert tensor.to_dense().equal(torch.eye(2))


def test_other_things_can_be_kept_again_where_they_say_how() -> None:
    box = [1]

    def keep(memento: Memento) -> None:
        value = box[0]
        memento.keep(("box",), lambda: box.__setitem__(0, value), again=keep)

    memento = Memento()
    keep(memento)
    box[0] = 2
    now = memento.again()
    memento.restore()
    assert (box, memento.repeatable) == ([1], True)
    now.restore()
    assert box == [2]
    memento.keep("odd", lambda: None)
    assert not memento.repeatable
