"""Optimizer groups and hyper-parameters <-> protobuf messages."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf import struct_pb2

from modscope.v1 import optimizer_pb2
from modscope_server.errors import BadRequest
from modscope_server.inspection.records import OptimizerGroup, Plain

__all__ = ["hyperparameters", "optimizer_group"]


def optimizer_group(record: OptimizerGroup) -> optimizer_pb2.OptimizerGroup:
    """The message of a group."""
    return optimizer_pb2.OptimizerGroup(
        optimizer=record.optimizer,
        index=record.index,
        lr=record.lr,
        weight_decay=record.weight_decay,
        parameters=record.parameters,
        options={name: _value(value) for name, value in record.options.items()},
        state_keys=record.state_keys,
        strangers=record.strangers,
        base_lr=record.base_lr,
        scheduler=record.scheduler,
    )


def hyperparameters(values: Mapping[str, struct_pb2.Value]) -> dict[str, Plain]:
    """Hyper-parameters by name as they were sent. Raises BadRequest for an object and for no value."""
    return {name: _plain(value, f"hyperparameters.{name}") for name, value in values.items()}


def _value(value: Plain) -> struct_pb2.Value:
    if value is None:
        return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
    if isinstance(value, bool):
        return struct_pb2.Value(bool_value=value)
    if isinstance(value, (int, float)):
        return struct_pb2.Value(number_value=value)
    if isinstance(value, str):
        return struct_pb2.Value(string_value=value)
    return struct_pb2.Value(list_value=struct_pb2.ListValue(values=map(_value, value)))


def _plain(value: struct_pb2.Value, field: str) -> Plain:
    kind = value.WhichOneof("kind")
    if kind == "null_value":
        return None
    if kind == "bool_value":
        return value.bool_value
    if kind == "number_value":
        return value.number_value
    if kind == "string_value":
        return value.string_value
    if kind == "list_value":
        return [_plain(item, field) for item in value.list_value.values]
    raise BadRequest(
        "a hyper-parameter is a number, a truth value, text, null or a list", hint="such as 0.1", field=field
    )
