"""The zero-copy frame: a message whose last field is bulk bytes, without protobuf's copies.

protobuf-python copies a `bytes` field on construction, on serialisation, on parse and on every
access. A message that carries bulk has it in field 15, the message's highest number; so its wire
form is the serialised rest, then tag, length and payload. `Frame` keeps the two apart, and what
`encode` writes is byte-identical to what the generated class would write.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import DecodeError

from modscope import dtypes
from modscope.fields import FIXED64, LENGTH, VARINT, varint
from modscope.tensor import TensorData, byte_size
from modscope.v1 import tensor_pb2

__all__ = [
    "BULK_FIELD",
    "Encoded",
    "Frame",
    "decoder",
    "encode",
    "spec_from",
    "spec_of",
    "tensor_from",
    "write_spec",
]

BULK_FIELD = 15
"""Number of the field `data` in every message that carries bulk."""

_BULK_TAG = BULK_FIELD << 3 | 2
_FIXED32 = 5


class _Message(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's own name


M = TypeVar("M", bound=_Message)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A message that has its wire form already: the header of a frame that only goes out."""

    wire: bytes

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's own name
        """The wire form."""
        return self.wire


@dataclass(slots=True)
class Frame(Generic[M]):
    """A message and its bulk bytes."""

    header: M
    """The message; its own field `data` stays empty."""
    data: bytes | bytearray | memoryview = b""
    """What the field `data` carries."""


def encode(frame: Frame[M]) -> bytes:
    """The frame's wire bytes, joined with one copy of the payload."""
    header, data = frame.header, frame.data
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    if not size:
        return header.SerializeToString()
    return b"".join((header.SerializeToString(), bytes((_BULK_TAG,)), varint(size), data))


def decoder(parse: Callable[[bytes], M]) -> Callable[[bytes], Frame[M]]:
    """A function from wire bytes to a frame whose data is a view of them.

    `parse` is the generated class's FromString. The fields may come in any order, as any protobuf
    writer may send them; the last `data` wins, as protobuf says. Raises ValueError for bytes that
    are no message.
    """

    def decode(wire: bytes) -> Frame[M]:
        rest: list[memoryview] = []
        data = memoryview(b"")
        view = memoryview(wire)
        position = kept = 0
        while position < len(view):
            start = position
            tag, position = _read_varint(view, position)
            begin, position = _skip(view, position, tag & 7)
            if tag == _BULK_TAG:
                data = view[begin:position]
                rest.append(view[kept:start])
                kept = position
        rest.append(view[kept:])
        try:
            return Frame(parse(b"".join(rest)), data)
        except DecodeError as error:
            raise ValueError(str(error)) from None

    return decode


def spec_of(dtype: str, shape: tuple[int, ...], size: int | None = None) -> tensor_pb2.TensorSpec:
    """The wire form of a dtype and shape. `size` is needed where the contract does not know the dtype."""
    spec = tensor_pb2.TensorSpec()
    write_spec(spec, dtype, shape, size)
    return spec


def write_spec(
    into: tensor_pb2.TensorSpec, dtype: str, shape: tuple[int, ...], size: int | None = None
) -> None:
    """Write the wire form of a dtype and shape, as `spec_of` makes it, into a message that is there."""
    known = byte_size(dtype, shape)
    into.dtype = dtypes.wire_number(dtype)  # type: ignore[assignment]  # an int is what the enum takes
    into.dtype_name = dtype
    into.shape[:] = shape
    into.byte_size = known if known is not None else size or 0


def spec_from(spec: tensor_pb2.TensorSpec) -> tuple[str, tuple[int, ...], int]:
    """Dtype name, shape and byte size of a wire spec.

    Raises ValueError where the number and the name of the dtype, or dtype, shape and size, contradict.
    """
    known = dtypes.dtype_name(spec.dtype)
    name = spec.dtype_name or known or ""
    if not name:
        raise ValueError("a tensor needs a dtype: set dtype or dtype_name")
    if known is not None and known != name:
        raise ValueError(f"dtype {known} and dtype_name {name} contradict: send one of them")
    shape = tuple(spec.shape)
    expected = byte_size(name, shape)
    if expected is not None and spec.byte_size not in (0, expected):
        raise ValueError(f"a {name} tensor of shape {list(shape)} has {expected} bytes, not {spec.byte_size}")
    return name, shape, spec.byte_size if expected is None else expected


def tensor_from(spec: tensor_pb2.TensorSpec, data: bytes | bytearray | memoryview) -> TensorData:
    """The tensor that a spec and its bytes make. Raises ValueError where they do not fit."""
    name, shape, _ = spec_from(spec)
    return TensorData(name, shape, data)


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if position >= len(view):
            raise ValueError("truncated message")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("malformed varint")


def _skip(view: memoryview, position: int, kind: int) -> tuple[int, int]:
    """Begin and end of the value of one field."""
    begin = position
    if kind == VARINT:
        _, end = _read_varint(view, position)
    elif kind == FIXED64:
        end = position + 8
    elif kind == _FIXED32:
        end = position + 4
    elif kind == LENGTH:
        length, begin = _read_varint(view, position)
        end = begin + length
    else:
        raise ValueError(f"unknown wire type {kind}")
    if end > len(view):
        raise ValueError("truncated message")
    return begin, end
