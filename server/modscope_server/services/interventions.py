"""Interventions on the wire: requests -> specs, and states -> messages. Pure functions."""

from __future__ import annotations

import secrets
from typing import cast

from modscope import wire
from modscope.tensor import TensorData
from modscope.v1 import event_pb2, hook_service_pb2, intervention_pb2
from modscope_server.errors import BadRequest
from modscope_server.inspection.alterations import Alteration
from modscope_server.inspection.tensors import dtype_name, from_data
from modscope_server.runtime.intervention import HookName, InterventionSpec, InterventionState
from modscope_server.services.convert import HOOK_KINDS, choice, plain_text, spec_from, timestamp
from modscope_server.services.run_messages import lease
from modscope_server.services.uploads import Uploads

__all__ = ["announce", "intervention", "lease_seconds", "spec"]

_LEASE_SECONDS = 30.0
_SEED_BITS = 63
_HOOKS = {name: HOOK_KINDS[name] for name in ("forward", "forward_pre")}
_STATES: dict[str, intervention_pb2.InterventionState.ValueType] = {
    "waiting": intervention_pb2.INTERVENTION_STATE_WAITING,
    "acting": intervention_pb2.INTERVENTION_STATE_ACTING,
    "not acting": intervention_pb2.INTERVENTION_STATE_NOT_ACTING,
    "ended": intervention_pb2.INTERVENTION_STATE_ENDED,
}


def announce(asked: intervention_pb2.InterventionSpec, uploads: Uploads) -> None:
    """Make room for the tensor that a spec announces, where it does."""
    kind = asked.alteration.WhichOneof("kind")
    if kind in ("add_tensor", "replace"):
        announced = asked.alteration.replace if kind == "replace" else asked.alteration.add_tensor
        uploads.begin(kind, *spec_from(announced, f"spec.alteration.{kind}"))


def spec(asked: intervention_pb2.InterventionSpec, tensors: list[TensorData]) -> InterventionSpec:
    """What is asked for, with the tensor that came, if one did.

    Raises BadRequest, NotFinite, UnknownDtype.
    """
    return InterventionSpec(
        glob=asked.glob,
        type=asked.type,
        hook=cast("HookName", choice(_HOOKS, asked.hook, "forward", "spec.hook")),
        how=_how(asked.alteration, tensors),
        key=asked.key if asked.HasField("key") else None,
        calls=asked.calls,
        start=asked.start if asked.HasField("start") else None,
        stop=asked.stop if asked.HasField("stop") else None,
    )


def lease_seconds(request: hook_service_pb2.InterveneRequest) -> float | None:
    """Seconds of the lease; None where it persists. Raises BadRequest where both are asked for."""
    if request.persist and request.lease_seconds:
        raise BadRequest(
            f"it cannot persist and have a lease of {request.lease_seconds:g} s",
            hint="give one of persist and lease_seconds",
            field="persist",
        )
    return None if request.persist else request.lease_seconds or _LEASE_SECONDS


def _how(asked: intervention_pb2.Alteration, tensors: list[TensorData]) -> Alteration:
    kind, index = asked.WhichOneof("kind"), asked.index
    if kind == "scale":
        return Alteration(kind="scale", number=asked.scale, index=index)
    if kind == "add":
        return Alteration(kind="add", number=asked.add, index=index)
    if kind == "clamp":
        low = asked.clamp.low if asked.clamp.HasField("low") else None
        high = asked.clamp.high if asked.clamp.HasField("high") else None
        return Alteration(kind="clamp", low=low, high=high, index=index)
    if kind == "zero":
        return Alteration(kind="zero", index=index)
    if kind == "noise":
        seed = asked.noise.seed if asked.noise.HasField("seed") else secrets.randbits(_SEED_BITS)
        return Alteration(kind="noise", number=asked.noise.std, seed=seed, index=index)
    if kind is None:
        raise BadRequest("it changes nothing", hint="set one alteration", field="spec.alteration")
    # A copy of its own: the memory that it came in is counted as free again.
    tensor = from_data(tensors[0]).clone()
    return Alteration(kind="replace" if kind == "replace" else "add", tensor=tensor, index=index)


def intervention(state: InterventionState) -> intervention_pb2.Intervention:
    """An intervention as it is now."""
    return intervention_pb2.Intervention(
        id=state.id,
        model=state.model,
        spec=_spec(state.spec),
        paths=state.paths,
        step=state.step,
        who=state.who,
        time=timestamp(state.time),
        applied=state.applied,
        last_step=state.last_step,
        state=_STATES[state.state],
        note=plain_text(state.note),
        lease=None if state.lease is None else lease(state.lease),
    )


def _spec(of: InterventionSpec) -> intervention_pb2.InterventionSpec:
    hook: event_pb2.HookKind.ValueType = HOOK_KINDS[of.hook]
    return intervention_pb2.InterventionSpec(
        glob=of.glob,
        type=of.type,
        hook=hook,
        alteration=_alteration(of.how),
        key=of.key,
        calls=of.calls,
        start=of.start,
        stop=of.stop,
    )


def _alteration(how: Alteration) -> intervention_pb2.Alteration:
    message = intervention_pb2.Alteration(index=how.index)
    if how.tensor is not None:
        announced = message.replace if how.kind == "replace" else message.add_tensor
        announced.CopyFrom(wire.spec_of(dtype_name(how.tensor), tuple(how.tensor.shape)))
    elif how.kind == "scale":
        message.scale = how.number
    elif how.kind == "add":
        message.add = how.number
    elif how.kind == "clamp":
        message.clamp.CopyFrom(intervention_pb2.ClampBounds(low=how.low, high=how.high))
    elif how.kind == "noise":
        message.noise.CopyFrom(intervention_pb2.NormalNoise(std=how.number, seed=how.seed))
    else:
        message.zero.CopyFrom(intervention_pb2.ZeroFill())
    return message
