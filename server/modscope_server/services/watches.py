"""Watches on the wire: requests -> specs. Pure functions."""

from __future__ import annotations

from typing import cast

from modscope.v1 import hook_service_pb2
from modscope_server.runtime.bus import Overflow
from modscope_server.runtime.watch_spec import Payload, Phase, WatchSpec
from modscope_server.services.convert import HOOK_KINDS, OVERFLOWS, PAYLOADS, PHASES, choice

__all__ = ["spec"]


def spec(request: hook_service_pb2.WatchRequest) -> WatchSpec:
    """What is asked for. Raises BadRequest, UnknownDtype."""
    kinds = dict.fromkeys(choice(HOOK_KINDS, kind, "forward", "hooks") for kind in request.hooks)
    return WatchSpec(
        glob=request.glob if request.HasField("glob") else "*",
        type=request.type,
        kinds=tuple(kinds) or ("forward",),
        payload=cast("Payload", choice(PAYLOADS, request.payload, "stats", "payload")),
        sample=request.sample,
        index=request.index,
        dtype=request.dtype,
        every=request.every or 1,
        start=request.start if request.HasField("start") else None,
        stop=request.stop if request.HasField("stop") else None,
        first_call=request.first_call,
        phase=cast("Phase | None", choice(PHASES, request.phase, "", "phase") or None),
        max_rate=request.max_rate,
        overflow=cast("Overflow", choice(OVERFLOWS, request.overflow, "drop_oldest", "overflow")),
        queue=request.queue,
        block_ms=request.block_ms,
        keep=request.keep_seconds,
    )
