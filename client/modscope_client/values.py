"""Structured values <-> their wire form: tuples, lists, mappings, None and scalars around tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modscope.dtypes import DTYPES
from modscope.tensor import TensorData
from modscope.v1 import value_pb2
from modscope_client.arrays import is_tensor_like, tensor_of
from modscope_client.errors import Internal, InvalidArgument
from modscope_client.types import Opaque

if TYPE_CHECKING:
    from modscope_client.types import Array

__all__ = ["decode", "encode", "encode_mapping"]

_MAX_DEPTH = 32
"""Containers within containers; protobuf itself stops at 100 messages, two for each container."""

_INT64 = range(-(1 << 63), 1 << 63)


def encode(value: Any, tensors: list[TensorData], where: str = "", depth: int = 0) -> value_pb2.Value:
    """The wire form of a value; its tensors are appended to `tensors`.

    Raises InvalidArgument, naming the place in it, for what has no form on the wire.
    """
    if depth > _MAX_DEPTH:
        raise _refusal(where, f"is nested more than {_MAX_DEPTH} deep, or holds itself")
    value = _plain(value)
    if value is None:
        return value_pb2.Value(none=value_pb2.NoneValue())
    if isinstance(value, bool):
        return value_pb2.Value(boolean=value)
    if isinstance(value, int):
        if value not in _INT64:
            raise _refusal(where, f"is {value}, which 64 bits cannot hold")
        return value_pb2.Value(integer=value)
    if is_tensor_like(value):
        tensors.append(tensor_of(value))
        return value_pb2.Value(tensor=len(tensors) - 1)
    if isinstance(value, float):
        return value_pb2.Value(real=value)
    if isinstance(value, str):
        return value_pb2.Value(text=_text(value, where))
    if isinstance(value, list | tuple):
        items = [encode(item, tensors, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
        sequence = value_pb2.SequenceValue(items=items)
        return value_pb2.Value(list=sequence) if isinstance(value, list) else value_pb2.Value(tuple=sequence)
    if isinstance(value, Mapping):
        return value_pb2.Value(mapping=encode_mapping(value, tensors, where, depth))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        mapping = encode_mapping(fields, tensors, where, depth)
        mapping.type = type(value).__name__
        return value_pb2.Value(mapping=mapping)
    raise _refusal(where, f"is a {type(value).__name__}, which has no form on the wire")


def encode_mapping(
    entries: Mapping[Any, Any], tensors: list[TensorData], where: str = "", depth: int = 0
) -> value_pb2.MappingValue:
    """The wire form of a mapping; its tensors are appended to `tensors`. Raises InvalidArgument."""
    return value_pb2.MappingValue(
        entries=[
            value_pb2.MappingEntry(
                key=_text(str(key), where), value=encode(item, tensors, f"{where}[{key!r}]", depth + 1)
            )
            for key, item in entries.items()
        ]
    )


def decode(value: value_pb2.Value, tensors: Sequence[Array]) -> Any:
    """The value that a wire form is, around `tensors`: mappings of all kinds become dicts.

    Raises Internal where it names a tensor that has not come.
    """
    kind = value.WhichOneof("kind")
    if kind == "tensor":
        if not 0 <= value.tensor < len(tensors):
            raise Internal(f"the value names tensor {value.tensor}, and {len(tensors)} have come")
        return tensors[value.tensor]
    if kind == "list":
        return [decode(item, tensors) for item in value.list.items]
    if kind == "tuple":
        return tuple(decode(item, tensors) for item in value.tuple.items)
    if kind == "mapping":
        return {entry.key: decode(entry.value, tensors) for entry in value.mapping.entries}
    if kind == "opaque":
        return Opaque(value.opaque.type, value.opaque.repr)
    if kind in ("boolean", "integer", "real", "text"):
        return getattr(value, kind)
    return None


def _plain(value: Any) -> Any:
    """A numpy number as Python's own; anything else as it is."""
    import numpy

    if isinstance(value, numpy.bool_ | numpy.integer | numpy.floating) and value.dtype.name in DTYPES:
        return value.item()
    return value


def _text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _refusal(where, f"holds text that is no unicode: {error}") from error
    return text


def _refusal(where: str, why: str) -> InvalidArgument:
    return InvalidArgument(
        f"{where or 'the value'} {why}",
        hint="give arrays, numbers, truth values, text, None, and lists, tuples and dicts of them",
        details={"field": where.partition("[")[0]},
    )
