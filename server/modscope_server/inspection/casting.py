"""Conversion to another dtype that refuses to lose what a caller would not expect to lose."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from modscope_server.errors import DtypeMismatch, ModscopeServerError, NotFinite

__all__ = ["converted", "finite_elements", "index_of_first", "may_convert"]

_CHUNK = 1 << 20
"""Elements converted at a time; the checks work on float64 copies of them."""
_INT64 = torch.iinfo(torch.int64)


class _Chunk(NamedTuple):
    """Some of a tensor's elements, and what an error about them has to say."""

    elements: torch.Tensor
    start: int
    """Position of the first of them in the flat tensor."""
    shape: torch.Size
    """Of the whole tensor."""
    dtype: torch.dtype
    """To be converted to."""
    path: str


def may_convert(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether the kind of number stays or widens: whole -> real -> complex. Values are not looked at."""
    return _rank(source) <= _rank(target)


def converted(source: torch.Tensor, dtype: torch.dtype, path: str) -> torch.Tensor:
    """The CPU tensor in another dtype; rounding is all that may happen to a value.

    Raises DtypeMismatch for an imaginary part, a fraction, a sign, an infinity or a whole number that
    the dtype cannot hold, and NotFinite for a finite value beyond its range; each names the first
    element that it concerns. `path` names the target.
    """
    if source.dtype == dtype:
        return source
    flat = source.resolve_conj().resolve_neg().reshape(-1)
    result = torch.empty(flat.shape, dtype=dtype, device=flat.device)
    try:
        for start in range(0, flat.numel(), _CHUNK):
            chunk = _Chunk(flat[start : start + _CHUNK], start, source.shape, dtype, path)
            result[start : start + _CHUNK] = _converted(chunk)
    except (NotImplementedError, RuntimeError) as error:
        raise DtypeMismatch(
            f"{path} is {_name(dtype)}, and torch cannot convert {_name(source.dtype)} to it: {error}",
            hint=f"send {_name(dtype)}",
            field="dtype",
        ) from None
    return result.reshape(source.shape)


def finite_elements(t: torch.Tensor) -> torch.Tensor:
    """A mask of the elements that are neither nan nor infinite, for float and complex dtypes."""
    return torch.isfinite(t.float() if t.dtype.itemsize == 1 else t)


def index_of_first(mask: torch.Tensor, start: int = 0, shape: torch.Size | None = None) -> list[int]:
    """Position of the first True, one number for each dimension.

    `start` and `shape`: where the mask begins in a larger flat tensor, and that one's shape.
    """
    position = start + int(mask.reshape(-1).to(torch.uint8).argmax())
    index: list[int] = []
    for size in reversed(mask.shape if shape is None else shape):
        position, coordinate = divmod(position, size)
        index.insert(0, coordinate)
    return index


def _rank(dtype: torch.dtype) -> int:
    return 2 if dtype.is_complex else int(dtype.is_floating_point)


def _converted(chunk: _Chunk) -> torch.Tensor:
    source, dtype = chunk.elements, chunk.dtype
    if source.is_complex() and not dtype.is_complex:
        _refuse(chunk, source.imag != 0, "its imaginary part would be lost")
        chunk = chunk._replace(elements=source.real)
        source = chunk.elements
    if not (dtype.is_floating_point or dtype.is_complex):
        _check_whole(chunk)
        return source.to(dtype)
    result = source.to(dtype)
    if source.is_complex():
        _check_range(chunk, source.real, result.real)
        _check_range(chunk, source.imag, result.imag)
    else:
        _check_range(chunk, source, result.real if result.is_complex() else result)
    return result


def _check_whole(chunk: _Chunk) -> None:
    source, dtype = chunk.elements, chunk.dtype
    if source.dtype is torch.bool:
        return
    low, high = (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    if source.is_floating_point():
        wide = source.double()
        _refuse(chunk, ~torch.isfinite(wide), "it is no whole number", NotFinite)
        _refuse(chunk, wide != wide.trunc(), "its fraction would be lost")
        beyond = (wide < float(low)) | (wide >= float(high + 1))
    else:
        whole = source.to(torch.int64)
        beyond = (whole < max(low, _INT64.min)) | (whole > min(high, _INT64.max))
        if source.dtype is torch.uint64:
            beyond |= whole < 0
    _refuse(chunk, beyond, f"the dtype holds {low} to {high}")


def _check_range(chunk: _Chunk, source: torch.Tensor, result: torch.Tensor) -> None:
    """Refuse what a conversion to a float dtype has turned into something else."""
    before, after = source.double(), result.double()
    beyond = torch.isfinite(before) & (before.abs() >= _beyond_from(result.dtype))
    _refuse(chunk, beyond, "it is beyond the dtype's range", NotFinite)
    _refuse(chunk, before.isinf() & ~after.isinf(), "the dtype has no infinity")
    _refuse(chunk, (before <= 0) & (after > 0), "the dtype holds numbers above zero only")


def _beyond_from(dtype: torch.dtype) -> float:
    """The smallest number that rounds to none of the dtype's own."""
    info = torch.finfo(dtype)
    exponent = math.frexp(info.max)[1] - 1
    return info.max + info.eps * 2.0**exponent / 2


def _refuse(
    chunk: _Chunk, lost: torch.Tensor, why: str, kind: type[ModscopeServerError] = DtypeMismatch
) -> None:
    if not bool(lost.any()):
        return
    value = chunk.elements[int(lost.to(torch.uint8).argmax())].item()
    index = index_of_first(lost, chunk.start, chunk.shape)
    where = f" at {index}" if index else ""
    raise kind(
        f"{chunk.path} is {_name(chunk.dtype)} and cannot take {value!r}{where}: {why}",
        hint=f"send values that {_name(chunk.dtype)} can hold",
        field="data",
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
