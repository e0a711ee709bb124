"""The runtime's records <-> protobuf messages. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf import timestamp_pb2

from modscope import wire
from modscope.v1 import event_pb2, hook_service_pb2, model_pb2, tensor_pb2, value_pb2
from modscope_server.errors import BadRequest
from modscope_server.inspection.records import ModuleRecord, StatsRecord, TensorRecord
from modscope_server.inspection.values import (
    ListNode,
    MappingNode,
    Node,
    NoneNode,
    Opaque,
    Scalar,
    TensorRef,
    TupleNode,
)
from modscope_server.runtime.hook_states import HookState, State

__all__ = [
    "BUFFER",
    "HEADER",
    "HOOK",
    "HOOK_KINDS",
    "OVERFLOWS",
    "PARAMETER",
    "PAYLOADS",
    "PHASES",
    "buffer_info",
    "choice",
    "hook_info",
    "module_info",
    "node_of",
    "parameter_info",
    "plain_text",
    "scalar",
    "spec_from",
    "tensor_header",
    "timestamp",
    "value_of",
]

HOOK_KINDS: dict[str, event_pb2.HookKind.ValueType] = {
    "forward_pre": event_pb2.HOOK_KIND_FORWARD_PRE,
    "forward": event_pb2.HOOK_KIND_FORWARD,
    "backward_pre": event_pb2.HOOK_KIND_BACKWARD_PRE,
    "backward": event_pb2.HOOK_KIND_BACKWARD,
    "parameter": event_pb2.HOOK_KIND_PARAMETER,
    "gradient": event_pb2.HOOK_KIND_GRADIENT,
    "metric": event_pb2.HOOK_KIND_METRIC,
}
PAYLOADS: dict[str, event_pb2.Payload.ValueType] = {
    "none": event_pb2.PAYLOAD_NONE,
    "stats": event_pb2.PAYLOAD_STATS,
    "histogram": event_pb2.PAYLOAD_HISTOGRAM,
    "tensor": event_pb2.PAYLOAD_TENSOR,
}
OVERFLOWS: dict[str, event_pb2.Overflow.ValueType] = {
    "drop_oldest": event_pb2.OVERFLOW_DROP_OLDEST,
    "drop_newest": event_pb2.OVERFLOW_DROP_NEWEST,
    "disconnect": event_pb2.OVERFLOW_DISCONNECT,
    "block": event_pb2.OVERFLOW_BLOCK,
}
_STATES: dict[State, hook_service_pb2.HookState.ValueType] = {
    "armed": hook_service_pb2.HOOK_STATE_ARMED,
    "fired": hook_service_pb2.HOOK_STATE_FIRED,
    "blind": hook_service_pb2.HOOK_STATE_BLIND,
}
HOOK = hook_service_pb2.HookInfo(watch_ids=("",))
PARAMETER = model_pb2.ParameterInfo(shape=(0,), tied_with=("",), stats=tensor_pb2.Stats())
BUFFER = model_pb2.BufferInfo(shape=(0,), tied_with=("",), stats=tensor_pb2.Stats())
HEADER = tensor_pb2.TensorHeader(spec=tensor_pb2.TensorSpec(shape=(0,)))
"""What is written again in many copies, as `filling` wants it."""
PHASES: dict[str, event_pb2.Phase.ValueType] = {
    "training": event_pb2.PHASE_TRAINING,
    "evaluation": event_pb2.PHASE_EVALUATION,
}


def choice(table: Mapping[str, int], number: int, default: str, field: str) -> str:
    """The word for an enum value; `default` where none is set. Raises BadRequest for an unknown one."""
    if not number:
        return default
    for word, known in table.items():
        if known == number:
            return word
    raise BadRequest(f"{field} has no value {number}", hint=f"choose from {', '.join(table)}", field=field)


def timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    """Unix seconds as a message."""
    whole = int(seconds)
    return timestamp_pb2.Timestamp(seconds=whole, nanos=int((seconds - whole) * 1e9))


def module_info(
    record: ModuleRecord, text: str | None = None, into: model_pb2.ModuleInfo | None = None
) -> model_pb2.ModuleInfo:
    """A module; `text` is its repr, where it was asked for. Written `into` a message where one is given.

    Fields are set one by one, and only where they differ from what an empty message says: that takes
    a third of what the constructor takes, and 100,000 modules are listed.
    """
    message = model_pb2.ModuleInfo() if into is None else into
    (
        path,
        name,
        type,
        qualified_type,
        training,
        children,
        parameters,
        trainable,
        aliases,
        raw_path,
        wrappers,
    ) = record
    message.path = path
    message.name = name
    message.type = type
    message.qualified_type = qualified_type
    message.raw_path = raw_path
    if training:
        message.training = True
    if children:
        message.children = children
    if parameters:
        message.parameters = parameters
        message.trainable_parameters = trainable
    if aliases:
        message.aliases.extend(aliases)
    if wrappers:
        message.wrappers.extend(wrappers)
    if text is not None:
        message.repr = text
    return message


def parameter_info(record: TensorRecord, into: model_pb2.ParameterInfo) -> None:
    """A parameter; written `into` a message like `PARAMETER`."""
    _write_tensor(record, into)


def buffer_info(record: TensorRecord, into: model_pb2.BufferInfo) -> None:
    """A buffer; written `into` a message like `BUFFER`."""
    _write_tensor(record, into)
    into.persistent = bool(record.persistent)


def _write_tensor(record: TensorRecord, into: model_pb2.ParameterInfo | model_pb2.BufferInfo) -> None:
    into.path = record.path
    into.shape[:] = record.shape
    into.dtype = record.dtype
    into.device = record.device
    into.numel = record.numel
    into.requires_grad = record.requires_grad
    into.has_grad = record.has_grad
    into.tied_with[:] = record.tied_with
    if record.optimizer is not None:
        into.optimizer = record.optimizer
    into.module_type = record.module_type
    into.raw_path = record.raw_path
    into.unreadable = record.unreadable
    if record.stats is None:
        into.ClearField("stats")
    else:
        stats(record.stats, into.stats)


def stats(record: StatsRecord, into: tensor_pb2.Stats | None = None) -> tensor_pb2.Stats:
    """A reduction of a tensor; written `into` a message where one is given, as `module_info` is."""
    message = tensor_pb2.Stats() if into is None else into
    message.SetInParent()
    message.count = record.count
    if record.zeros:
        message.zeros = record.zeros
    if record.nan:
        message.nan = record.nan
    if record.inf:
        message.inf = record.inf
    if record.norm is None or record.std is None:
        return message
    message.std = record.std
    message.norm = record.norm
    if record.mean is not None and record.min is not None and record.max is not None:
        message.mean = record.mean
        message.min = record.min
        message.max = record.max
    return message


def scalar(message: tensor_pb2.Scalar, field: str) -> bool | int | float | str:
    """One number, truth value or text. Raises BadRequest where none is set."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise BadRequest(f"{field} is an empty Scalar", hint="set one of its fields", field=field)
    value: bool | int | float | str = getattr(message, kind)
    return value


