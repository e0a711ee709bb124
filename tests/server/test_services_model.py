"""ModelService over raw gRPC, against what PyTorch says of the same model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import torch
from torch import nn

from modscope.tensor import TensorData
from modscope.v1 import model_service_pb2 as messages
from modscope.v1 import value_pb2
from modscope_server.inspection.tensors import from_data, to_data
from tests.models import wide
from tests.plain_models import MLP, Head
from tests.server.rpc import joined, refused, serving, spec


def modules_of(stream: Any) -> list[Any]:
    return [module for message in stream for module in message.modules]


def test_a_model_is_described() -> None:
    model = Head()
    optimizer = torch.optim.Adam(model.parameters())
    model.mlp.w1.requires_grad_(False)
    with serving(model, optimizer, name="head", writable=False) as rpc:
        (info,) = rpc.ListModels().models
        assert info == rpc.GetModel().model == rpc.GetModel(model="head").model
    assert (info.name, info.type, info.training, info.step) == ("head", "Head", True, 0)
    assert info.modules == len(list(model.modules()))
    assert info.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert info.trainable_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (info.optimizers, info.writable) == (1, False)


def test_models_come_in_pages() -> None:
    with serving({f"m{number}": nn.ReLU() for number in range(7)}) as rpc:
        names: list[str] = []
        token = ""
        while True:
            page = rpc.ListModels(page_size=3, page_token=token)
            assert len(page.models) <= 3
            names += [info.name for info in page.models]
            token = page.next_page_token
            if not token:
                break
        assert names == [f"m{number}" for number in range(7)]


@pytest.mark.parametrize("token", ["x", "-1", "8", "9" * 5000, "\u0661"])
def test_a_page_token_that_no_call_gave(token: str) -> None:
    with serving({f"m{number}": nn.ReLU() for number in range(7)}) as rpc:
        refusal = refused(lambda: rpc.ListModels(page_token=token))
        assert (refusal.code, refusal.reason, refusal.fields) == (
            "INVALID_ARGUMENT",
            "BAD_REQUEST",
            ["page_token"],
        )
        assert refused(lambda: rpc.ListChildren(model="m0", page_size=-1)).fields == ["page_size"]


def test_children_are_named_children() -> None:
    model = Head()
    with serving(model) as rpc:
        answer = rpc.ListChildren()
        assert [(m.path, m.type) for m in answer.modules] == [("mlp", "MLP")]
        below = rpc.ListChildren(path="mlp").modules
        assert [(m.path, m.name) for m in below] == [
            (f"mlp.{name}", name) for name, _ in model.mlp.named_children()
        ]
        assert len(rpc.ListChildren(path="mlp", page_size=2).modules) == 2
        refusal = refused(lambda: rpc.ListChildren(path="mpl"))
        assert (refusal.code, refusal.reason) == ("NOT_FOUND", "UNKNOWN_PATH")
        assert "mlp" in refusal.hint


def test_modules_are_named_modules() -> None:
    model = Head()
    with serving(model) as rpc:
        listed = modules_of(rpc.ListModules())
        assert [m.path for m in listed] == [path for path, _ in model.named_modules()]
        assert [m.qualified_type.rpartition(".")[2] for m in listed] == [
            type(m).__name__ for m in model.modules()
        ]
        assert [m.path for m in modules_of(rpc.ListModules(glob="mlp.w?"))] == ["mlp.w1", "mlp.w2", "mlp.w3"]
        assert [m.path for m in modules_of(rpc.ListModules(type="torch.nn.Linear", glob="*.w1"))] == [
            "mlp.w1"
        ]
        assert [m.path for m in modules_of(rpc.ListModules(glob=""))] == [""]
        (batch,) = rpc.ListModules(glob="nothing*")
        assert list(batch.modules) == []
        refusal = refused(lambda: rpc.ListModules(glob="["))
        assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "BAD_GLOB")


def test_modules_below_a_root_to_a_depth() -> None:
    model = nn.Sequential(MLP(), nn.Sequential(MLP(), nn.Sequential(MLP())))
    shared = MLP()
    model.add_module("a", nn.ModuleDict({"x": shared}))
    model.add_module("b", shared)
    with serving(model) as rpc:
        for depth in range(4):
            paths = [m.path for m in modules_of(rpc.ListModules(root="1", depth=depth))]
            assert paths == [
                path
                for path, _ in model.named_modules()
                if path == "1" or (path.startswith("1.") and path.count(".") <= depth)
            ]
        assert len(modules_of(rpc.ListModules(root="", depth=0))) == 1
        assert len(modules_of(rpc.ListModules(root=""))) == len(list(model.modules()))
        below = modules_of(rpc.ListModules(root="b"))
        assert [m.path for m in below] == ["b", "b.w1", "b.w2", "b.w3"]
        assert list(below[0].aliases) == ["a.x"]
        assert refused(lambda: rpc.ListModules(root="2")).reason == "UNKNOWN_PATH"


def test_many_modules_come_in_batches_of_1024() -> None:
    model = wide(3000)
    with serving(model) as rpc:
        batches = [len(message.modules) for message in rpc.ListModules()]
        total = len(list(model.modules()))
        assert sum(batches) == total
        assert batches[:-1] == [1024] * (total // 1024)


def test_one_module_whole() -> None:
    model = Head()
    with serving(model) as rpc:
        answer = rpc.GetModule(path="mlp.w1")
        assert answer.module.repr == repr(model.mlp.w1)
        assert (answer.module.parameters, answer.module.type) == (6, "Linear")
        assert rpc.GetModule().module.repr == repr(model)
        assert not modules_of(rpc.ListModules())[0].HasField("repr")
        assert refused(lambda: rpc.GetModule(path="w")).reason == "UNKNOWN_PATH"


# Forward


def value_of(value: Any, tensors: list[torch.Tensor]) -> value_pb2.Value:
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return value_pb2.Value(tensor=len(tensors) - 1)
    if value is None:
        return value_pb2.Value(none=value_pb2.NoneValue())
    if isinstance(value, bool):
        return value_pb2.Value(boolean=value)
    if isinstance(value, int):
        return value_pb2.Value(integer=value)
    if isinstance(value, float):
        return value_pb2.Value(real=value)
    if isinstance(value, str):
        return value_pb2.Value(text=value)
    if isinstance(value, dict):
        entries = [
            value_pb2.MappingEntry(key=key, value=value_of(item, tensors)) for key, item in value.items()
        ]
        return value_pb2.Value(mapping=value_pb2.MappingValue(entries=entries))
    items = value_pb2.SequenceValue(items=[value_of(item, tensors) for item in value])
    return value_pb2.Value(tuple=items) if isinstance(value, tuple) else value_pb2.Value(list=items)


def python_of(value: value_pb2.Value, tensors: list[TensorData]) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "tensor":
        return from_data(tensors[value.tensor])
    if kind == "none":
        return None
    if kind in ("list", "tuple"):
        items = [python_of(item, tensors) for item in getattr(value, kind).items]
        return tuple(items) if kind == "tuple" else items
    if kind == "mapping":
        return {entry.key: python_of(entry.value, tensors) for entry in value.mapping.entries}
    assert kind is not None
    return getattr(value, kind)


def requests_of(*args: Any, mode: int = 0, **kwargs: Any) -> Iterator[messages.ForwardRequest]:
    tensors: list[torch.Tensor] = []
    positional = [value_of(arg, tensors) for arg in args]
    named = value_of(kwargs, tensors).mapping
    yield messages.ForwardRequest(args=positional, kwargs=named, mode=mode, tensors=len(tensors))  # type: ignore[arg-type]
    for tensor in tensors:
        request = messages.ForwardRequest()
        request.tensor.spec.CopyFrom(spec(tensor))
        yield request
        data = bytes(to_data(tensor).data)
        half = len(data) // 2
        for piece in (data[:half], data[half:]):
            yield messages.ForwardRequest(data=piece)


def ran(rpc: Any, *args: Any, **kwargs: Any) -> Any:
    first, *rest = rpc.Forward(requests_of(*args, **kwargs))
    tensors = joined(rest, lambda message: message.tensor.spec if message.HasField("tensor") else None)
    assert len(tensors) == first.tensors
    return python_of(first.value, tensors)


class Structured(nn.Module):
    """Gives back a structure made of all that it takes."""

    def forward(self, x: torch.Tensor, *, extra: dict[str, Any], scale: float, flag: bool, tag: str) -> Any:
        return {"out": x * scale, "none": None, "pair": (x, [extra["y"], 3]), "flag": flag, "tag": tag}


def test_forward_takes_and_gives_structures() -> None:
    model = Structured()
    x, y = torch.randn(2, 3), torch.arange(4, dtype=torch.int64)
    with serving(model) as rpc:
        result = ran(rpc, x, extra={"y": y}, scale=2.0, flag=True, tag="ü")
    assert list(result) == ["out", "none", "pair", "flag", "tag"]
    assert torch.equal(result["out"], x * 2.0)
    assert result["none"] is None
    assert torch.equal(result["pair"][0], x)
    assert torch.equal(result["pair"][1][0], y)
    assert result["pair"][1][1] == 3
    assert (result["flag"], result["tag"]) == (True, "ü")


def test_forward_of_large_and_empty_tensors() -> None:
    x = torch.randn(700, 1000)
    with serving(nn.Identity()) as rpc:
        assert torch.equal(ran(rpc, x), x)
        assert ran(rpc, torch.empty(0, 3)).shape == (0, 3)


def test_forward_runs_in_eval_by_default_and_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    x = torch.randn(4, 3)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    with serving(model) as rpc:
        answer = ran(rpc, x)
        again = ran(rpc, x, mode=messages.FORWARD_MODE_TRAIN)
        assert rpc.GetModel().model.step == 0
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(answer, model.eval()(x).detach())
    assert not torch.equal(again, answer)


def test_an_error_in_the_model_is_the_callers() -> None:
    with serving(nn.Linear(3, 1)) as rpc:
        refusal = refused(lambda: rpc.Forward(requests_of(torch.ones(2, 4))))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "FORWARD_RAISED")
    assert "RuntimeError" in refusal.message
    assert "Traceback" not in refusal.message
    assert "[2, 4]" in refusal.hint


def malformed() -> dict[str, list[messages.ForwardRequest]]:
    first = messages.ForwardRequest(args=[value_pb2.Value(tensor=0)], tensors=1)
    header = messages.ForwardRequest()
    header.tensor.spec.CopyFrom(spec(torch.ones(2)))
    wrong = messages.ForwardRequest()
    wrong.tensor.spec.CopyFrom(spec(torch.ones(2)))
    wrong.tensor.spec.byte_size = 9
    data = messages.ForwardRequest(data=b"\0" * 8)
    return {
        "too few bytes": [first, header, messages.ForwardRequest(data=b"\0" * 7)],
        "too many bytes": [first, header, data, messages.ForwardRequest(data=b"\0")],
        "bytes of nothing": [first, data],
        "a tensor too few": [first],
        "a tensor too many": [first, header, data, header, data],
        "a size that contradicts": [first, wrong],
        "no such tensor": [messages.ForwardRequest(args=[value_pb2.Value(tensor=7)])],
        "an empty value": [messages.ForwardRequest(args=[value_pb2.Value()])],
        "an opaque value": [
            messages.ForwardRequest(args=[value_pb2.Value(opaque=value_pb2.OpaqueValue(type="X"))])
        ],
        "no such mode": [messages.ForwardRequest(mode=9)],  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("name", malformed())
def test_a_malformed_forward_is_refused(name: str) -> None:
    with serving(nn.Identity()) as rpc:
        refusal = refused(lambda: rpc.Forward(malformed()[name]))
        assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
        assert refusal.fields
        assert torch.equal(ran(rpc, torch.ones(1)), torch.ones(1))


def test_a_forward_that_breaks_off_does_nothing() -> None:
    calls: list[int] = []
    model = nn.Identity()
    model.register_forward_hook(lambda *_: calls.append(1))

    def broken() -> Iterator[messages.ForwardRequest]:
        yield messages.ForwardRequest(args=[value_pb2.Value(tensor=0)], tensors=1)
        raise ConnectionResetError

    with serving(model) as rpc:
        with pytest.raises(grpc.RpcError):
            list(rpc.Forward(broken()))
        assert torch.equal(ran(rpc, torch.ones(1)), torch.ones(1))
    assert calls == [1]
