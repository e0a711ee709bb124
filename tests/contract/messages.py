"""Random protobuf messages of any generated class, and the classes that there are."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

import modscope.v1
from modscope.wire import BULK_FIELD

__all__ = ["bulk_classes", "files", "header_messages", "messages"]

_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
    FieldDescriptor.TYPE_INT32: st.integers(-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, (1 << 64) - 1),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: st.text(max_size=8),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=8),
}


def files() -> list[FileDescriptor]:
    """The descriptor of each .proto file of the contract."""
    names = (module.name for module in pkgutil.iter_modules(modscope.v1.__path__))
    return [
        importlib.import_module(f"modscope.v1.{name}").DESCRIPTOR for name in names if name.endswith("_pb2")
    ]


def bulk_classes() -> list[type[Message]]:
    """The classes of the messages that carry bulk bytes."""
    kinds = (kind for file in files() for kind in file.message_types_by_name.values())
    return [GetMessageClass(kind) for kind in kinds if BULK_FIELD in kind.fields_by_number]


@cache
def messages(kind: Descriptor, depth: int) -> st.SearchStrategy[Message]:
    """Messages of that type with any of their fields set, nested ones down to `depth` levels."""
    return _messages(kind, [*kind.fields], depth)


@cache
def header_messages(kind: Descriptor) -> st.SearchStrategy[Message]:
    """Messages of that type without their bulk bytes."""
    return _messages(kind, [field for field in kind.fields if field.number != BULK_FIELD], 3)


def _messages(kind: Descriptor, fields: list[FieldDescriptor], depth: int) -> st.SearchStrategy[Message]:
    values = dict(_field_values(fields, depth))
    factory = GetMessageClass(kind)
    return st.fixed_dictionaries({}, optional=values).map(
        lambda chosen: factory(**_one_of_each(kind, chosen))
    )


def _field_values(fields: list[FieldDescriptor], depth: int) -> Iterator[tuple[str, st.SearchStrategy[Any]]]:
    for field in fields:
        if field.message_type is None:
            one = _scalar(field)
        elif depth and not field.message_type.GetOptions().map_entry:
            one = messages(field.message_type, depth - 1)
        else:
            continue
        yield field.name, st.lists(one, max_size=2) if field.is_repeated else one


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from(list(field.enum_type.values_by_number))
    return _SCALARS[field.type]


def _one_of_each(kind: Descriptor, chosen: dict[str, Any]) -> dict[str, Any]:
    """The chosen fields, of each oneof the first alone."""
    kept: dict[str, Any] = {}
    for name, value in chosen.items():
        choice = kind.fields_by_name[name].containing_oneof
        if choice is None or not any(other.name in kept for other in choice.fields):
            kept[name] = value
    return kept