def spec_from(spec: tensor_pb2.TensorSpec, field: str) -> tuple[str, tuple[int, ...], int]:
    """Dtype name, shape and byte size. Raises BadRequest where they contradict."""
    try:
        return wire.spec_from(spec)
    except ValueError as error:
        raise BadRequest(
            str(error), hint="send dtype, dtype_name and shape that agree", field=field
        ) from error


def tensor_header(
    key: str, dtype: str, shape: tuple[int, ...], size: int, into: tensor_pb2.TensorHeader
) -> None:
    """A tensor that follows; written `into` a message like `HEADER`."""
    into.key = key
    wire.write_spec(into.spec, dtype, shape, size)


def hook_info(state: HookState, into: hook_service_pb2.HookInfo) -> None:
    """A hook of ours on a module; written `into` a message like `HOOK`."""
    into.path = state.path
    into.kind = HOOK_KINDS[state.kind]
    into.owner = state.owner
    into.watch_ids[:] = state.watch_ids
    into.fired = state.fired
    if state.last_step is not None:
        into.last_step = state.last_step
    into.intervention_id = state.intervention_id
    into.state = _STATES[state.state]
    into.reason = plain_text(state.reason)
    into.remedy = state.remedy


def value_of(node: Node) -> value_pb2.Value:
    """The wire form of a structure."""
    if isinstance(node, TensorRef):
        return value_pb2.Value(tensor=node.index)
    if isinstance(node, NoneNode):
        return value_pb2.Value(none=value_pb2.NoneValue())
    if isinstance(node, ListNode):
        return value_pb2.Value(list=_sequence(node.items))
    if isinstance(node, TupleNode):
        return value_pb2.Value(tuple=_sequence(node.items))
    if isinstance(node, MappingNode):
        entries = [
            value_pb2.MappingEntry(key=plain_text(key), value=value_of(item)) for key, item in node.entries
        ]
        return value_pb2.Value(mapping=value_pb2.MappingValue(type=node.type, entries=entries))
    if isinstance(node, Opaque):
        return value_pb2.Value(opaque=value_pb2.OpaqueValue(type=node.type, repr=plain_text(node.repr)))
    value = node.value
    if isinstance(value, bool):
        return value_pb2.Value(boolean=value)
    if isinstance(value, int):
        return value_pb2.Value(integer=value)
    if isinstance(value, float):
        return value_pb2.Value(real=value)
    return value_pb2.Value(text=plain_text(value))


def node_of(value: value_pb2.Value) -> Node:
    """The structure that a wire value describes. Raises BadRequest for a value with no kind set."""
    kind = value.WhichOneof("kind")
    if kind == "tensor":
        return TensorRef(value.tensor)
    if kind == "none":
        return NoneNode()
    if kind == "list":
        return ListNode(tuple(map(node_of, value.list.items)))
    if kind == "tuple":
        return TupleNode(tuple(map(node_of, value.tuple.items)))
    if kind == "mapping":
        return MappingNode(
            value.mapping.type, tuple((e.key, node_of(e.value)) for e in value.mapping.entries)
        )
    if kind == "opaque":
        return Opaque(value.opaque.type, value.opaque.repr)
    if kind is None:
        raise BadRequest("a Value has no kind", hint="set one of its fields; `none` for None", field="value")
    return Scalar(getattr(value, kind))


def _sequence(items: Iterable[Node]) -> value_pb2.SequenceValue:
    return value_pb2.SequenceValue(items=map(value_of, items))


def plain_text(text: str) -> str:
    """The text without the lone surrogates that protobuf refuses."""
    return text.encode("utf-8", "backslashreplace").decode()
