"""Protobuf messages <-> the client's records. Pure functions, for the sync and the async client alike."""

from __future__ import annotations

import dataclasses
import functools
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from modscope import wire
from modscope.v1 import event_pb2, hook_service_pb2, model_pb2, operation_pb2, tensor_pb2
from modscope.v1 import model_service_pb2 as model_service
from modscope.v1 import parameter_service_pb2 as parameter_service
from modscope_client import types
from modscope_client.errors import FailedPrecondition, Internal, InvalidArgument

__all__ = [
    "HOOKS",
    "HOOK_NAMES",
    "MODES",
    "OVERFLOWS",
    "PAYLOADS",
    "PHASES",
    "buffer_info",
    "choice",
    "detail",
    "digest",
    "event",
    "hook_info",
    "model_info",
    "module_info",
    "module_infos",
    "operation",
    "parameter_info",
    "request",
    "scalar",
    "seconds",
    "spec",
    "stats",
    "tensor_spec",
]

M = TypeVar("M", bound=Message)

HOOKS: dict[str, event_pb2.HookKind.ValueType] = {
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
PHASES: dict[str, event_pb2.Phase.ValueType] = {
    "training": event_pb2.PHASE_TRAINING,
    "evaluation": event_pb2.PHASE_EVALUATION,
}
MODES: dict[str, model_service.ForwardMode.ValueType] = {
    "eval": model_service.FORWARD_MODE_EVAL,
    "train": model_service.FORWARD_MODE_TRAIN,
    "current": model_service.FORWARD_MODE_CURRENT,
}

HOOK_NAMES = {number: name for name, number in HOOKS.items()}
_ROLE_NAMES = {
    event_pb2.ROLE_INPUT: "input",
    event_pb2.ROLE_OUTPUT: "output",
    event_pb2.ROLE_GRAD_INPUT: "grad_input",
    event_pb2.ROLE_GRAD_OUTPUT: "grad_output",
    event_pb2.ROLE_PARAMETER: "parameter",
    event_pb2.ROLE_GRADIENT: "gradient",
    event_pb2.ROLE_METRIC: "metric",
}
_STATE_NAMES = {
    hook_service_pb2.HOOK_STATE_ARMED: "armed",
    hook_service_pb2.HOOK_STATE_FIRED: "fired",
    hook_service_pb2.HOOK_STATE_BLIND: "blind",
}

E = TypeVar("E")


def choice(table: Mapping[str, E], value: Any, argument: str) -> E:
    """The wire form of a word. Raises InvalidArgument, naming the words that there are."""
    if not isinstance(value, str) or value not in table:
        raise InvalidArgument(
            f"{argument} {value!r} is none of the known ones",
            hint=f"choose from {', '.join(table)}",
            details={"field": argument},
        )
    return table[value]


def request(kind: type[M], **fields: Any) -> M:
    """A request with the fields that are not None. Raises InvalidArgument where one has no wire form."""
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        name = next((name for name in given if not _fits(kind, name, given[name])), "")
        raise InvalidArgument(
            f"{name} cannot be {given.get(name)!r}: {error}", hint=f"correct {name}", details={"field": name}
        ) from error


def scalar(value: Any, argument: str) -> tensor_pb2.Scalar:
    """The wire form of one number, truth value or text; numpy's scalars included."""
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, bool):
        return tensor_pb2.Scalar(boolean=value)
    if isinstance(value, str):
        return request(tensor_pb2.Scalar, text=value)
    if isinstance(value, numbers.Integral):
        return request(tensor_pb2.Scalar, integer=int(value))
    if isinstance(value, numbers.Real):
        return tensor_pb2.Scalar(real=float(value))
    raise InvalidArgument(
        f"{argument} is a {type(value).__name__}, not one number",
        hint="give a number, a truth value or a text",
        details={"field": argument},
    )


def model_info(m: model_pb2.ModelInfo) -> types.ModelInfo:
    """A model's record."""
    return types.ModelInfo(
        m.name,
        m.type,
        m.training,
        m.step,
        m.modules,
        m.parameters,
        m.trainable_parameters,
        m.optimizers,
        m.writable,
    )


def module_infos(messages: Iterable[model_pb2.ModuleInfo]) -> list[types.ModuleInfo]:
    """The records of modules that were listed, each without the repr that only one asked for whole has.

    Each is made thawed and frozen at the end, in under half the time: 100,000 are listed.
    """
    record, thawed = types.ModuleInfo, _thawed(types.ModuleInfo)
    new = thawed.__new__
    found: list[types.ModuleInfo] = []
    for m in messages:
        made = new(thawed)
        made.path = m.path
        made.name = m.name
        made.type = m.type
        made.qualified_type = m.qualified_type
        made.training = m.training
        made.children = m.children
        made.parameters = m.parameters
        made.trainable_parameters = m.trainable_parameters
        made.aliases = tuple(several) if (several := m.aliases) else ()
        made.raw_path = m.raw_path
        made.wrappers = tuple(several) if (several := m.wrappers) else ()
        made.repr = None
        made.__class__ = record
        found.append(made)
    return found


def module_info(m: model_pb2.ModuleInfo) -> types.ModuleInfo:
    """A module's record, whole."""
    (found,) = module_infos((m,))
    return dataclasses.replace(found, repr=m.repr if m.HasField("repr") else None)


