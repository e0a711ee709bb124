"""Changing parameters and buffers in place, so that optimizers, ties and compiled code keep them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from modscope.tensor import TensorData
from modscope_server.errors import (
    BadRequest,
    DtypeMismatch,
    ModscopeServerError,
    NotFinite,
    NotMaterialized,
    ShapeMismatch,
)
from modscope_server.inspection.backup import same_bits, writing_to
from modscope_server.inspection.casting import converted, finite_elements, index_of_first
from modscope_server.inspection.changes import Change
from modscope_server.inspection.lookup import find_tensor
from modscope_server.inspection.memento import Memento
from modscope_server.inspection.records import LocatedTensor
from modscope_server.inspection.tensors import dtype_name, dtype_named, from_data, unreadable_reason

__all__ = [
    "check_announced",
    "checked_source",
    "overlaps_itself",
    "plan_write",
    "write_checked",
    "write_tensor",
]


def write_tensor(
    located: LocatedTensor,
    data: TensorData | None = None,
    fill: bool | int | float | str | None = None,
    cast: bool = False,
    allow_non_finite: bool = False,
) -> None:
    """Write a tensor in place: all checks of `checked_source`, then `write_checked`."""
    write_checked(located, checked_source(located, data, fill, cast, allow_non_finite))


def checked_source(
    located: LocatedTensor,
    data: TensorData | None = None,
    fill: bool | int | float | str | None = None,
    cast: bool = False,
    allow_non_finite: bool = False,
) -> torch.Tensor:
    """The CPU tensor to be written, of the target's dtype and shape; changes nothing.

    `data` must have the target's shape, and its dtype unless `cast`; `fill` is one number for every
    element and takes the target's dtype. A finite value never becomes inf, not even where
    `allow_non_finite` admits nan and inf.

    Raises NotMaterialized for a target that cannot be written in place, BadRequest, UnknownDtype,
    ShapeMismatch, DtypeMismatch, NotFinite.
    """
    target, path = located.tensor, located.path
    _check_writable(target, path)
    if (data is None) == (fill is None):
        raise BadRequest(
            "a write takes either elements or one number to fill with",
            hint="send an array, or fill=0.0",
            field="data",
        )
    if data is not None:
        source = from_data(data)
        _check_match(target, source.dtype, source.shape, path, cast)
    else:
        source = _number(fill)
    source = converted(source, target.dtype, path)
    if not allow_non_finite:
        _check_finite(source, path)
    return source.expand(target.shape)


def check_announced(located: LocatedTensor, dtype: str, shape: Sequence[int], *, cast: bool) -> None:
    """Refuse elements of this dtype and shape before they are there, as `checked_source` would then.

    Raises NotMaterialized, UnknownDtype, ShapeMismatch, DtypeMismatch.
    """
    _check_writable(located.tensor, located.path)
    _check_match(located.tensor, dtype_named(dtype), shape, located.path, cast)


def write_checked(located: LocatedTensor, source: torch.Tensor) -> None:
    """Copy a source that `checked_source` gave into its target, and read it back.

    Raises NotMaterialized and ShapeMismatch where the target has changed since the check.
    """
    target, path = located.tensor, located.path
    _check_writable(target, path)
    _check_match(target, source.dtype, source.shape, path, cast=False)
    source = source.to(target.device)
    with writing_to(target):
        target.copy_(source)
    if not same_bits(target, source):
        raise ModscopeServerError(
            f"{path} was written, but reads back different", hint="read it, and report this with its device"
        )


def plan_write(root: nn.Module, path: str, source: torch.Tensor) -> Change:
    """Plan to write a source that `checked_source` gave into the tensor at a path.

    Raises UnknownPath, and NotMaterialized, ShapeMismatch, DtypeMismatch where the target has changed since
    the check.
    """
    located = find_tensor(root, path)
    _check_writable(located.tensor, located.path)
    _check_match(located.tensor, source.dtype, source.shape, located.path, cast=False)
    memento = Memento()
    memento.keep_tensor(located.path, located.tensor)

    def apply() -> tuple[str, ...]:
        write_checked(located, source)
        return ()

    return Change((located.path,), memento, apply, known={located.path: source})


def overlaps_itself(t: torch.Tensor) -> bool:
    """Whether two elements of a strided tensor share memory, as after expand()."""
    if not t.numel():
        return False
    reach = 0
    certain = True
    for stride, size in sorted((s, n) for s, n in zip(t.stride(), t.shape, strict=True) if n > 1):
        if stride == 0:
            return True
        certain = certain and stride > reach
        reach += stride * (size - 1)
    if certain:
        return False
    offsets = torch.zeros((), dtype=torch.int64, device="cpu")
    for stride, size in zip(t.stride(), t.shape, strict=True):
        offsets = offsets[..., None] + torch.arange(size, device="cpu") * stride
    distinct: torch.Tensor = torch.unique(offsets)
    return distinct.numel() < t.numel()


def _number(fill: bool | int | float | str | None) -> torch.Tensor:
    if not isinstance(fill, (bool, int, float)):
        raise BadRequest(f"fill takes a number, not {fill!r}", hint="such as fill=0.0", field="fill")
    if isinstance(fill, int) and not -(2**63) <= fill < 2**64:
        raise BadRequest(
            f"{fill} is more than 64 bits can hold",
            hint="give a number from -2**63 to 2**64 - 1, or a real one",
            field="fill",
        )
    if isinstance(fill, float):
        return torch.tensor(fill, dtype=torch.float64, device="cpu")
    return torch.tensor(fill, dtype=torch.uint64 if fill >= 2**63 else None, device="cpu")


def _check_writable(target: torch.Tensor, path: str) -> None:
    reason = unreadable_reason(target)
    if reason:
        raise NotMaterialized(f"{path} cannot be written: it is {reason}", hint="write a dense, plain tensor")
    if overlaps_itself(target):
        raise NotMaterialized(
            f"{path} cannot be written: elements of it share memory (shape {list(target.shape)}, "
            f"strides {list(target.stride())})",
            hint="such a tensor comes from expand(); write the tensor that it was expanded from",
        )


def _check_match(
    target: torch.Tensor, dtype: torch.dtype, shape: Sequence[int], path: str, cast: bool
) -> None:
    name = str(dtype).removeprefix("torch.")
    expected = f"{dtype_name(target)} {list(target.shape)}"
    got = f"{name} {list(shape)}"
    if tuple(shape) != tuple(target.shape):
        raise ShapeMismatch(
            f"{path} is {expected}, got {got}",
            hint=f"send an array of shape {list(target.shape)}",
            field="spec.shape",
            expected=str(list(target.shape)),
            got=str(list(shape)),
        )
    if dtype != target.dtype and not cast:
        raise DtypeMismatch(
            f"{path} is {expected}, got {got}",
            hint=f"send {dtype_name(target)}, or ask for a conversion with cast=True (--cast)",
            field="spec.dtype",
            expected=dtype_name(target),
            got=name,
        )


def _check_finite(source: torch.Tensor, path: str) -> None:
    if not (source.is_floating_point() or source.is_complex()):
        return
    try:
        bad = ~finite_elements(source)
    except NotImplementedError:
        return
    if bool(bad.any()):
        raise NotFinite(
            f"the value for {path} is {source.item()}"
            if source.numel() == 1
            else f"{int(bad.sum())} of {source.numel()} elements for {path} are nan or inf, "
            f"the first at {index_of_first(bad)}",
            hint="send finite values, or allow_non_finite=True if that is meant",
            field="data",
        )
