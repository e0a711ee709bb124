"""ParameterService's mutating calls: what is written, frozen and initialised is so in the model."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import torch
from torch import nn

from modscope.v1 import parameter_service_pb2 as messages
from modscope.v1 import tensor_pb2
from modscope_server import Limits
from modscope_server.inspection.tensors import to_data
from tests.plain_models import MLP, Dtypes
from tests.server.parameter_messages import bits
from tests.server.rpc import admitted, refused, serving, spec, training_loop, until, uploaded


def write(rpc: Any, path: str, tensor: torch.Tensor, **options: Any) -> Any:
    first = messages.WriteTensorRequest(path=path, spec=spec(tensor), **options)
    return rpc.WriteTensor(uploaded(first, tensor)).operation


def test_a_write_keeps_the_tensor_and_the_optimizer_trains_it_on() -> None:
    model = nn.Linear(5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before, value = model.weight, torch.randn(4, 5)
    with serving(model, optimizer) as rpc:
        operation = write(rpc, "weight", value)
        assert (operation.kind, list(operation.paths), operation.outcome) == ("write", ["weight"], "applied")
        assert model.weight is before
        assert torch.equal(model.weight, value)
        model(torch.ones(1, 5)).sum().backward()
        optimizer.step()
        assert torch.equal(model.weight, value - 0.1)


def test_a_write_larger_than_a_message() -> None:
    model = nn.Linear(2000, 1200)
    value = torch.randn(1200, 2000)
    with serving(model) as rpc:
        write(rpc, "weight", value)
    assert torch.equal(model.weight, value)


def test_every_dtype_is_written_bit_for_bit() -> None:
    model, other = Dtypes(), Dtypes()
    named = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    targets = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with serving(model) as rpc:
        for path, tensor in named.items():
            write(rpc, path, tensor, allow_non_finite=True)
            assert bits(targets[path]) == bits(tensor), path


def test_a_fill_takes_the_targets_dtype() -> None:
    model = nn.Linear(3, 2).to(torch.bfloat16)
    with serving(model) as rpc:
        rpc.WriteTensor([messages.WriteTensorRequest(path="weight", fill=tensor_pb2.Scalar(real=0.5))])
        rpc.WriteTensor([messages.WriteTensorRequest(path="bias", fill=tensor_pb2.Scalar(integer=3))])
    assert torch.equal(model.weight, torch.full((2, 3), 0.5, dtype=torch.bfloat16))
    assert torch.equal(model.bias, torch.full((2,), 3, dtype=torch.bfloat16))


def test_a_cast_only_on_demand() -> None:
    model = nn.Linear(3, 2)
    value = torch.randn(2, 3, dtype=torch.float64)
    with serving(model) as rpc:
        refusal = refused(lambda: write(rpc, "weight", value))
        assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "DTYPE_MISMATCH")
        assert "float64" in refusal.message
        assert "float32" in refusal.message
        write(rpc, "weight", value, cast=True)
    assert torch.equal(model.weight, value.float())


def first_of(tensor: torch.Tensor, path: str = "weight", **changes: Any) -> messages.WriteTensorRequest:
    request = messages.WriteTensorRequest(path=path, spec=spec(tensor))
    for name, value in changes.items():
        setattr(request.spec, name, value)
    return request


def data_of(size: int) -> messages.WriteTensorRequest:
    return messages.WriteTensorRequest(data=b"\0" * size)


def refusals() -> dict[str, tuple[list[messages.WriteTensorRequest], str]]:
    right = torch.zeros(2, 3)
    nan = torch.full((2, 3), float("nan"))
    unknown = first_of(right)
    unknown.spec.dtype, unknown.spec.dtype_name, unknown.spec.byte_size = 0, "float3", 24  # type: ignore[assignment]
    huge = first_of(right)
    huge.spec.shape[:] = [2**40, 2**20]
    huge.spec.byte_size = 2**62
    bare = messages.WriteTensorRequest
    return {
        "shape": ([first_of(torch.zeros(3, 2)), data_of(24)], "SHAPE_MISMATCH"),
        "broadcast": ([first_of(torch.zeros(3)), data_of(12)], "SHAPE_MISMATCH"),
        "huge": ([huge], "SHAPE_MISMATCH"),
        "dtype": ([first_of(right.int()), data_of(24)], "DTYPE_MISMATCH"),
        "unknown dtype": ([unknown, data_of(24)], "UNKNOWN_DTYPE"),
        "nan": ([first_of(nan), bare(data=bytes(to_data(nan).data))], "NOT_FINITE"),
        "path": ([first_of(right, "wieght"), data_of(24)], "UNKNOWN_PATH"),
        "no bytes": ([first_of(right)], "BAD_REQUEST"),
        "too few bytes": ([first_of(right), data_of(23)], "BAD_REQUEST"),
        "too many bytes": ([first_of(right), data_of(24), data_of(1)], "BAD_REQUEST"),
        "nothing": ([], "UNKNOWN_PATH"),
        "neither": ([bare(path="weight")], "BAD_REQUEST"),
        "both": (
            [bare(path="weight", spec=spec(right), fill=tensor_pb2.Scalar(real=1)), data_of(24)],
            "BAD_REQUEST",
        ),
        "bytes beside a fill": (
            [bare(path="weight", fill=tensor_pb2.Scalar(real=1)), data_of(4)],
            "BAD_REQUEST",
        ),
        "empty fill": ([bare(path="weight", fill=tensor_pb2.Scalar())], "BAD_REQUEST"),
        "text": ([bare(path="weight", fill=tensor_pb2.Scalar(text="1"))], "BAD_REQUEST"),
        "contradicting size": ([first_of(right, byte_size=23), data_of(23)], "BAD_REQUEST"),
        "contradicting dtype": ([first_of(right, dtype_name="int8"), data_of(24)], "BAD_REQUEST"),
        "negative": (
            [bare(path="weight", spec=tensor_pb2.TensorSpec(dtype_name="int8", shape=[-1]))],
            "BAD_REQUEST",
        ),
    }


@pytest.mark.parametrize("name", refusals())
def test_a_write_that_is_refused_changes_nothing(name: str) -> None:
    model = nn.Linear(3, 2)
    before = copy.deepcopy(model.state_dict())
    requests, reason = refusals()[name]
    with serving(model) as rpc:
        refusal = refused(lambda: rpc.WriteTensor(requests))
        assert refusal.reason == reason, refusal.message
        if reason == "SHAPE_MISMATCH":
            assert "[2, 3]" in refusal.message
            assert str(list(requests[0].spec.shape)) in refusal.message
        assert rpc.ReadTensor(path="weight").data == bits(before["weight"])[2]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_wrong_shape_is_refused_before_the_bytes_are_awaited() -> None:
    never = threading.Event()

    def requests() -> Iterator[messages.WriteTensorRequest]:
        yield first_of(torch.zeros(9, 9))
        never.wait(60)

    with serving(nn.Linear(3, 2)) as rpc:
        assert refused(lambda: rpc.WriteTensor(requests())).reason == "SHAPE_MISMATCH"
        never.set()


def test_a_write_that_breaks_off_changes_nothing_and_gives_its_memory_back() -> None:
    model = nn.Linear(300, 300)
    before = model.weight.detach().clone()

    def broken() -> Iterator[messages.WriteTensorRequest]:
        yield first_of(torch.zeros(300, 300))
        yield data_of(100_000)
        raise ConnectionResetError

    with serving(model, limits=Limits(staging_bytes=400_000)) as rpc:
        for _ in range(5):
            with pytest.raises(grpc.RpcError):
                rpc.WriteTensor(broken())
        assert torch.equal(model.weight, before)
        until(lambda: admitted(lambda: write(rpc, "weight", torch.ones(300, 300))))
    assert torch.equal(model.weight, torch.ones(300, 300))


def test_a_write_waits_for_the_backward_and_is_withdrawn_at_its_deadline() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    holding, released = threading.Event(), threading.Event()

    def step() -> None:
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3)).sum()
        holding.set()
        # Busy, and at ever other instructions: a thread that seems to stand still would count as idle.
        while not released.is_set():
            sum(range(500))
            max(range(500))
            min(range(500))
            len(list(range(500)))
        loss.backward()
        optimizer.step()

    fill = messages.WriteTensorRequest(path="weight", fill=tensor_pb2.Scalar(real=2.0))
    with serving(model, optimizer) as rpc, training_loop(step):
        assert holding.wait(30)
        refusal = refused(lambda: rpc.WriteTensor([fill], timeout=3.0))
        assert (refusal.code, refusal.reason) == ("DEADLINE_EXCEEDED", "NO_SAFE_POINT")
        assert "forward" in refusal.message
        released.set()
        operation = rpc.Freeze(glob="bias").operation
        assert not torch.equal(model.weight, torch.full((1, 3), 2.0))
        assert operation.step >= 1
        rpc.WriteTensor([fill])
        assert torch.equal(model.weight, torch.full((1, 3), 2.0))


def test_freeze_and_unfreeze_by_glob_and_type() -> None:
    model = nn.Sequential(MLP(), nn.BatchNorm1d(1))
    with serving(model) as rpc:
        operation = rpc.Freeze(glob="0.*").operation
        assert list(operation.paths) == [f"0.{path}" for path, _ in model[0].named_parameters()]
        assert [p.requires_grad for p in model.parameters()] == [False] * 6 + [True] * 2
        assert list(rpc.Unfreeze(type="Linear", glob="*.w1.*").operation.paths) == [
            "0.w1.weight",
            "0.w1.bias",
        ]
        assert [p.requires_grad for p in model.parameters()] == [True] * 2 + [False] * 4 + [True] * 2
        for call in (rpc.Freeze, rpc.Unfreeze):
            refusal = refused(lambda call=call: call(glob="9.*", type="Linear"))  # type: ignore[misc]
            assert (refusal.code, refusal.reason) == ("NOT_FOUND", "NO_MATCH")
            assert "'9.*'" in refusal.message
            assert "'Linear'" in refusal.message


def test_nothing_left_to_train_needs_force() -> None:
    model = nn.Linear(2, 1)
    with serving(model) as rpc:
        refusal = refused(lambda: rpc.Freeze())
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "WOULD_BREAK_TRAINING")
        assert model.weight.requires_grad
        rpc.Freeze(force=True)
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_an_optimizer_that_a_scaler_steps_keeps_something_to_train() -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in model]
    scaler = torch.amp.GradScaler("cpu")
    with serving(model, optimizers, extras={"scaler": scaler}) as rpc:
        refusal = refused(lambda: rpc.Freeze(glob="0.*"))
        assert refusal.reason == "WOULD_BREAK_TRAINING"
        assert "SGD" in refusal.message
    with serving(model, optimizers) as rpc:
        rpc.Freeze(glob="0.*")


def test_reinitialize_equals_apply() -> None:
    model = nn.Sequential(MLP(4, 5, 6, 7), nn.BatchNorm1d(7))
    twin = copy.deepcopy(model)

    def init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)

    state = torch.get_rng_state()
    with serving(model) as rpc:
        operation = rpc.Reinitialize(
            type="Linear",
            parameter="weight",
            scheme="normal_",
            arguments={"mean": tensor_pb2.Scalar(real=0.0), "std": tensor_pb2.Scalar(real=0.02)},
            seed=7,
        ).operation
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    twin.apply(init)
    for (path, own), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(own, other), path
    assert list(operation.paths) == ["0.w1.weight", "0.w2.weight", "0.w3.weight"]
    assert (operation.kind, operation.outcome) == ("reinitialize", "applied")


def test_a_dry_run_tells_and_does_nothing() -> None:
    model = MLP()
    before = copy.deepcopy(model.state_dict())
    with serving(model) as rpc:
        operation = rpc.Reinitialize(dry_run=True).operation
    assert operation.outcome == "dry_run"
    assert list(operation.paths) == [path for path, _ in model.named_parameters()]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("keep", [False, True])
def test_the_optimizer_forgets_what_was_initialised_unless_told_otherwise(keep: bool) -> None:
    model = MLP()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    with serving(model, optimizer) as rpc:
        operation = rpc.Reinitialize(glob="w1", keep_optimizer_state=keep).operation
    assert (model.w1.weight in optimizer.state) is keep
    assert model.w2.weight in optimizer.state
    assert any("begins anew" in note for note in operation.notes) is not keep


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"scheme": "normal"}, "UNKNOWN_SCHEME", "scheme"),
        ({"scheme": "kaiming_normal_"}, "SCHEME_UNSUITABLE", "scheme"),
        ({"scheme": "normal_", "glob": "w9"}, "NO_MATCH", "glob"),
        ({"scheme": "normal_", "parameter": "wait"}, "NO_MATCH", "parameter"),
        ({"scheme": "normal_", "glob": "["}, "BAD_GLOB", "glob"),
        (
            {"scheme": "normal_", "arguments": {"sigma": tensor_pb2.Scalar(real=1)}},
            "BAD_REQUEST",
            "arguments.sigma",
        ),
        ({"scheme": "normal_", "arguments": {"std": tensor_pb2.Scalar()}}, "BAD_REQUEST", "arguments.std"),
    ],
)
def test_a_reinitialisation_that_is_refused_changes_nothing(
    fields: dict[str, Any], reason: str, field: str
) -> None:
    model = MLP()
    before = copy.deepcopy(model.state_dict())
    with serving(model) as rpc:
        refusal = refused(lambda: rpc.Reinitialize(**fields))
    assert (refusal.reason, refusal.fields) == (reason, [field])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_mutating_calls_are_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "modscope_server"), serving(MLP()) as rpc:
        rpc.Freeze(glob="w1")
    lines = [record.getMessage() for record in caplog.records if record.name == "modscope_server"]
    assert any(line.startswith("op-1: freeze of model (2 tensors) at step 0 by operator ") for line in lines)
