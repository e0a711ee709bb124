"""Messages become records, and words become wire numbers; what has no wire form is refused by its name."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from modscope.v1 import (
    event_pb2,
    hook_service_pb2,
    model_pb2,
    model_service_pb2,
    operation_pb2,
    parameter_service_pb2,
    tensor_pb2,
)
from modscope_client import convert, types
from modscope_client.errors import FailedPrecondition, Internal, InvalidArgument

STATS = tensor_pb2.Stats(count=3, mean=0.0, std=1.0, norm=2.0, zeros=1, nan=1, inf=0)
TIME = Timestamp(seconds=1_700_000_000, nanos=500_000_000)


@pytest.mark.parametrize(
    ("table", "enum"),
    [
        (convert.HOOKS, event_pb2.HookKind),
        (convert.PAYLOADS, event_pb2.Payload),
        (convert.OVERFLOWS, event_pb2.Overflow),
        (convert.MODES, model_service_pb2.ForwardMode),
    ],
)
def test_every_word_of_the_contract_is_known(table: dict[str, int], enum: Any) -> None:
    assert sorted(table.values()) == [number for number in enum.values() if number]
    for word, number in table.items():
        assert enum.Name(number).endswith(f"_{word.upper()}")


@pytest.mark.parametrize("word", ["Forward", "", None, 2, ["forward"]])
def test_an_unknown_word_is_refused_and_the_known_ones_told(word: Any) -> None:
    with pytest.raises(InvalidArgument, match="hooks") as refusal:
        convert.choice(convert.HOOKS, word, "hooks")
    assert "backward_pre" in refusal.value.hint and refusal.value.details == {"field": "hooks"}


@pytest.mark.parametrize("path", [5, ["a"], "\ud800", b"\xff", 1.5])
def test_a_field_without_a_wire_form_is_named(path: Any) -> None:
    with pytest.raises(InvalidArgument, match="path cannot be") as refusal:
        convert.request(parameter_service_pb2.ReadTensorRequest, model="m", path=path)
    assert refusal.value.details == {"field": "path"}


def test_what_is_none_is_left_out() -> None:
    made = convert.request(parameter_service_pb2.ReinitializeRequest, model="m", seed=None, parameter=None)
    assert made == parameter_service_pb2.ReinitializeRequest(model="m")
    assert not made.HasField("seed")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, tensor_pb2.Scalar(boolean=True)),
        (3, tensor_pb2.Scalar(integer=3)),
        (0.02, tensor_pb2.Scalar(real=0.02)),
        ("relu", tensor_pb2.Scalar(text="relu")),
        (numpy.float32(0.5), tensor_pb2.Scalar(real=0.5)),
        (numpy.int8(-1), tensor_pb2.Scalar(integer=-1)),
        (numpy.bool_(False), tensor_pb2.Scalar(boolean=False)),
        (numpy.array(2.5), tensor_pb2.Scalar(real=2.5)),
    ],
)
def test_scalars(value: Any, expected: tensor_pb2.Scalar) -> None:
    assert convert.scalar(value, "fill") == expected


@pytest.mark.parametrize("value", [None, [1], 1j, object(), numpy.zeros(2), 1 << 64, "\ud800"])
def test_what_is_no_scalar(value: Any) -> None:
    with pytest.raises(InvalidArgument):
        convert.scalar(value, "fill")


def test_a_module() -> None:
    wire = model_pb2.ModuleInfo(
        path="a.b",
        name="b",
        type="Linear",
        qualified_type="torch.nn.modules.linear.Linear",
        training=True,
        children=1,
        parameters=6,
        trainable_parameters=3,
        aliases=["c"],
        raw_path="module.a.b",
        wrappers=["DDP"],
    )
    record = convert.module_info(wire)
    assert dataclasses.astuple(record) == (
        "a.b", "b", "Linear", "torch.nn.modules.linear.Linear", True, 1, 6, 3,
        ("c",), "module.a.b", ("DDP",), None,
    )  # fmt: skip
    wire.repr = ""
    assert convert.module_info(wire).repr == ""


def test_a_model() -> None:
    wire = model_pb2.ModelInfo(
        name="m", type="MLP", step=3, modules=4, parameters=5, optimizers=1, writable=True
    )
    assert convert.model_info(wire) == types.ModelInfo("m", "MLP", False, 3, 4, 5, 0, 1, True)


def test_parameters_and_buffers() -> None:
    fields: dict[str, Any] = {
        "path": "w",
        "shape": [2, 3],
        "dtype": "float32",
        "device": "cpu",
        "numel": 6,
        "requires_grad": True,
        "has_grad": True,
        "tied_with": ["v"],
        "module_type": "Linear",
        "raw_path": "module.w",
    }
    parameter = convert.parameter_info(model_pb2.ParameterInfo(**fields))
    assert parameter == types.ParameterInfo(
        **{**fields, "shape": (2, 3), "tied_with": ("v",)}, optimizer=None, unreadable="", stats=None
    )
    assert convert.parameter_info(model_pb2.ParameterInfo(**fields, optimizer=0)).optimizer == 0
    buffer = convert.buffer_info(model_pb2.BufferInfo(**fields, persistent=False, stats=STATS))
    assert not buffer.persistent and isinstance(buffer, types.ParameterInfo)
    assert buffer.stats == types.Stats(3, 0.0, 1.0, None, None, 2.0, 1, 1, 0)


def test_a_tensor_whole() -> None:
    response = parameter_service_pb2.GetTensorResponse(buffer=model_pb2.BufferInfo(path="b"), step=2)
    found = convert.detail(response)
    assert isinstance(found.info, types.BufferInfo) and found.digest is None and found.step == 2
    with pytest.raises(FailedPrecondition) as refusal:
        convert.digest(found)
    assert refusal.value.reason == "NOT_MATERIALIZED"
    response = parameter_service_pb2.GetTensorResponse(parameter=model_pb2.ParameterInfo(), digest="sha256:0")
    assert convert.digest(convert.detail(response)) == "sha256:0"


def test_an_operation() -> None:
    wire = operation_pb2.Operation(
        id="1",
        kind="write",
        model="m",
        paths=["w"],
        step=3,
        who="x",
        time=TIME,
        outcome="applied",
        notes=["n"],
    )
    record = convert.operation(wire)
    assert record == types.Operation(
        "1", "write", "m", ("w",), 3, "x", 1_700_000_000.5, "applied", notes=("n",)
    )
    assert record.before is None and record.after is None and not record.undone
    wire.before["w"] = "sha256:0"
    assert convert.operation(wire).before == {"w": "sha256:0"}


def test_an_event() -> None:
    value, nothing = (
        event_pb2.ValueInfo(),
        event_pb2.ValueInfo(role=event_pb2.ROLE_GRAD_INPUT, key="1", note="in-place"),
    )
    value.role, value.key, value.dtype = event_pb2.ROLE_OUTPUT, "logits", "bfloat16"
    value.shape.extend([2, 0])
    value.stats.CopyFrom(STATS)
    value.histogram.CopyFrom(event_pb2.Histogram(edges=[0, 1, 2], counts=[3, 4]))
    value.sample.elements = 7
    wire = event_pb2.Event(
        seq=1, step=2, model="m", path="p", type="T", hook=event_pb2.HOOK_KIND_BACKWARD, call=3, time=TIME,
        values=[value, nothing], dropped=4, raw_path="module.p", recompute=True,
    )  # fmt: skip
    array = numpy.zeros((2, 0))
    record = convert.event(wire, [array, None])
    assert record == types.Event(
        1, 2, "m", "p", "T", "backward", 3, 1_700_000_000.5, record.values, 4, "module.p", True
    )
    first, second = record.values
    assert (first.role, first.key, first.shape, first.dtype) == ("output", "logits", (2, 0), "bfloat16")
    assert first.histogram == types.Histogram((0, 1, 2), (3, 4)) and first.array is array
    assert first.sample == types.Sample(7, None) and second.sample is None
    assert first.stats is not None and first.stats.norm == 2
    assert (second.role, second.key, second.shape, second.dtype) == ("grad_input", "1", None, None)
    assert second.note == "in-place" and second.array is None and second.stats is None


def test_hooks() -> None:
    wire = hook_service_pb2.HookInfo(path="p", kind=event_pb2.HOOK_KIND_FORWARD_PRE, owner="watch", fired=2)
    assert convert.hook_info(wire) == types.HookInfo("p", "forward_pre", "watch", (), 2, None)
    wire.last_step = 0
    assert convert.hook_info(wire).last_step == 0


def test_a_spec_that_contradicts_itself_is_an_internal_error() -> None:
    good = tensor_pb2.TensorSpec(dtype=tensor_pb2.DTYPE_FLOAT32, dtype_name="float32", shape=[2], byte_size=8)
    assert convert.spec(good) == ("float32", (2,), 8)
    for change in (
        lambda spec: setattr(spec, "byte_size", 9),
        lambda spec: spec.shape.append(-1),
        lambda spec: setattr(spec, "dtype_name", "int8"),
    ):
        bad = tensor_pb2.TensorSpec.FromString(good.SerializeToString())
        change(bad)
        with pytest.raises(Internal, match="cannot be"):
            convert.spec(bad)
    header = tensor_pb2.TensorHeader(key="w", spec=good)
    assert convert.tensor_spec(header) == types.TensorSpec("w", "float32", (2,), 8)
