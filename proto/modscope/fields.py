"""Protobuf's wire form by hand: fields as bytes, for a message that is written too often for its class.

What these functions give is what the generated classes write: a field that has proto3's default is not there
(`presence` aside), numbers are varints in their shortest form.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

__all__ = [
    "FIXED64",
    "LENGTH",
    "VARINT",
    "doubles",
    "fresh_varint",
    "integer",
    "integers",
    "message",
    "real",
    "tag",
    "text",
    "varint",
]

VARINT, FIXED64, LENGTH = 0, 1, 2
"""Wire types."""

_REAL = struct.Struct("<d")


def fresh_varint(value: int) -> bytes:
    """A whole number of 64 bits that hardly comes twice; a negative one takes ten bytes, as int64 has it."""
    # Most numbers in practice, without the loop.
    if 0 <= value < 1 << 7:
        return bytes((value,))
    if 0 <= value < 1 << 14:
        return bytes((value & 127 | 128, value >> 7))
    if 0 <= value < 1 << 21:
        return bytes((value & 127 | 128, value >> 7 & 127 | 128, value >> 14))
    if 0 <= value < 1 << 28:
        return bytes((value & 127 | 128, value >> 7 & 127 | 128, value >> 14 & 127 | 128, value >> 21))
    if 0 <= value < 1 << 35:
        middle = (value >> 7 & 127 | 128, value >> 14 & 127 | 128, value >> 21 & 127 | 128)
        return bytes((value & 127 | 128, *middle, value >> 28))
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


@lru_cache(maxsize=1 << 13)
def varint(value: int) -> bytes:
    """What `fresh_varint` gives, looked up where it was given before, as lengths, steps and counts are."""
    return fresh_varint(value)


def tag(number: int, kind: int) -> bytes:
    """What a field begins with."""
    return varint(number << 3 | kind)


def integer(number: int, value: int) -> bytes:
    """An int32, int64, enum or bool; nothing where it is 0."""
    return tag(number, VARINT) + varint(value) if value else b""


def real(number: int, value: float) -> bytes:
    """A double that is present, 0.0 included."""
    return tag(number, FIXED64) + _REAL.pack(value)


def text(number: int, value: str, *, presence: bool = False) -> bytes:
    """A string; nothing where it is empty, unless its presence is told.

    Lone surrogates, which UTF-8 does not have, are written as Python escapes them.
    """
    return message(number, value.encode("utf-8", "backslashreplace")) if value or presence else b""


def message(number: int, body: bytes) -> bytes:
    """A message, or other bytes with a length, that are present."""
    return b"".join((tag(number, LENGTH), varint(len(body)), body))


def integers(number: int, values: Iterable[int]) -> bytes:
    """Packed whole numbers; nothing where there are none."""
    body = b"".join(map(varint, values))
    return message(number, body) if body else b""


def doubles(number: int, values: Sequence[float]) -> bytes:
    """Packed doubles; nothing where there are none."""
    return message(number, struct.pack(f"<{len(values)}d", *values)) if values else b""
