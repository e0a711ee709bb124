"""A tensor as both sides hand it over: dtype name, shape, raw bytes. Knows no protobuf."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

from modscope.dtypes import item_size

__all__ = ["CHUNK_BYTES", "TensorData", "byte_size", "chunks", "digest"]

CHUNK_BYTES = 1 << 20
"""Most bytes of a tensor in one message."""


@dataclass(frozen=True)
class TensorData:
    """A tensor's dtype, shape and bytes (little-endian, row-major)."""

    dtype: str
    """torch's dtype name without its prefix."""
    shape: tuple[int, ...]
    """Size of each dimension; () for a 0-dimensional tensor."""
    data: bytes | bytearray | memoryview
    """The elements; for a dtype that the contract does not know, its bytes as stored."""

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return memoryview(self.data).nbytes

    def __post_init__(self) -> None:
        expected = byte_size(self.dtype, self.shape)
        if expected is not None and expected != self.nbytes:
            raise ValueError(
                f"a {self.dtype} tensor of shape {list(self.shape)} has {expected} bytes, got {self.nbytes}"
            )


def byte_size(dtype: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor of this dtype and shape; None where the contract does not know the dtype.

    Raises ValueError for a negative dimension.
    """
    if any(size < 0 for size in shape):
        raise ValueError(f"a shape has no negative dimension: {list(shape)}")
    size = item_size(dtype)
    return None if size is None else size * math.prod(shape)


def chunks(data: bytes | bytearray | memoryview, limit: int = CHUNK_BYTES) -> Iterator[memoryview]:
    """Views of at most `limit` bytes that together are `data`; none where it is empty. Copies nothing."""
    view = memoryview(data).cast("B") if len(data) else memoryview(b"")
    for start in range(0, len(view), limit):
        yield view[start : start + limit]


def digest(tensor: TensorData) -> str:
    """ "sha256:" and the hex digest over dtype name, shape as JSON, raw bytes."""
    hasher = hashlib.sha256()
    hasher.update(tensor.dtype.encode())
    hasher.update(json.dumps(list(tensor.shape)).encode())
    hasher.update(tensor.data)
    return f"sha256:{hasher.hexdigest()}"
