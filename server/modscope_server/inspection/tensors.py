"""A tensor's dtype name, shape and bytes, whatever its dtype, layout and strides."""

from __future__ import annotations

import ctypes

import numpy
import torch
from torch.nn.parameter import is_lazy

from modscope.tensor import TensorData
from modscope_server.errors import BadRequest, NotMaterialized, UnknownDtype

__all__ = [
    "byte_view",
    "device_name",
    "dtype_name",
    "dtype_named",
    "from_data",
    "has_grad",
    "nbytes",
    "numel_of",
    "plain_data",
    "shape_of",
    "snapshot",
    "to_data",
    "unreadable_reason",
]

_DTYPES: dict[str, torch.dtype] = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}
_NAMES: dict[torch.dtype, str] = {value: name for name, value in _DTYPES.items()}
_QUANTIZED = frozenset(name for name in _DTYPES if name.startswith(("qint", "quint")))

_CARRIERS: dict[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
    16: torch.complex128,
}
"""Item size -> a dtype of that size that every copy kernel serves; float4 and the like have none."""

_SUBCLASSES: dict[str, str] = {
    "DTensor": "distributed (DTensor): only a shard of it lives here",
    "FakeTensor": "fake: has no data",
}
"""Names of subclasses, which are told apart without importing them -> why they cannot be read."""

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_FEW_BYTES = 1 << 16


def dtype_name(t: torch.Tensor) -> str:
    """torch's name of the dtype without its prefix, such as "bfloat16"."""
    dtype = t.dtype
    return _NAMES.get(dtype) or str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """The dtype of that name. Raises UnknownDtype where this torch has none, or none made of plain bytes."""
    dtype = _DTYPES.get(name)
    if dtype is None or name in _QUANTIZED:
        raise UnknownDtype(
            f"unknown dtype {name!r}",
            hint="use torch's name without its prefix, such as float32, bfloat16 or int64",
            field="dtype",
        )
    return dtype


def device_name(t: torch.Tensor) -> str:
    """Where the tensor lives, such as "cpu" or "cuda:0"."""
    return str(t.device)


def shape_of(t: torch.Tensor) -> tuple[int, ...]:
    """Size of each dimension; () where the tensor does not know its shape (lazy, nested)."""
    if is_lazy(t) or t.is_nested:
        return ()
    return tuple(t.shape)


def numel_of(t: torch.Tensor) -> int:
    """Number of elements; 0 where it is not known yet."""
    if type(t) in _PLAIN:
        return t.numel()
    if is_lazy(t):
        return 0
    try:
        return int(t.numel())
    except (RuntimeError, NotImplementedError):
        return 0


def has_grad(t: torch.Tensor) -> bool:
    """Whether grad is set; never asks a non-leaf tensor that keeps none, which would warn."""
    return (t.is_leaf or t.retains_grad) and t.grad is not None


def unreadable_reason(t: torch.Tensor) -> str:
    """Why the elements cannot be read as plain bytes; "" where they can."""
    if type(t) in _PLAIN:
        return _reason(t)
    with torch._C.DisableTorchFunctionSubclass():
        return _subclass_reason(t) or _reason(t)


def _reason(t: torch.Tensor) -> str:
    if t.is_meta:
        return "meta: has no data"
    if t.is_nested:
        return "nested: rows of different lengths have no single shape"
    if t.layout is not torch.strided:
        return f"sparse ({str(t.layout).removeprefix('torch.')}): its elements are not stored densely"
    if t.is_quantized:
        return f"quantized ({dtype_name(t)}): its integers mean nothing without their scales"
    if t.numel() and not t.untyped_storage().nbytes():
        return "released: its storage is empty now, as FSDP leaves a parameter between uses"
    return ""


def _subclass_reason(t: torch.Tensor) -> str:
    if is_lazy(t):
        return "uninitialized (lazy): it gets its shape when the model first runs"
    for cls in type(t).__mro__:
        if cls.__name__ in _SUBCLASSES:
            return _SUBCLASSES[cls.__name__]
    if hasattr(type(t), "__tensor_flatten__"):
        return f"tensor subclass ({type(t).__name__}): its elements are held in parts"
    return ""


def nbytes(t: torch.Tensor) -> int:
    """Bytes that the elements take, row-major and without gaps."""
    with torch._C.DisableTorchFunctionSubclass():
        return numel_of(t) * t.itemsize


