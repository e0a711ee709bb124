"""What a watch is asked for -> its request. Pure functions, for both clients alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from modscope.v1 import hook_service_pb2
from modscope_client import convert
from modscope_client.convert import request
from modscope_client.errors import InvalidArgument
from modscope_client.requests import type_name

__all__ = ["watch"]

_LEAST = ("every", "queue", "sample")
_ABOVE_ZERO = ("max_rate", "block_ms", "keep")
"""What 0 would turn off on the wire: who wants it off leaves it out."""


def watch(
    model: str,
    glob: str = "*",
    type: str | type | None = None,
    hooks: str | Iterable[str] = ("forward",),
    payload: str = "stats",
    every: int = 1,
    overflow: str = "drop_oldest",
    queue: int | None = None,
    sample: int | None = None,
    *,
    start: int | None = None,
    stop: int | None = None,
    first_call: bool = False,
    phase: str | None = None,
    max_rate: float | None = None,
    index: str = "",
    dtype: Any = None,
    block_ms: float | None = None,
    keep: float | None = None,
    resume: str | None = None,
    resume_after: int | None = None,
) -> hook_service_pb2.WatchRequest:
    """Asks to watch modules. Raises InvalidArgument for what has no wire form, or another meaning there."""
    kinds = [hooks] if isinstance(hooks, str) else list(hooks)
    if not kinds:
        raise InvalidArgument(
            "a watch needs at least one hook",
            hint=f"choose from {', '.join(convert.HOOKS)}",
            details={"field": "hooks"},
        )
    asked = request(
        hook_service_pb2.WatchRequest,
        model=model,
        glob=glob,
        type=type_name(type),
        hooks=[convert.choice(convert.HOOKS, kind, "hooks") for kind in kinds],
        payload=convert.choice(convert.PAYLOADS, payload, "payload"),
        every=every,
        overflow=convert.choice(convert.OVERFLOWS, overflow, "overflow"),
        queue=queue,
        sample=sample,
        start=start,
        stop=stop,
        first_call=first_call,
        phase=None if phase is None else convert.choice(convert.PHASES, phase, "phase"),
        max_rate=max_rate,
        index=index,
        dtype=None if dtype is None else _dtype_name(dtype),
        block_ms=block_ms,
        keep_seconds=keep,
    )
    given = {"every": every, "queue": queue, "sample": sample}
    _check({**given, "max_rate": max_rate, "block_ms": block_ms, "keep": keep})
    return asked if resume is None and resume_after is None else _resumed(asked, resume, resume_after)


def _resumed(
    asked: hook_service_pb2.WatchRequest, resume: str | None, after: int | None
) -> hook_service_pb2.WatchRequest:
    """Asks to go on with a watch. Raises InvalidArgument where another one is described beside it."""
    if not resume:
        raise InvalidArgument(
            "which watch is to be resumed?",
            hint="give resume= the watch_id of one that was made with keep=",
            details={"field": "resume"},
        )
    if asked != watch(asked.model):
        raise InvalidArgument(
            f"{resume} goes on as it was made: nothing else can be asked for",
            hint="give resume= and resume_after= alone",
            details={"field": "resume"},
        )
    return request(hook_service_pb2.WatchRequest, model=asked.model, resume=resume, resume_after=after)


def _check(given: dict[str, Any]) -> None:
    for name in _LEAST:
        if given[name] is not None and given[name] < 1:
            raise InvalidArgument(f"{name} is {given[name]}", hint="give at least 1", details={"field": name})
    for name in _ABOVE_ZERO:
        if given[name] is not None and not given[name] > 0:
            raise InvalidArgument(
                f"{name} is {given[name]}",
                hint=f"give more than 0; leave {name} out for none",
                details={"field": name},
            )


def _dtype_name(dtype: Any) -> str:
    """A dtype's name: its own, or that of torch's or numpy's object."""
    return dtype.__name__ if isinstance(dtype, type) else str(dtype).removeprefix("torch.")
