"""Arrays <-> TensorData: numpy, ml_dtypes for what numpy lacks, torch tensors by their own methods.

Imports no torch: a torch tensor can only be met where its caller has imported it. Imports numpy when
the first array is at hand, which a listing never has.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from modscope.dtypes import DTYPES, dtype_name
from modscope.tensor import TensorData
from modscope_client.errors import Internal, InvalidArgument
from modscope_client.memory import Memory

if TYPE_CHECKING:
    import numpy

    from modscope.v1 import tensor_pb2
    from modscope_client.types import Array

__all__ = ["Empty", "array_of", "empties", "empty", "is_tensor_like", "received", "spec_of", "tensor_of"]

_BLOCK_BYTES = 32 << 20
_LARGE_BYTES = 4 << 20
_LEAST_KEPT = 1 << 20
"""Bytes below which malloc does as well."""
_ALIGNMENT = 64

Empty = tuple["Array", memoryview]
"""An array whose elements are still to come, and the bytes into which they go."""

_OF_ML_DTYPES = ("bfloat16", "float8")


@lru_cache(maxsize=64)
def numpy_dtype(name: str) -> numpy.dtype[Any] | None:
    """The little-endian numpy dtype of a dtype name; None where there is none."""
    info = DTYPES.get(name)
    if info is None:
        return None
    import numpy

    if name.startswith(_OF_ML_DTYPES):
        import ml_dtypes

        kind = getattr(ml_dtypes, info.numpy, None)
        return None if kind is None else numpy.dtype(kind)
    known = numpy.dtype(info.numpy)
    return known if sys.byteorder == "little" else known.newbyteorder("<")


def empty(dtype: str, shape: tuple[int, ...], nbytes: int, memory: Memory | None = None) -> Empty:
    """Memory for a tensor that is to arrive; a large one's is taken from `memory`.

    A TensorData where numpy has no such dtype.
    """
    import numpy

    if memory is not None and nbytes >= _LEAST_KEPT:
        (block,) = memory.take((nbytes,))
        return _over(block, dtype, shape)
    return _over(numpy.empty(nbytes, numpy.uint8), dtype, shape)


def empties(specs: Sequence[tuple[str, tuple[int, ...], int]], memory: Memory) -> list[Empty]:
    """Memory for tensors (dtype, shape, bytes) that are to arrive.

    Runs of small ones share blocks of at most 32 MiB, which the system gives in large pages: that
    takes a fifth of the time of touching small ones page by page.
    """
    runs = list(_runs([nbytes for _, _, nbytes in specs]))
    blocks = memory.take(sum(_aligned(specs[index][2]) for index in run) for run in runs)
    made: list[Empty] = []
    for run, block in zip(runs, blocks, strict=True):
        position = 0
        for index in run:
            dtype, shape, nbytes = specs[index]
            made.append(_over(block[position : position + nbytes], dtype, shape))
            position += _aligned(nbytes)
    return made


def received(spec: tensor_pb2.TensorSpec, data: bytes | bytearray | memoryview) -> Array:
    """An array of its own with the bytes of a message. Raises Internal where spec and bytes do not fit.

    What a read of one small tensor ends in, so it does no more than it must.
    """
    name, shape = spec.dtype_name or dtype_name(spec.dtype) or "", tuple(spec.shape)
    dtype = numpy_dtype(name)
    if dtype is None:
        return TensorData(name, shape, bytes(data))
    import numpy

    try:
        return numpy.frombuffer(data, dtype).reshape(shape).copy() if data else numpy.empty(shape, dtype)
    except ValueError as error:
        raise Internal(f"a {name} tensor of shape {list(shape)} came with {len(data)} bytes") from error


def array_of(tensor: TensorData) -> Array:
    """A numpy array over the tensor's bytes, not copied; the tensor itself where numpy has no such dtype."""
    dtype = numpy_dtype(tensor.dtype)
    if dtype is None:
        return tensor
    import numpy

    return numpy.frombuffer(tensor.data, numpy.uint8).view(dtype).reshape(tensor.shape)


def spec_of(value: Any) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape of what `tensor_of` would make of the value. Copies nothing; raises as it does."""
    if isinstance(value, TensorData):
        return value.dtype, value.shape
    if _is_torch(value):
        return _torch_spec(value)
    array = _numpy_array(value)
    return array.dtype.name, array.shape


def tensor_of(value: Any) -> TensorData:
    """The dtype, shape and bytes of an array, a torch tensor, or numbers in nested lists.

    Copies nothing where the array is contiguous. Raises InvalidArgument for a dtype that the
    contract does not know and for what is no array.
    """
    if isinstance(value, TensorData):
        return value
    if _is_torch(value):
        return _from_torch(value)
    import numpy

    array = _numpy_array(value)
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.astype(array.dtype.newbyteorder("<"))
    return TensorData(array.dtype.name, array.shape, _bytes_of(numpy.ascontiguousarray(array)))


def is_tensor_like(value: Any) -> bool:
    """Whether the value is an array, a numpy scalar, a torch tensor or a TensorData."""
    import numpy

    return isinstance(value, numpy.ndarray | numpy.generic | TensorData) or _is_torch(value)


def _over(buffer: numpy.ndarray[Any, numpy.dtype[numpy.uint8]], dtype: str, shape: tuple[int, ...]) -> Empty:
    known = numpy_dtype(dtype)
    if known is None:
        return TensorData(dtype, shape, buffer.data), buffer.data
    return buffer.view(known).reshape(shape), buffer.data


def _runs(sizes: list[int]) -> Iterator[range]:
    """Neighbours that share a block: a large one alone, small ones up to the bound of a block."""
    start = total = 0
    for index, nbytes in enumerate(sizes):
        if index > start and (nbytes >= _LARGE_BYTES or total + _aligned(nbytes) > _BLOCK_BYTES):
            yield range(start, index)
            start, total = index, 0
        total += _aligned(nbytes)
        if nbytes >= _LARGE_BYTES:
            yield range(start, index + 1)
            start, total = index + 1, 0
    if start < len(sizes):
        yield range(start, len(sizes))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _bytes_of(array: numpy.ndarray[Any, Any]) -> memoryview:
    """A view of a contiguous array's bytes."""
    import numpy

    view: memoryview = array.reshape(-1).view(numpy.uint8).data
    return view


def _numpy_array(value: Any) -> numpy.ndarray[Any, numpy.dtype[Any]]:
    """The value as an array of a dtype that the contract knows. Raises InvalidArgument."""
    import numpy

    try:
        array = numpy.asarray(value)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(
            f"a {type(value).__name__} is no array: {error}", hint="give a numpy array"
        ) from error
    if array.dtype.name not in DTYPES:
        raise _unknown_dtype(f"a {type(value).__name__} of dtype {array.dtype}")
    return array


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _torch_spec(tensor: Any) -> tuple[str, tuple[int, ...]]:
    torch: Any = sys.modules["torch"]
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or name not in DTYPES:
        raise _unknown_dtype(f"a {name} torch tensor, layout {tensor.layout}, on {tensor.device}")
    return name, tuple(tensor.shape)


def _from_torch(tensor: Any) -> TensorData:
    torch: Any = sys.modules["torch"]
    name, shape = _torch_spec(tensor)
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return TensorData(name, shape, flat.view(torch.uint8).numpy().data)


def _unknown_dtype(what: str) -> InvalidArgument:
    return InvalidArgument(
        f"{what} has no form on the wire",
        reason="UNKNOWN_DTYPE",
        hint=f"convert it first to a dense array of {', '.join(DTYPES)}",
    )
