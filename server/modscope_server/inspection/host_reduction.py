"""Reductions on the CPU, by numpy: its passes take less than torch's there, and wait for no thread pool."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch

from modscope_server.inspection.partial_sums import Part

__all__ = [
    "CHUNK",
    "OFF_CENTRE",
    "finite_elements",
    "host_parts",
    "plain_parts",
    "plain_values",
    "safe_scale",
]

CHUNK = 1 << 20
"""Elements reduced at a time; bounds the temporaries."""
_TINY = 1 << 11
"""Up to so many elements, converting to float64 costs no more than float32 with its checks."""
_SHORT = 1 << 13
"""Up to so many elements of float32 are summed at once: numpy adds in pairs, and BLAS in many lanes."""
_ROW = 1 << 10
"""float32 is summed within rows of this length, and rows in float64."""
_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))
_AS_THEY_ARE = frozenset((torch.float32, torch.float64))
_ONES = {4: numpy.ones((_ROW, 1), "float32"), 8: numpy.ones((_ROW, 1), "float64")}
_SAFE = {4: (1e-10, 1e17), 8: (1e-140, 1e140)}
"""Item size -> range of the largest magnitude in which the squares of a row neither overflow nor vanish."""
_CANCELS = 0.1
"""A sum smaller than this share of what chance would leave is too close to its own rounding error."""
OFF_CENTRE = 0.2
"""Below this ratio of variance to squared mean, squares are taken about the mean instead."""

Working = Callable[[torch.Tensor], torch.Tensor]


def plain_values(t: torch.Tensor) -> Any:
    """The elements of a tensor of the plainest kind, which most are, in one dimension; None for another."""
    if type(t) not in _PLAIN or t.dtype not in _AS_THEY_ARE or not t.is_cpu:
        return None
    if t.layout is not torch.strided or t.is_nested or t.is_neg() or not t.is_contiguous():
        return None
    if not t.untyped_storage().nbytes():
        return None
    return (t.detach() if t.requires_grad else t).numpy().reshape(-1)


def plain_parts(values: Any) -> tuple[Part, ...]:
    """Reduce one dimension of float32 or float64, of no more elements than a chunk."""
    return (_part(values, alone=True),)


def host_parts(flat: torch.Tensor, working: Working) -> tuple[Part, ...]:
    """Reduce one dimension of real elements; `working` gives a chunk of them as float32 or float64."""
    if flat.numel() <= CHUNK:
        return (_part(working(flat).numpy(), alone=True),)
    chunks = torch.split(flat, CHUNK)
    parts = [_part(working(chunk).numpy(), alone=False) for chunk in chunks]
    if _cancels(parts):
        parts = [_part(working(chunk).numpy().astype(numpy.float64), alone=True) for chunk in chunks]
    return tuple(parts)


def finite_elements(values: Any) -> Any:
    """The elements that are neither nan nor infinite."""
    return values[numpy.isfinite(values)]


def safe_scale(largest: float, itemsize: int) -> float:
    """A power of two by which to divide before squares are taken; 1 where that is not needed."""
    smallest_safe, largest_safe = _SAFE[itemsize]
    if smallest_safe < largest < largest_safe:
        return 1.0
    return float(2.0 ** max(-1000, min(1000, math.frexp(largest)[1])))


def _part(values: Any, *, alone: bool) -> Part:
    """Reduce a chunk of float32 or float64; `alone`: no other chunk follows that could cancel it."""
    low, high = float(numpy.minimum.reduce(values)), float(numpy.maximum.reduce(values))
    nan = inf = 0
    if not (math.isfinite(low) and math.isfinite(high)):
        nan = int(numpy.count_nonzero(numpy.isnan(values)))
        finite = finite_elements(values)
        inf = len(values) - len(finite) - nan
        values = finite
        if not len(values):
            return Part(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, nan, inf)
        low, high = float(numpy.minimum.reduce(values)), float(numpy.maximum.reduce(values))
    count = len(values)
    zeros = int(numpy.count_nonzero(values == 0)) if low <= 0 <= high else 0
    if low == high:
        return Part(count, low, 0.0, 0.0, math.sqrt(count) * abs(low), low, high, zeros, nan, inf)
    scale = safe_scale(max(-low, high), values.itemsize)
    if scale != 1.0:
        values = values.astype(numpy.float64) / scale
    mean, dev, norm = _moments(values, alone)
    return Part(count, mean * scale, 0.0, dev * scale, norm * scale, low, high, zeros, nan, inf)


def _moments(values: Any, alone: bool) -> tuple[float, float, float]:
    """Mean, root of the summed squared distances from it, and norm of a chunk of safe magnitudes."""
    count = len(values)
    if count <= _TINY:
        values = values.astype(numpy.float64, copy=False)
    total, squares = _sums(values)
    is_single = values.itemsize == 4
    if alone and is_single and abs(total) < _CANCELS * math.sqrt(squares):
        total = _sums(values.astype(numpy.float64))[0]
    mean = total / count
    spread = squares - total * mean
    if spread < OFF_CENTRE * total * mean:
        if is_single:
            mean = float(numpy.float32(mean))
        shift, spread = _sums(values - values.dtype.type(mean))
        mean += shift / count
        spread -= shift * shift / count
    return mean, math.sqrt(max(spread, 0.0)), math.sqrt(squares)


def _sums(values: Any) -> tuple[float, float]:
    """Sum and sum of squares: at once where there are few, else of rows, accumulated in float64.

    Those are products, each of which is one call of BLAS that is too short for its threads.
    """
    count = len(values)
    if count <= _SHORT:
        return float(numpy.add.reduce(values)), float(numpy.dot(values, values))
    whole = count // _ROW * _ROW
    rows = values[:whole].reshape(-1, 1, _ROW)
    totals = numpy.matmul(rows, _ONES[values.itemsize])
    squares = numpy.matmul(rows, rows.reshape(-1, _ROW, 1))
    rest = values[whole:].astype(numpy.float64)
    return (
        float(totals.sum(dtype=numpy.float64)) + float(rest.sum()),
        float(squares.sum(dtype=numpy.float64)) + float(numpy.dot(rest, rest)),
    )


def _cancels(parts: Sequence[Part]) -> bool:
    """Whether the sum over all chunks is so small that float32's rounding shows in it."""
    total = math.fsum(part.finite * part.mean for part in parts)
    return abs(total) < _CANCELS * math.hypot(*(part.norm for part in parts))