@functools.cache
def _thawed(record: type) -> Any:
    """A class with the slots of a frozen dataclass that is not frozen.

    An instance of it becomes one of the other when its class is set.
    """
    return type(record.__name__, (), {"__slots__": [field.name for field in dataclasses.fields(record)]})


def parameter_info(m: model_pb2.ParameterInfo) -> types.ParameterInfo:
    """A parameter's record."""
    return types.ParameterInfo(**_tensor_fields(m))


def buffer_info(m: model_pb2.BufferInfo) -> types.BufferInfo:
    """A buffer's record."""
    return types.BufferInfo(**_tensor_fields(m), persistent=m.persistent)


def _tensor_fields(m: model_pb2.ParameterInfo | model_pb2.BufferInfo) -> dict[str, Any]:
    return {
        "path": m.path,
        "shape": tuple(m.shape),
        "dtype": m.dtype,
        "device": m.device,
        "numel": m.numel,
        "requires_grad": m.requires_grad,
        "has_grad": m.has_grad,
        "tied_with": tuple(m.tied_with),
        "optimizer": m.optimizer if m.HasField("optimizer") else None,
        "module_type": m.module_type,
        "raw_path": m.raw_path,
        "unreadable": m.unreadable,
        "stats": stats(m.stats) if m.HasField("stats") else None,
    }


def detail(m: parameter_service.GetTensorResponse) -> types.TensorDetail:
    """The record of one parameter or buffer, whole."""
    info = buffer_info(m.buffer) if m.WhichOneof("tensor") == "buffer" else parameter_info(m.parameter)
    return types.TensorDetail(info, m.digest or None, m.step)


def digest(found: types.TensorDetail) -> str:
    """The digest of one parameter or buffer. Raises FailedPrecondition where it has no elements."""
    if found.digest is None:
        raise FailedPrecondition(
            f"{found.info.path!r} has no digest: {found.info.unreadable or 'it cannot be read'}",
            reason="NOT_MATERIALIZED",
            hint="run the model once where it is lazy",
        )
    return found.digest


def stats(m: tensor_pb2.Stats) -> types.Stats:
    """A record of statistics."""

    def real(name: str) -> float | None:
        return getattr(m, name) if m.HasField(name) else None  # type: ignore[arg-type]

    return types.Stats(
        m.count,
        real("mean"),
        real("std"),
        real("min"),
        real("max"),
        real("norm"),
        m.zeros,
        m.nan,
        m.inf,
    )


def operation(m: operation_pb2.Operation) -> types.Operation:
    """An operation's record."""
    return types.Operation(
        m.id,
        m.kind,
        m.model,
        tuple(m.paths),
        m.step,
        m.who,
        seconds(m.time),
        m.outcome,
        dict(m.before) or None,
        dict(m.after) or None,
        m.undone,
        tuple(m.notes),
        m.request_id,
        m.undoes,
        m.not_undoable,
    )


def hook_info(m: hook_service_pb2.HookInfo) -> types.HookInfo:
    """A hook's record."""
    return types.HookInfo(
        m.path,
        HOOK_NAMES.get(m.kind, ""),
        m.owner,
        tuple(m.watch_ids),
        m.fired,
        m.last_step if m.HasField("last_step") else None,
        m.intervention_id,
        _STATE_NAMES.get(m.state, ""),
        m.reason,
        m.remedy,
    )


def event(m: event_pb2.Event, arrays: Iterable[types.Array | None]) -> types.Event:
    """An event's record; `arrays` gives each value's tensor, None where it has none."""
    return types.Event(
        m.seq,
        m.step,
        m.model,
        m.path,
        m.type,
        HOOK_NAMES.get(m.hook, ""),
        m.call,
        seconds(m.time),
        [_value(value, array) for value, array in zip(m.values, arrays, strict=True)],
        m.dropped,
        m.raw_path,
        m.recompute,
    )


def _value(m: event_pb2.ValueInfo, array: types.Array | None) -> types.ValueInfo:
    is_tensor = m.HasField("dtype")
    histogram = m.histogram if m.HasField("histogram") else None
    return types.ValueInfo(
        _ROLE_NAMES.get(m.role, ""),
        m.key,
        tuple(m.shape) if is_tensor else None,
        m.dtype if is_tensor else None,
        stats(m.stats) if m.HasField("stats") else None,
        types.Histogram(tuple(histogram.edges), tuple(histogram.counts)) if histogram else None,
        array,
        m.note,
        _sample(m.sample) if m.HasField("sample") else None,
    )


def _sample(m: event_pb2.Sample) -> types.Sample:
    return types.Sample(m.elements, m.mean_error if m.HasField("mean_error") else None)


def spec(m: tensor_pb2.TensorSpec) -> tuple[str, tuple[int, ...], int]:
    """Dtype, shape and bytes of a tensor that is to arrive. Raises Internal for a contradiction."""
    try:
        return wire.spec_from(m)
    except ValueError as error:
        raise Internal(f"the server announced a tensor that cannot be: {error}") from error


def tensor_spec(m: tensor_pb2.TensorHeader) -> types.TensorSpec:
    """The record of one entry of a state_dict."""
    return types.TensorSpec(m.key, *spec(m.spec))


def seconds(time: Timestamp) -> float:
    """Unix seconds."""
    return time.seconds + time.nanos / 1e9


def _fits(kind: type[Message], name: str, value: Any) -> bool:
    try:
        kind(**{name: value})
    except (TypeError, ValueError):
        return False
    return True