def snapshot(t: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """A copy of the elements' bytes: uint8, 1-d, contiguous, on the CPU, row-major.

    Made with torch operations, which release the GIL. `out`, a contiguous uint8 tensor of nbytes(t)
    elements on the CPU, receives the bytes where it is given. Raises NotMaterialized for what has no
    plain bytes, and ValueError for an `out` of another size.
    """
    reason = unreadable_reason(t)
    if reason:
        raise NotMaterialized(f"this tensor cannot be read: it is {reason}", hint=_hint_for(reason))
    if out is None and _is_simple(t):
        return _bytes_of(t.detach()).clone()
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        source = t.detach().resolve_conj().resolve_neg()
        carrier = _CARRIERS[t.itemsize]
        source = source.view(carrier)
        if out is None:
            fresh = torch.empty(source.shape, dtype=carrier, device="cpu")
            fresh.copy_(source)
            return _bytes_of(fresh)
        if out.numel() != nbytes(t):
            raise ValueError(f"the tensor has {nbytes(t)} bytes, the place for them {out.numel()}")
        if source.is_contiguous() or out.data_ptr() % t.itemsize or out.storage_offset() % t.itemsize:
            out.copy_(_bytes_of(source.contiguous()))
        else:
            out.view(carrier).view(source.shape).copy_(source)
        return out


def _bytes_of(t: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, not copied: uint8, 1-d."""
    flat = t.reshape(-1)
    if flat.numel() == 1 and flat.stride(0) != 1:
        # One element may have any stride, and torch asks for 1 where it is seen as bytes.
        flat = flat.as_strided((1,), (1,))
    return flat.view(torch.uint8)


def _is_simple(t: torch.Tensor) -> bool:
    """Whether the elements lie on the CPU as they are read; most do, and then small reads take a third."""
    return type(t) in _PLAIN and t.is_cpu and t.is_contiguous() and not t.is_conj() and not t.is_neg()


def _hint_for(reason: str) -> str:
    if reason.startswith("uninitialized"):
        return "run the model once, then ask again"
    if reason.startswith("meta"):
        return "materialize the model with to_empty() or load weights into it first"
    return "its shape, dtype and device are listed; read a dense, plain tensor instead"


def to_data(t: torch.Tensor) -> TensorData:
    """The tensor as dtype name, shape and bytes; copied once, by `snapshot`. Raises NotMaterialized.

    A few bytes are copied without torch, whose operations cost microseconds each; the GIL is held for
    about as many.
    """
    if not unreadable_reason(t) and _is_simple(t) and t.nbytes <= _FEW_BYTES:
        raw = ctypes.string_at(t.data_ptr(), t.nbytes)
        return TensorData(dtype_name(t), tuple(t.shape), raw)
    data = byte_view(snapshot(t))
    with torch._C.DisableTorchFunctionSubclass():
        return TensorData(dtype_name(t), tuple(t.shape), data)


def plain_data(t: torch.Tensor) -> TensorData | None:
    """What `to_data` gives, but sharing the memory where that lies ready; None where there is none."""
    if unreadable_reason(t):
        return None
    if not _is_simple(t) or not t.numel():
        return to_data(t)
    return TensorData(dtype_name(t), tuple(t.shape), byte_view(_bytes_of(t.detach())))


def byte_view(t: torch.Tensor) -> memoryview:
    """The bytes of a 1-d contiguous uint8 CPU tensor, without a copy; the view keeps the tensor alive."""
    return t.numpy().data


def from_data(data: TensorData) -> torch.Tensor:
    """The CPU tensor that a dtype name, a shape and bytes make.

    It shares the buffer where that is writable and aligned, and copies otherwise. Raises UnknownDtype
    for a dtype that this torch lacks, BadRequest for a length that does not fit the shape and for
    bool bytes other than 0 and 1.
    """
    dtype = dtype_named(data.dtype)
    raw = _raw(data.data, dtype.itemsize)
    expected = dtype.itemsize
    for size in data.shape:
        expected *= size
    if raw.numel() != expected:
        raise BadRequest(
            f"a {data.dtype} tensor of shape {list(data.shape)} has {expected} bytes, got {raw.numel()}",
            hint="send the elements row-major and without gaps",
            field="data",
        )
    if dtype is torch.bool and raw.numel() and int(raw.max()) > 1:
        raise BadRequest(
            f"a bool is one byte, 0 or 1; got a byte of {int(raw.max())}",
            hint="convert to bool before sending",
            field="data",
        )
    if not raw.numel():
        return torch.empty(data.shape, dtype=_CARRIERS[dtype.itemsize]).view(dtype)
    return raw.view(dtype).reshape(data.shape)


def _raw(data: bytes | bytearray | memoryview, alignment: int) -> torch.Tensor:
    """The bytes as a 1-d uint8 tensor whose memory is aligned."""
    view = numpy.frombuffer(data, numpy.uint8) if len(data) else numpy.empty(0, numpy.uint8)
    if view.flags.writeable and not view.ctypes.data % alignment:
        return torch.from_numpy(view)
    raw = torch.empty(len(view), dtype=torch.uint8)
    numpy.copyto(raw.numpy(), view)
    return raw
