"""Interventions on the wire: their rpcs, what people ask for as requests, answers as records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modscope import wire
from modscope.v1 import event_pb2, hook_service_pb2, intervention_pb2, tensor_pb2
from modscope_client import convert, requests, run_control
from modscope_client.convert import request
from modscope_client.errors import InvalidArgument
from modscope_client.rpcs import bulk_up, plain
from modscope_client.types import Intervention

if TYPE_CHECKING:
    from modscope.tensor import TensorData

__all__ = [
    "INTERVENE",
    "LIST_INTERVENTIONS",
    "REMOVE_INTERVENTIONS",
    "intervene",
    "intervention",
    "is_watch",
]

_HOOKS = "modscope.v1.HookService"
INTERVENE = bulk_up(_HOOKS, hook_service_pb2.InterveneRequest, hook_service_pb2.InterveneResponse)
LIST_INTERVENTIONS = plain(
    _HOOKS,
    hook_service_pb2.ListInterventionsRequest,
    hook_service_pb2.ListInterventionsResponse,
    at_once=True,
)
REMOVE_INTERVENTIONS = plain(
    _HOOKS,
    hook_service_pb2.RemoveInterventionsRequest,
    hook_service_pb2.RemoveInterventionsResponse,
    at_once=True,
)

_KINDS: dict[str, event_pb2.HookKind.ValueType] = {
    name: convert.HOOKS[name] for name in ("forward", "forward_pre")
}
_STATES = {
    intervention_pb2.INTERVENTION_STATE_WAITING: "waiting",
    intervention_pb2.INTERVENTION_STATE_ACTING: "acting",
    intervention_pb2.INTERVENTION_STATE_NOT_ACTING: "not acting",
    intervention_pb2.INTERVENTION_STATE_ENDED: "ended",
}


def intervene(
    model: str,
    glob: str,
    type: str | type | None,
    hook: str,
    actions: Mapping[str, Any],
    seed: int | None,
    index: str,
    key: str | None,
    calls: int | None,
    start: int | None,
    stop: int | None,
    lease: float,
    persist: bool,
) -> tuple[hook_service_pb2.InterveneRequest, TensorData | None]:
    """Asks for an intervention, and what to send after it. `actions` has the one thing to do."""
    given = {name: value for name, value in actions.items() if value is not None and value is not False}
    if len(given) != 1:
        raise InvalidArgument(
            f"give exactly one of {', '.join(f'{name}=' for name in actions)}",
            hint=f"{' and '.join(given)} were given" if given else "none was given",
            details={"field": "scale"},
        )
    if seed is not None and "noise" not in given:
        raise InvalidArgument("seed= goes with noise= alone", details={"field": "seed"})
    if calls is not None and calls < 1:
        raise InvalidArgument(f"calls is {calls}", hint="give at least 1", details={"field": "calls"})
    ((action, value),) = given.items()
    alteration, tensor = _alteration(action, value, seed, index)
    spec = request(
        intervention_pb2.InterventionSpec,
        glob=glob,
        type=requests.type_name(type),
        hook=convert.choice(_KINDS, hook, "hook"),
        alteration=alteration,
        key=key,
        calls=calls,
        start=start,
        stop=stop,
    )
    seconds = None if persist else run_control.lease_seconds(lease)
    first = request(
        hook_service_pb2.InterveneRequest, model=model, spec=spec, lease_seconds=seconds, persist=persist
    )
    return first, tensor


def _alteration(
    action: str, value: Any, seed: int | None, index: str
) -> tuple[intervention_pb2.Alteration, TensorData | None]:
    tensor: TensorData | None = None
    message: Any = value
    if action == "clamp":
        message = _bounds(value)
    elif action == "zero":
        message = intervention_pb2.ZeroFill()
    elif action == "noise":
        message = request(intervention_pb2.NormalNoise, std=_number(value, action), seed=seed)
    elif action == "replace" or (action == "add" and _is_array(value)):
        from modscope_client.arrays import tensor_of

        tensor = tensor_of(value)
        message = wire.spec_of(tensor.dtype, tensor.shape, len(tensor.data))
        action = "add_tensor" if action == "add" else action
    else:
        message = _number(value, action)
    return request(intervention_pb2.Alteration, index=index, **{action: message}), tensor


def _bounds(value: Any) -> intervention_pb2.ClampBounds:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InvalidArgument(
            f"clamp is {value!r}",
            hint="give (low, high), None where there is no bound",
            details={"field": "clamp"},
        )
    low, high = (None if bound is None else _number(bound, "clamp") for bound in value)
    return request(intervention_pb2.ClampBounds, low=low, high=high)


def _is_array(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or getattr(value, "shape", ()) != ()


def _number(value: Any, argument: str) -> float:
    found = convert.scalar(value, argument)
    kind = found.WhichOneof("kind")
    if kind not in ("real", "integer"):
        raise InvalidArgument(f"{argument} is {value!r}", hint="give one number", details={"field": argument})
    return float(getattr(found, kind))


def is_watch(id: str) -> bool:
    """Whether an id is that of a watch."""
    return id.startswith("watch-")


def intervention(m: intervention_pb2.Intervention) -> Intervention:
    """An intervention's record."""
    spec = m.spec
    return Intervention(
        m.id,
        m.model,
        spec.glob,
        tuple(m.paths),
        convert.HOOK_NAMES.get(spec.hook, ""),
        _action_text(spec.alteration),
        spec.alteration.index,
        spec.key if spec.HasField("key") else None,
        spec.calls or None,
        spec.start if spec.HasField("start") else None,
        spec.stop if spec.HasField("stop") else None,
        m.applied,
        m.last_step if m.HasField("last_step") else None,
        _STATES.get(m.state, ""),
        m.note,
        run_control.lease(m.lease) if m.HasField("lease") else None,
        not m.HasField("lease"),
        m.step,
        m.who,
        convert.seconds(m.time),
    )


def _action_text(m: intervention_pb2.Alteration) -> str:
    kind = m.WhichOneof("kind")
    if kind in ("scale", "add"):
        return f"{kind} {getattr(m, kind):.6g}"
    if kind == "clamp":
        low = f"{m.clamp.low:.6g}" if m.clamp.HasField("low") else "-inf"
        high = f"{m.clamp.high:.6g}" if m.clamp.HasField("high") else "inf"
        return f"clamp {low} {high}"
    if kind == "add_tensor":
        return f"add {_array_text(m.add_tensor)}"
    if kind == "replace":
        return f"replace {_array_text(m.replace)}"
    if kind == "noise":
        return f"noise {m.noise.std:.6g} seed {m.noise.seed}"
    return kind or ""


def _array_text(spec: tensor_pb2.TensorSpec) -> str:
    return f"{spec.dtype_name}{list(spec.shape)}"
