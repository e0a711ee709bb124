"""Structured values: they keep their kind, and what has no form on the wire is refused by its place."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modscope.tensor import TensorData
from modscope.v1 import value_pb2
from modscope_client.arrays import array_of
from modscope_client.errors import Internal, InvalidArgument
from modscope_client.types import Opaque
from modscope_client.values import decode, encode, encode_mapping

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def there_and_back(value: Any) -> Any:
    tensors: list[TensorData] = []
    wire = encode(value, tensors)
    parsed = value_pb2.Value.FromString(wire.SerializeToString())
    return decode(parsed, [array_of(tensor) for tensor in tensors])


def same_kind(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same_kind, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same_kind(left[key], right[key]) for key in left)
    return bool(left == right)


@given(plain)
def test_everything_keeps_its_kind(value: Any) -> None:
    assert same_kind(there_and_back(value), value)


def test_tensors_within_containers() -> None:
    given_ = {"a": [torch.ones(2), (numpy.zeros(3, "i4"), None)], "b": torch.tensor(2.5).bfloat16()}
    back = there_and_back(given_)
    assert back["a"][0].tolist() == [1, 1]
    assert isinstance(back["a"][1], tuple) and back["a"][1][1] is None
    assert back["a"][1][0].dtype == numpy.int32
    assert back["b"].shape == () and str(back["b"].dtype) == "bfloat16"


def test_dataclasses_and_named_tuples_and_mappings() -> None:
    @dataclasses.dataclass
    class Output:
        logits: torch.Tensor
        loss: None = None

    Pair = collections.namedtuple("Pair", "x y")
    wire = encode(Output(torch.zeros(1)), [])
    assert wire.mapping.type == "Output"
    assert list(there_and_back(Output(torch.zeros(1)))) == ["logits", "loss"]
    assert there_and_back(Pair(1, 2)) == (1, 2)
    assert there_and_back(torch.Size([2, 3])) == (2, 3)
    assert there_and_back(collections.OrderedDict(b=1, a=2)) == {"b": 1, "a": 2}
    assert there_and_back({1: "x", None: "y"}) == {"1": "x", "None": "y"}


def test_numpy_numbers_are_numbers() -> None:
    assert same_kind(there_and_back([numpy.float32(1.5), numpy.int64(3), numpy.bool_(True)]), [1.5, 3, True])


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (object(), "args[0] is a object"),
        ([1, {"k": b"x"}], "args[0][1]['k'] is a bytes"),
        (1 << 63, "args[0] is 9223372036854775808"),
        (-(1 << 63) - 1, "64 bits"),
        ("\ud800", "no unicode"),
        ({"\ud800": 1}, "no unicode"),
        (torch.float32, "args[0] is a dtype"),
        (complex(1, 2), "is a complex"),
        ({1, 2}, "is a set"),
    ],
)
def test_what_has_no_form_is_refused_by_its_place(value: Any, told: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        encode(value, [], "args[0]")
    assert told in refusal.value.message
    assert refusal.value.details == {"field": "args"}


def test_a_value_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidArgument, match="holds itself"):
        encode(endless, [])
    nested: dict[str, Any] = {}
    nested["self"] = nested
    with pytest.raises(InvalidArgument, match="holds itself"):
        encode_mapping(nested, [])


def test_what_is_as_deep_as_it_may_be_is_parsed_too() -> None:
    value: Any = 1
    for level in range(32):
        value = {"x": value} if level % 2 else [value]
    assert same_kind(there_and_back(value), value)


def test_opaque_values_are_told() -> None:
    wire = value_pb2.Value(opaque=value_pb2.OpaqueValue(type="transformers.DynamicCache", repr="<cache>"))
    assert decode(wire, []) == Opaque("transformers.DynamicCache", "<cache>")
    assert decode(value_pb2.Value(), []) is None


@pytest.mark.parametrize("index", [-1, 1, 7])
def test_a_tensor_that_has_not_come_is_an_internal_error(index: int) -> None:
    with pytest.raises(Internal, match="1 have come"):
        decode(value_pb2.Value(tensor=index), [numpy.zeros(1)])
