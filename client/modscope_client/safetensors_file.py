"""Safetensors files, all dtypes of the contract that the format has, written and read piece by piece.

A file is 8 bytes (length of the header, little-endian), the header (JSON: key -> dtype, shape,
data_offsets), and the tensors' bytes without gaps.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

from modscope.dtypes import item_size
from modscope.tensor import CHUNK_BYTES, byte_size
from modscope_client.errors import InvalidArgument
from modscope_client.types import TensorSpec

__all__ = ["Reader", "Stored", "Writer", "refuse_unsupported"]

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "complex64": "C64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "bool": "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}

_METADATA = "__metadata__"
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file."""

    spec: TensorSpec
    """Its key, dtype, shape and size."""
    offset: int
    """Where its bytes begin in the file."""


def refuse_unsupported(entries: Sequence[TensorSpec]) -> None:
    """Raise InvalidArgument where the format has no dtype for some of the tensors, naming them."""
    refused = [f"{entry.key} ({entry.dtype})" for entry in entries if entry.dtype not in _NAMES]
    if refused:
        raise InvalidArgument(
            f"safetensors has no dtype for {', '.join(refused[:10])}{', ...' if len(refused) > 10 else ''}",
            reason="UNKNOWN_DTYPE",
            hint="take them with state_dict(), which gives arrays",
        )


class Writer:
    """A file in the making: a temporary one beside the target until `commit` puts it in its place.

    Use it in `with`; leaving without a commit leaves no file, and a target that was there untouched.
    """

    def __init__(self, target: str | os.PathLike[str]) -> None:
        self._target = os.path.realpath(target)
        if os.path.isdir(self._target):
            raise IsADirectoryError(f"{os.fspath(target)!r} is a directory, not a file to write")
        folder, name = os.path.split(self._target)
        self._temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.part")
        self._file = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._open = True
        self._offsets: list[int] = []

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self._open = False
            os.close(self._file)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)

    def start(self, entries: Sequence[TensorSpec], metadata: dict[str, str]) -> None:
        """Write the header. Raises InvalidArgument for a dtype that the format does not have."""
        refuse_unsupported(entries)
        header: dict[str, Any] = {_METADATA: metadata}
        self._offsets = [0] * len(entries)
        position = 0
        # Wide elements first, as the reference does, so that every tensor is aligned.
        for index in sorted(range(len(entries)), key=lambda i: -(item_size(entries[i].dtype) or 0)):
            entry = entries[index]
            end = position + entry.nbytes
            header[entry.key] = {
                "dtype": _NAMES[entry.dtype],
                "shape": list(entry.shape),
                "data_offsets": [position, end],
            }
            self._offsets[index] = position
            position = end
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._put(struct.pack("<Q", len(text)) + text, 0)
        self._offsets = [8 + len(text) + offset for offset in self._offsets]
        os.ftruncate(self._file, 8 + len(text) + position)

    def write(self, index: int, offset: int, data: memoryview) -> None:
        """Write bytes of one of the tensors that `start` was told of."""
        self._put(data, self._offsets[index] + offset)

    def commit(self) -> None:
        """Put the file in its place, at once and whole."""
        os.replace(self._temporary, self._target)
        self._open = False
        os.close(self._file)

    def _put(self, data: bytes | memoryview, position: int) -> None:
        view = memoryview(data)
        while len(view):
            written = os.pwrite(self._file, view, position)
            position += written
            view = view[written:]


class Reader:
    """A file's tensors. Use it in `with`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._file: IO[bytes] = open(path, "rb")  # noqa: SIM115 - closed by __exit__
        try:
            self.tensors = self._read_header()
            """In the order of their bytes."""
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def chunks(self, stored: Stored) -> Iterator[memoryview]:
        """A tensor's bytes, at most 1 MiB at a time. Raises InvalidArgument where the file has shrunk."""
        position, end = stored.offset, stored.offset + stored.spec.nbytes
        while position < end:
            data = os.pread(self._file.fileno(), min(CHUNK_BYTES, end - position), position)
            if not data:
                raise self._refusal(f"it ends within {stored.spec.key!r}")
            yield memoryview(data)
            position += len(data)

    def _read_header(self) -> list[Stored]:
        """Raises InvalidArgument for what is no safetensors file."""
        size = os.fstat(self._file.fileno()).st_size
        prefix = self._file.read(8)
        if len(prefix) < 8:
            raise self._refusal("it is too short to be one")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(_MAX_HEADER_BYTES, size - 8):
            raise self._refusal(f"it says that its header has {length} bytes")
        try:
            header = json.loads(self._file.read(length).decode(), object_pairs_hook=_without_duplicates)
            if not isinstance(header, dict):
                raise ValueError("it is no object")
            header.pop(_METADATA, None)
            tensors = sorted(
                (_stored(key, entry, 8 + length) for key, entry in header.items()),
                key=lambda stored: (stored.offset, stored.spec.nbytes),
            )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self._refusal(f"its header is not well-formed: {error}") from error
        position = 8 + length
        for stored in tensors:
            if stored.offset != position:
                raise self._refusal(f"the bytes of {stored.spec.key!r} overlap others or leave a gap")
            position += stored.spec.nbytes
        if position != size:
            raise self._refusal(f"its tensors end at byte {position}, and it has {size}")
        return tensors

    def _refusal(self, why: str) -> InvalidArgument:
        return InvalidArgument(
            f"{self._path!r} is no safetensors file: {why}", hint="give a file that was written whole"
        )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands there twice")
        found[key] = value
    return found


def _stored(key: str, entry: dict[str, Any], start: int) -> Stored:
    """An entry of the header. Raises ValueError, TypeError or KeyError where it cannot be."""
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"{key!r} has the unknown dtype {entry['dtype']!r}")
    shape, (begin, end) = tuple(map(_whole, entry["shape"])), map(_whole, entry["data_offsets"])
    size = byte_size(dtype, shape)
    if end - begin != size:
        raise ValueError(f"{key!r} has {end - begin} bytes, and {dtype} of shape {list(shape)} takes {size}")
    return Stored(TensorSpec(key, dtype, shape, size), start + begin)


def _whole(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"{number!r} is no size")
    return number
