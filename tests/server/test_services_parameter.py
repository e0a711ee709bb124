"""ParameterService over raw gRPC: what is listed, read, written, frozen and initialised is PyTorch's own."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from modscope.tensor import TensorData, digest
from modscope_server import Limits
from modscope_server.inspection import parameters
from modscope_server.inspection.statistics import statistics
from modscope_server.inspection.tensors import from_data, has_grad, to_data
from tests.plain_models import MLP, Buffers, Dtypes, Tied, lazy
from tests.server.parameter_messages import bits
from tests.server.rpc import joined, refused, serving, training_loop


def announced(message: Any) -> Any:
    return message.tensor.spec if message.HasField("tensor") else None


def parameters_of(stream: Any) -> list[Any]:
    return [parameter for message in stream for parameter in message.parameters]


def of_message(message: Any) -> tuple[str, tuple[int, ...], bytes]:
    return message.spec.dtype_name, tuple(message.spec.shape), message.data


def test_parameters_are_named_parameters() -> None:
    model = Tied()
    optimizer = torch.optim.SGD([{"params": [parameter]} for parameter in model.parameters()], lr=0.1)
    next(model.parameters()).requires_grad_(False)
    with serving(model, optimizer) as rpc:
        listed = parameters_of(rpc.ListParameters())
        named = dict(model.named_parameters())
        assert [parameter.path for parameter in listed] == list(named)
        for index, (message, tensor) in enumerate(zip(listed, named.values(), strict=True)):
            assert tuple(message.shape) == tuple(tensor.shape)
            assert (message.numel, message.dtype, message.device) == (tensor.numel(), "float32", "cpu")
            assert (message.requires_grad, message.has_grad) == (tensor.requires_grad, False)
            assert message.optimizer == index
            assert not message.HasField("stats")
        every = [path for path, _ in model.named_parameters(remove_duplicate=False)]
        assert sorted([p.path for p in listed] + [path for p in listed for path in p.tied_with]) == sorted(
            every
        )
        trainable = parameters_of(rpc.ListParameters(requires_grad=True))
        assert [p.path for p in trainable] == [path for path, p in named.items() if p.requires_grad]
        assert len(parameters_of(rpc.ListParameters(requires_grad=False))) == 1


def test_parameters_by_glob_module_and_type() -> None:
    model = nn.Sequential(MLP(), nn.BatchNorm1d(1), MLP())
    with serving(model) as rpc:

        def paths(**fields: Any) -> list[str]:
            return [parameter.path for parameter in parameters_of(rpc.ListParameters(**fields))]

        assert paths(glob="0.w1") == ["0.w1.weight", "0.w1.bias"]
        assert paths(glob="*.w1.weight") == ["0.w1.weight", "2.w1.weight"]
        assert paths(type="BatchNorm1d") == ["1.weight", "1.bias"]
        assert paths(glob="nothing") == []
        assert refused(lambda: rpc.ListParameters(glob="{")).reason == "BAD_GLOB"


def test_statistics_of_a_list_are_those_of_the_tensors() -> None:
    model = MLP(5, 7, 3, 2)
    with serving(model) as rpc:
        for message in parameters_of(rpc.ListParameters(stats=True)):
            record = statistics(model.get_parameter(message.path))
            told = message.stats
            assert (told.count, told.zeros, told.nan, told.inf) == (
                record.count,
                record.zeros,
                record.nan,
                record.inf,
            )
            assert (told.mean, told.std, told.norm) == (record.mean, record.std, record.norm)
            assert (told.min, told.max) == (record.min, record.max)


def test_buffers_are_named_buffers() -> None:
    model = Buffers()
    with serving(model) as rpc:
        listed = [buffer for message in rpc.ListBuffers(stats=True) for buffer in message.buffers]
        assert [buffer.path for buffer in listed] == [path for path, _ in model.named_buffers()]
        kept = set(model.state_dict())
        assert {buffer.path: buffer.persistent for buffer in listed} == {
            path: path in kept for path, _ in model.named_buffers()
        }


def test_one_tensor_whole() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    weight = model.get_parameter("0.weight")
    with serving(model) as rpc:
        answer = rpc.GetTensor(path="0.weight", stats=True)
        assert answer.WhichOneof("tensor") == "parameter"
        assert answer.digest == digest(to_data(weight))
        assert answer.parameter.stats.norm == pytest.approx(float(weight.detach().norm()), rel=1e-6)
        buffer = rpc.GetTensor(path="1.running_var")
        assert buffer.WhichOneof("tensor") == "buffer"
        assert buffer.buffer.persistent
        assert not buffer.buffer.HasField("stats")
        assert refused(lambda: rpc.GetTensor(path="0.wieght")).reason == "UNKNOWN_PATH"


def test_a_tensor_that_cannot_be_read_is_still_described() -> None:
    with serving(lazy()) as rpc:
        unreadable = [p.path for p in parameters_of(rpc.ListParameters(stats=True)) if p.unreadable]
        assert unreadable
        answer = rpc.GetTensor(path=unreadable[0], stats=True)
        assert answer.parameter.unreadable.startswith("uninitialized")
        assert answer.digest == ""
        refusal = refused(lambda: rpc.ReadTensor(path=unreadable[0]))
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "NOT_MATERIALIZED")
        assert refused(lambda: rpc.ReadTensors(paths=unreadable)).reason == "NOT_MATERIALIZED"


def test_every_dtype_is_read_bit_for_bit() -> None:
    model = Dtypes()
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with serving(model) as rpc:
        for path, tensor in named.items():
            assert of_message(rpc.ReadTensor(path=path)) == bits(tensor), path
        together = joined(rpc.ReadTensors(paths=list(named)), announced)
        assert [(t.dtype, t.shape, t.data) for t in together] == [bits(tensor) for tensor in named.values()]


def test_large_tensors_come_in_chunks() -> None:
    model = nn.Linear(600, 700)
    with serving(model) as rpc:
        small = rpc.ReadTensor(path="weight")
        assert small.too_large
        assert small.data == b""
        assert small.spec.byte_size == 4 * 600 * 700
        stream = list(rpc.ReadTensors(paths=["weight", "bias", "weight"]))
        assert [message.tensor.key for message in stream if message.HasField("tensor")] == [
            "weight",
            "bias",
            "weight",
        ]
        weight, bias, again = joined(stream, announced)
        assert torch.equal(from_data(weight), model.weight)
        assert torch.equal(from_data(bias), model.bias)
        assert weight == again


def test_gradients_and_optimizer_state_are_read() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters())
    with serving(model, optimizer) as rpc:
        refusal = refused(lambda: rpc.ReadTensor(path="weight", what="grad"))
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "NO_GRAD")
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        assert model.weight.grad is not None
        assert of_message(rpc.ReadTensor(path="weight", what="grad")) == bits(model.weight.grad)
        moment = optimizer.state[model.weight]["exp_avg"]
        assert of_message(rpc.ReadTensor(path="weight", what="exp_avg")) == bits(moment)
        (streamed,) = joined(rpc.ReadTensors(paths=["weight"], what="exp_avg"), announced)
        assert (streamed.dtype, streamed.shape, streamed.data) == bits(moment)
        refusal = refused(lambda: rpc.ReadTensor(path="weight", what="momentum"))
        assert (refusal.reason, refusal.fields) == ("BAD_REQUEST", ["what"])
        assert "exp_avg" in refusal.hint


def test_beside_a_running_loop_nobody_looks_at_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trains: set[int] = set()
    looks: set[int] = set()

    def look(tensor: torch.Tensor) -> bool:
        looks.add(threading.get_ident())
        return has_grad(tensor)

    def step() -> None:
        trains.add(threading.get_ident())
        model(torch.zeros(1, 1)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    monkeypatch.setattr(parameters, "has_grad", look)
    with serving(model, optimizer) as rpc, training_loop(step):
        for _ in range(20):
            assert len(parameters_of(rpc.ListParameters())) == 6
            assert rpc.GetTensor(path="w1.weight").digest
            assert len(joined(rpc.ReadTensors(paths=["w1.weight", "w1.bias"], what="grad"), announced)) == 2
    assert looks == trains


def test_a_read_beyond_the_staging_memory_is_refused_and_gives_it_back() -> None:
    model = nn.Linear(1000, 1000)
    with serving(model, limits=Limits(staging_bytes=5_000_000)) as rpc:
        for _ in range(3):
            refusal = refused(lambda: rpc.ReadTensors(paths=["weight", "weight"]))
            assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "LIMIT")
            assert len(joined(rpc.ReadTensors(paths=["weight"]), announced)) == 1
            assert rpc.GetTensor(path="weight").digest


def test_reads_of_a_running_loop_are_whole_and_of_one_step() -> None:
    model = nn.Sequential(nn.Linear(200, 200, bias=False), nn.Linear(200, 200, bias=False))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def step() -> None:
        optimizer.zero_grad()
        (model(torch.zeros(1, 200)).sum() + sum(p.sum() for p in model.parameters())).backward()
        optimizer.step()

    with serving(model, optimizer) as rpc, training_loop(step):
        for _ in range(20):
            message = rpc.ReadTensor(path="0.weight")
            value = from_data(TensorData("float32", (200, 200), message.data))
            assert torch.equal(value, torch.full((200, 200), -float(message.step)))
            first, *rest = rpc.ReadTensors(paths=["0.weight", "1.weight"])
            for tensor in joined(rest, announced):
                assert torch.equal(from_data(tensor), torch.full((200, 200), -float(first.step)))
