"""Transactions: all changes at one step boundary, in their order, or none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from modscope.tensor import chunks
from modscope.v1 import operation_pb2, operation_service_pb2, parameter_service_pb2, tensor_pb2
from modscope_server.inspection.tensors import to_data
from tests.server.change_kinds import CHANGES, Options, transaction, write
from tests.server.rpc import refused, serving, spec, training_loop, until
from tests.server.undo_support import OPTIMIZERS, Net, bits, make_model, optimizer_bits, stepper

Change = operation_service_pb2.Change
Message = operation_service_pb2.TransactRequest
Freeze = parameter_service_pb2.FreezeRequest
Unfreeze = parameter_service_pb2.UnfreezeRequest
Reinitialize = parameter_service_pb2.ReinitializeRequest


@pytest.fixture
def trainee() -> tuple[Net, torch.optim.Optimizer]:
    model = make_model()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    step = stepper(model, optimizer)
    for _ in range(3):
        step()
    return model, optimizer


def sent(*writes: tuple[str, torch.Tensor]) -> Iterator[Message]:
    """A transaction of writes with their bytes."""
    yield Message()
    for path, value in writes:
        yield Message(
            change=Change(write=parameter_service_pb2.WriteTensorRequest(path=path, spec=spec(value)))
        )
        for chunk in chunks(to_data(value).data):
            yield Message(data=bytes(chunk))
    yield Message(commit=True)


def test_bytes_of_several_writes() -> None:
    model = nn.Sequential(nn.Linear(900, 600), nn.Linear(600, 2))
    values = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    with serving(model) as rpc:
        operation = rpc.Transact(sent(*values.items())).operation
        assert (operation.kind, operation.outcome) == ("transaction", "applied")
        assert list(operation.paths) == list(values)
        assert len(rpc.ListOperations().operations) == 1
        for path in values:
            assert operation.after[path] == rpc.GetTensor(path=path).digest
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())


def test_each_change_finds_what_those_before_it_made(trainee: tuple[Net, torch.optim.Optimizer]) -> None:
    model, optimizer = trainee
    with serving(model, optimizer) as rpc:
        changes = [
            Change(freeze=Freeze(glob="first")),
            Change(freeze=Freeze(glob="norm")),
            Change(unfreeze=Unfreeze(glob="first.bias")),
            Change(freeze=Freeze(glob="last")),
            Change(write=write("first.bias", 1.0)),
            Change(write=write("first.bias", 2.0)),
        ]
        operation = rpc.Transact(transaction(*changes)).operation
        assert [name for name, tensor in model.named_parameters() if tensor.requires_grad] == ["first.bias"]
        assert torch.equal(model.first.bias, torch.full((4,), 2.0))
        assert operation.paths[:2] == ["first.weight", "first.bias"]
        assert operation.after["first.bias"] == rpc.GetTensor(path="first.bias").digest


def test_together_they_may_not_do_what_each_may(trainee: tuple[Net, torch.optim.Optimizer]) -> None:
    model, optimizer = trainee
    before = bits(model)
    with serving(model, optimizer) as rpc:
        changes = [Change(freeze=Freeze(glob=glob)) for glob in ("first", "norm", "last")]
        refusal = refused(lambda: rpc.Transact(transaction(*changes)))
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "WOULD_BREAK_TRAINING")
        assert refusal.message.startswith("change 3 (freeze): ")
        assert not rpc.ListOperations().operations
    assert bits(model) == before


THIRD: dict[str, tuple[Change, str]] = {
    "refused for its path": (Change(write=write("nothing", 1.0)), "UNKNOWN_PATH"),
    "refused for its glob": (Change(freeze=Freeze(glob="nothing")), "NO_MATCH"),
    "refused for its scheme": (Change(reinitialize=Reinitialize(scheme="nothing")), "UNKNOWN_SCHEME"),
    "refused for its value": (Change(write=write("first.weight", float("nan"))), "NOT_FINITE"),
    "failing while it is made": (Change(reinitialize=Reinitialize(glob="odd")), "SCHEME_UNSUITABLE"),
    "without a verb": (Change(), "BAD_REQUEST"),
}


@pytest.mark.parametrize(("third", "reason"), THIRD.values(), ids=THIRD)
def test_where_the_third_does_not_go_none_does(
    trainee: tuple[Net, torch.optim.Optimizer], third: Change, reason: str
) -> None:
    model, optimizer = trainee
    model.add_module("odd", _Odd(1, 1))
    model.first.weight.grad = torch.ones(4, 3)
    before = bits(model), optimizer_bits(model, optimizer)
    places = {name: tensor.data_ptr() for name, tensor in model.named_parameters()}
    changes = [Change(freeze=Freeze(glob="first")), Change(reinitialize=Reinitialize(glob="norm")), third]
    with serving(model, optimizer) as rpc:
        refusal = refused(lambda: rpc.Transact(transaction(*changes)))
        assert refusal.reason == reason
        assert reason == "SCHEME_UNSUITABLE" or refusal.message.startswith("change 3 (")
        outcomes = [one.outcome for one in rpc.ListOperations().operations]
        assert outcomes == (["failed"] if reason == "SCHEME_UNSUITABLE" else [])
    assert (bits(model), optimizer_bits(model, optimizer)) == before
    assert {name: tensor.data_ptr() for name, tensor in model.named_parameters()} == places
    assert model.first.weight.grad is not None
    assert torch.equal(model.first.weight.grad, torch.ones(4, 3))


class _Odd(nn.Linear):
    """Its reset_parameters raises when it is called again, half done."""

    made = False

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.weight.fill_(5.0)
        if self.made:
            raise ValueError("no")
        self.made = True


def test_all_of_it_takes_effect_at_one_step() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen: dict[int, set[tuple[float, float, float]]] = {}
    steps = 0

    mean = model.norm.running_mean
    assert mean is not None
    # So that neither the loop nor its forwards move the values.
    model.norm.momentum = 0.0

    def look(*_: Any) -> None:
        values = (model.first.bias[0].item(), mean[0].item(), model.last.bias[0].item())
        seen.setdefault(steps, set()).add(values)

    made: list[int] = []
    with serving(model, optimizer) as rpc:
        model.register_forward_hook(look)
        step = stepper(model, optimizer)

        def loop() -> None:
            nonlocal steps
            step()
            steps += 1

        with training_loop(loop):
            until(lambda: steps >= 2)
            for number in range(1, 21):
                paths = ("first.bias", "norm.running_mean", "last.bias")
                changes = [Change(write=write(path, float(number))) for path in paths]
                made.append(rpc.Transact(transaction(*changes)).operation.step)
            until(lambda: steps > made[-1] + 1)
    assert made == sorted(made)
    assert all(len(set(values)) == 1 for step in seen if step >= made[0] for values in seen[step])
    for number, at in enumerate(made, 1):
        last_there = number == 20 or made[number] > at
        assert not last_there or seen[at] == {(float(number),) * 3}


def test_a_transaction_is_undone_whole(trainee: tuple[Net, torch.optim.Optimizer]) -> None:
    model, optimizer = trainee
    before = bits(model), optimizer_bits(model, optimizer)
    changes = [
        Change(write=write("first.weight", 1.0)),
        Change(write=write("first.weight", 2.0)),
        Change(reinitialize=Reinitialize(glob="*")),
        Change(freeze=Freeze(glob="norm", norm_stats=True)),
    ]
    with serving(model, optimizer) as rpc:
        operation = rpc.Transact(transaction(*changes)).operation
        assert (bits(model), optimizer_bits(model, optimizer)) != before
        rpc.Undo(id=operation.id)
    assert (bits(model), optimizer_bits(model, optimizer)) == before


def test_a_dry_run_judges_all_of_it_and_does_nothing(trainee: tuple[Net, torch.optim.Optimizer]) -> None:
    model, optimizer = trainee
    before = bits(model), optimizer_bits(model, optimizer)
    dry = Options(dry_run=True)
    with serving(model, optimizer) as rpc:
        good = [Change(freeze=Freeze(glob="first")), Change(reinitialize=Reinitialize(glob="last"))]
        operation = rpc.Transact(transaction(*good, options=dry)).operation
        assert (operation.outcome, len(operation.paths)) == ("dry_run", 4)
        bad = [Change(freeze=Freeze(glob=glob)) for glob in ("first", "norm", "last")]
        assert refused(lambda: rpc.Transact(transaction(*bad, options=dry))).reason == "WOULD_BREAK_TRAINING"
        assert not rpc.ListOperations().operations
    assert (bits(model), optimizer_bits(model, optimizer)) == before


def test_a_retried_transaction_is_carried_out_once(trainee: tuple[Net, torch.optim.Optimizer]) -> None:
    model, optimizer = trainee
    options = Options(request_id="a")
    with serving(model, optimizer) as rpc:
        changes = [Change(reinitialize=Reinitialize(glob="first"))]
        first = rpc.Transact(transaction(*changes, options=options)).operation
        before = bits(model)
        assert rpc.Transact(transaction(*changes, options=options)).operation.id == first.id
        assert bits(model) == before


def malformed() -> dict[str, list[Message]]:
    fill = tensor_pb2.Scalar(real=1.0)
    value = parameter_service_pb2.WriteTensorRequest(path="first.bias", spec=spec(torch.zeros(4)))
    options = operation_pb2.ChangeOptions(dry_run=True)
    with_bytes = parameter_service_pb2.WriteTensorRequest(path="first.bias", fill=fill, data=b"1")
    freeze = Change(freeze=Freeze(glob="first"))
    return {
        "nothing": [Message()],
        "a change with a model": [Message(change=Change(freeze=Freeze(model="model", glob="first")))],
        "a change with options": [Message(change=Change(freeze=Freeze(glob="first", options=options)))],
        "a change with dry_run": [Message(change=Change(reinitialize=Reinitialize(dry_run=True)))],
        "a write with bytes in it": [Message(change=Change(write=with_bytes))],
        "options in the middle": [Message(change=freeze), Message(options=options)],
        "a model in the middle": [Message(change=freeze), Message(model="model")],
        "bytes that nothing announced": [Message(change=freeze), Message(data=b"1")],
        "bytes too few": [Message(change=Change(write=value), data=b"123")],
        "bytes too many": [Message(change=Change(write=value), data=bytes(17))],
        "bytes too few before the next": [
            Message(change=Change(write=value)),
            Message(change=Change(write=value)),
        ],
        "a change of nothing": [Message(change=Change())],
        "a change after the end": [Message(change=freeze, commit=True)],
    }


@pytest.mark.parametrize("messages", malformed().values(), ids=malformed())
def test_a_stream_that_is_no_transaction(messages: list[Message]) -> None:
    model = make_model()
    before = bits(model)
    with serving(model) as rpc:
        refusal = refused(lambda: rpc.Transact([*messages, Message(commit=True)]))
        assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
        assert refusal.hint
        assert refusal.fields
        assert not rpc.ListOperations().operations
    assert bits(model) == before


def test_a_stream_that_ends_without_saying_so_changes_nothing() -> None:
    model = make_model()
    before = bits(model)
    changes = [Message(), Message(change=Change(write=write("first.bias", 1.0)))]
    with serving(model) as rpc:
        refusal = refused(lambda: rpc.Transact(changes))
        assert (refusal.code, refusal.reason, refusal.fields) == (
            "INVALID_ARGUMENT",
            "BAD_REQUEST",
            ["commit"],
        )
    assert bits(model) == before


def test_a_stream_that_breaks_off_changes_nothing() -> None:
    model = make_model()
    before = bits(model)

    def broken() -> Iterator[Message]:
        yield Message()
        yield Message(change=Change(write=write("first.bias", 1.0)))
        raise RuntimeError("the caller is gone")

    with serving(model) as rpc:
        with pytest.raises(Exception, match="iterating requests"):
            rpc.Transact(broken())
        rpc.Transact(transaction(Change(write=write("last.bias", 1.0))))
        assert [list(one.paths) for one in rpc.ListOperations().operations] == [["last.bias"]]
    after = bits(model)
    assert {name for name in after if after[name] != before[name]} == {"last.bias"}


def test_every_verb_in_one() -> None:
    model = make_model()
    model.last.weight.requires_grad = False
    optimizer = OPTIMIZERS["adam"]([t for name, t in model.named_parameters() if name != "last.bias"])
    stepper(model, optimizer)()
    with serving(model, optimizer) as rpc:
        operation = CHANGES["transaction"](rpc, Options()).operation
        assert operation.outcome == "applied"
    group = optimizer.param_groups[0]
    assert group["lr"] == 0.25
    assert any(tensor is model.last.bias for tensor in group["params"])
    assert model.last.weight.requires_grad
    assert not model.norm.weight.requires_grad
    assert not model.norm.training
    assert model.first.weight not in optimizer.state
