"""Optimizers on the wire: the rpcs of OptimizerService, its requests, and its answers as records."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

from modscope.v1 import operation_pb2, optimizer_pb2, optimizer_service_pb2
from modscope_client.convert import request
from modscope_client.errors import InvalidArgument
from modscope_client.rpcs import plain
from modscope_client.types import OptimizerGroup, OptimizerList

__all__ = [
    "ADD_TO_OPTIMIZER",
    "LIST_OPTIMIZERS",
    "SET_OPTIMIZER",
    "optimizer_list",
    "set_optimizer",
]

_SERVICE = "modscope.v1.OptimizerService"

LIST_OPTIMIZERS = plain(
    _SERVICE, optimizer_service_pb2.ListOptimizersRequest, optimizer_service_pb2.ListOptimizersResponse
)
SET_OPTIMIZER = plain(
    _SERVICE, optimizer_service_pb2.SetOptimizerRequest, optimizer_service_pb2.SetOptimizerResponse
)
ADD_TO_OPTIMIZER = plain(
    _SERVICE, optimizer_service_pb2.AddToOptimizerRequest, optimizer_service_pb2.AddToOptimizerResponse
)


def set_optimizer(
    model: str,
    group: int | None,
    hyperparameters: Mapping[str, Any],
    *,
    base_lr: bool,
    options: operation_pb2.ChangeOptions | None = None,
) -> optimizer_service_pb2.SetOptimizerRequest:
    """Asks to set hyper-parameters. Raises InvalidArgument where there is none, or one has no wire form."""
    if not hyperparameters:
        raise InvalidArgument(
            "no hyper-parameter is given",
            hint="name at least one, such as lr=3e-4",
            details={"field": "hyperparameters"},
        )
    return request(
        optimizer_service_pb2.SetOptimizerRequest,
        model=model,
        group=group,
        hyperparameters={name: _value(value, name) for name, value in hyperparameters.items()},
        base_lr=base_lr,
        options=options,
    )


def optimizer_list(m: optimizer_service_pb2.ListOptimizersResponse) -> OptimizerList:
    """The record of all groups."""
    return OptimizerList(tuple(map(_group, m.groups)), tuple(m.unheld), m.step)


def _group(m: optimizer_pb2.OptimizerGroup) -> OptimizerGroup:
    return OptimizerGroup(
        m.optimizer,
        m.index,
        m.lr if m.HasField("lr") else None,
        m.weight_decay if m.HasField("weight_decay") else None,
        tuple(m.parameters),
        # A map has no order of its own.
        {name: _plain(m.options[name]) for name in sorted(m.options)},
        tuple(m.state_keys),
        tuple(m.strangers),
        m.base_lr if m.HasField("base_lr") else None,
        m.scheduler,
    )


def _value(value: Any, name: str) -> struct_pb2.Value:
    """The wire form of a hyper-parameter; numpy's numbers and tensors of one element included."""
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if value is None:
        return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
    if isinstance(value, bool):
        return struct_pb2.Value(bool_value=value)
    if isinstance(value, numbers.Real):
        return struct_pb2.Value(number_value=float(value))
    if isinstance(value, str):
        return request(struct_pb2.Value, string_value=value)
    if isinstance(value, list | tuple):
        values = [_value(item, name) for item in value]
        return struct_pb2.Value(list_value=struct_pb2.ListValue(values=values))
    raise InvalidArgument(
        f"{name} is a {type(value).__name__}, which no hyper-parameter is",
        hint="give a number, a truth value, a text, a list of them, or None",
        details={"field": name},
    )


def _plain(m: struct_pb2.Value) -> Any:
    kind = m.WhichOneof("kind")
    if kind == "list_value":
        return [_plain(item) for item in m.list_value.values]
    return None if kind in (None, "null_value") else getattr(m, kind)
