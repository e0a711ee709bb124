"""The part of a tensor that a subscriber asks for, and its copy in the dtype that is asked for."""

from __future__ import annotations

import torch

from modscope.dtypes import DTYPES
from modscope.tensor import TensorData
from modscope_server.errors import BadRequest
from modscope_server.inspection.slices import parse_index
from modscope_server.inspection.tensors import dtype_name, dtype_named, unreadable_reason
from modscope_server.runtime.copy_memory import COPY_MEMORY

__all__ = ["Unfit", "cast_target", "copied", "part_of"]


class Unfit(Exception):
    """What is asked for does not go with this tensor; it says why."""


def cast_target(name: str) -> torch.dtype:
    """The dtype of that name, to which values can be cast. Raises UnknownDtype, BadRequest."""
    dtype = dtype_named(name)
    if name not in DTYPES or dtype.is_complex or dtype is torch.bool:
        raise BadRequest(
            f"values are not cast to {name}",
            hint="use a floating-point or integer dtype, such as float16 or int32",
            field="dtype",
        )
    return dtype


def part_of(tensor: torch.Tensor, index: str) -> torch.Tensor:
    """A view of the part. Raises Unfit where the tensor has no data, or no such part."""
    unreadable = unreadable_reason(tensor)
    if unreadable:
        raise Unfit(unreadable)
    with torch._C.DisableTorchFunctionSubclass():
        try:
            return tensor.detach()[parse_index(index)]
        except IndexError as error:
            raise Unfit(f"it has no {index}: {error}") from None


def copied(tensor: torch.Tensor, index: str, dtype: str) -> torch.Tensor | TensorData:
    """A copy of the part of a readable tensor, cast where that is asked for. Raises Unfit.

    It is cast as torch casts: rounded, and what is beyond a dtype becomes what torch makes of it. What lies
    on a device is copied there.
    """
    if index:
        tensor = part_of(tensor, index)
    with torch._C.DisableTorchFunctionSubclass():
        part = tensor.detach()
        is_here = part.is_cpu
        if dtype:
            if part.is_complex():
                raise Unfit(f"{dtype_name(part)} is not cast to {dtype}: its imaginary part would be lost")
            try:
                part = part.to(dtype_named(dtype), copy=not is_here)
            except NotImplementedError:
                raise Unfit(f"torch cannot cast {dtype_name(tensor)} to {dtype}") from None
        elif not is_here:
            part = part.clone()
        return COPY_MEMORY.copied(part) if is_here else part
