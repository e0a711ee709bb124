"""Drafts -> the wire bytes of an Event, joined by hand.

Everything but `seq` and `dropped`, which stand at its end, is the same for all subscribers of a form: it is
encoded once, by the hook that deals it out or on the thread of whoever needs it first. What stays the same
from step to step is encoded once for each module. tests/server/test_event_bytes.py holds these bytes against
the generated class.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from modscope import wire
from modscope.fields import fresh_varint, integer, integers, message, tag, text, varint
from modscope.v1 import event_pb2
from modscope_server.inspection.tensors import dtype_name
from modscope_server.runtime.drafts import Draft, DraftValue, Item
from modscope_server.runtime.runs import Run
from modscope_server.services.convert import HOOK_KINDS
from modscope_server.services.stats_bytes import figures

__all__ = ["common_part", "entries", "pack"]

_ROLES: dict[str, event_pb2.Role.ValueType] = {
    "input": event_pb2.ROLE_INPUT,
    "output": event_pb2.ROLE_OUTPUT,
    "grad_input": event_pb2.ROLE_GRAD_INPUT,
    "grad_output": event_pb2.ROLE_GRAD_OUTPUT,
    "parameter": event_pb2.ROLE_PARAMETER,
    "gradient": event_pb2.ROLE_GRADIENT,
    "metric": event_pb2.ROLE_METRIC,
}

# WatchResponse
_EVENTS = tag(2, 2)
# Event
_SEQ, _STEP, _TIME, _VALUES = tag(1, 0), tag(2, 0), tag(8, 2), tag(9, 2)
_LOWEST = tuple(_SEQ + bytes((low | 128,)) for low in range(128))
# Timestamp
_NANOS = tag(2, 0)


def entries(run: Run, dropped: int) -> list[bytes]:
    """The events of a run as they stand in a WatchResponse, in pieces."""
    first, block, start, stop = run
    bodies = block.bodies
    if bodies is None:
        bodies = block.bodies = [_body(draft) for draft in block.drafts]
    lost = integer(10, dropped)
    parts: list[bytes] = []
    for number, body in enumerate(bodies[start:stop], first):
        end = _number(number) + lost
        parts += (_opening(len(body) + len(end)), body, end)
    return parts


def _body(draft: Item) -> bytes:
    """An event up to its number."""
    if isinstance(draft, bytes):
        return draft
    body = draft.encoded = draft.encoded or common_part(draft)
    return body


@lru_cache(maxsize=1 << 12)
def _opening(size: int) -> bytes:
    return _EVENTS + varint(size)


def _number(number: int) -> bytes:
    """A sequence number with its tag: all but its lowest bits are those of many others."""
    return _SEQ + varint(number) if number < 128 else _LOWEST[number & 127] + varint(number >> 7)


def pack(draft: Draft) -> Item:
    """The common part of a draft whose values are numbers in host memory; else the draft as it is."""
    for value in draft.values:
        reduction = value.reduction
        if value.copy is not None or (reduction is not None and not reduction.is_here):
            return draft
    return _body(draft)


def common_part(draft: Draft) -> bytes:
    """All of an Event but `seq` and `dropped`. Values that lie on a device are waited for."""
    step, model, path, raw_path, type, hook, call, recompute, time, values = draft
    parts = [_module(model, path, raw_path, type, hook), _moment(time)]
    if step:
        parts += (_STEP, varint(step))
    if call:
        parts.append(integer(7, call))
    if recompute:
        parts.append(integer(12, 1))
    for value in values:
        body = _value(value)
        parts += (_VALUES, varint(len(body)), body)
    return b"".join(parts)


@lru_cache(maxsize=1 << 14)
def _module(model: str, path: str, raw_path: str, type: str, hook: str) -> bytes:
    head = text(3, model) + text(4, path) + text(5, type)
    return head + integer(6, HOOK_KINDS[hook]) + text(11, raw_path)


def _moment(time: float) -> bytes:
    seconds = int(time)
    nanos = int((time - seconds) * 1e9)
    if not nanos:
        return _second(seconds, 0)
    end = fresh_varint(nanos)
    return _second(seconds, len(end)) + end


@lru_cache(maxsize=64)
def _second(seconds: int, width: int) -> bytes:
    """A Timestamp up to its nanoseconds, whose number takes `width` bytes."""
    part = integer(1, seconds) + (_NANOS if width else b"")
    return b"".join((_TIME, varint(len(part) + width), part))


def _value(value: DraftValue) -> bytes:
    role, key, shape, dtype, reduction, copy, note = value
    head = _head(role, key, shape, dtype)
    if reduction is None and copy is None:
        return head + text(8, note) if note else head
    parts = [head]
    if reduction is not None:
        fields, loss = figures(reduction)
        parts.append(fields)
        note = note or loss
    if copy is not None:
        dtype = dtype_name(copy) if isinstance(copy, torch.Tensor) else copy.dtype
        parts.append(_spec(dtype, tuple(copy.shape), copy.nbytes))
    if note:
        parts.append(text(8, note))
    return b"".join(parts)


@lru_cache(maxsize=1 << 12)
def _head(role: str, key: str, shape: tuple[int, ...], dtype: str | None) -> bytes:
    head = integer(1, _ROLES[role]) + text(2, key)
    if dtype is None:
        return head
    return head + integers(3, shape) + text(4, dtype, presence=True)


@lru_cache(maxsize=1 << 12)
def _spec(dtype: str, shape: tuple[int, ...], size: int) -> bytes:
    return message(7, wire.spec_of(dtype, shape, size).SerializeToString())
