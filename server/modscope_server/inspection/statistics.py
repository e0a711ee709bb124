"""Statistics of a tensor: on the CPU at once, elsewhere as a small tensor that is fetched later."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy
import torch

from modscope_server.errors import NotMaterialized
from modscope_server.inspection.records import StatsRecord
from modscope_server.inspection.tensors import dtype_name, unreadable_reason

__all__ = ["Reduction", "pool", "reduce", "statistics"]

_HOST_CHUNK = 1 << 20
_DEVICE_CHUNK = 1 << 24
"""Elements reduced at a time; bounds the temporaries."""
_SMALL = 1 << 14
"""Up to so many elements, converting to float64 costs no more than float32 with its checks."""
_ROW = 1 << 10
"""float32 is summed within rows of this length, and rows in float64."""
_SAFE = {torch.float32: (1e-10, 1e17), torch.float64: (1e-140, 1e140)}
"""Range of the largest magnitude in which the squares of a row neither overflow nor vanish."""
_CANCELS = 0.1
"""A sum smaller than this share of what chance would leave is too close to its own rounding error."""
_OFF_CENTRE = 0.2
"""Below this ratio of variance to squared mean, squares are taken about the mean instead."""


class _Part(NamedTuple):
    """What one chunk contributes. mean, dev, norm, low and high mean nothing where finite is 0."""

    finite: float
    mean: float
    mean_imag: float
    dev: float
    """Square root of the sum of squared distances from the mean."""
    norm: float
    low: float
    high: float
    zeros: float
    nan: float
    inf: float


@dataclass(frozen=True, slots=True)
class Reduction:
    """A tensor's statistics, perhaps still on its device."""

    count: int
    """All elements."""
    is_complex: bool
    parts: tuple[_Part, ...] | torch.Tensor
    """One row of ten numbers for each chunk; a tensor of shape (chunks, 10) away from the CPU."""

    def resolve(self) -> StatsRecord:
        """The statistics; away from the CPU this waits for the device."""
        return _combine(self.count, self.is_complex, _rows(self))


def statistics(t: torch.Tensor) -> StatsRecord:
    """Statistics of a tensor, true to float64. Raises NotMaterialized for what has no plain elements."""
    return reduce(t).resolve()


def reduce(t: torch.Tensor) -> Reduction:
    """Reduce a tensor on its own device; away from the CPU nothing waits for the device.

    Any dtype with arithmetic is served. Raises NotMaterialized for what has no plain elements.
    """
    reason = unreadable_reason(t)
    if reason:
        raise NotMaterialized(
            f"no statistics of this tensor: it is {reason}", hint="read a dense tensor instead"
        )
    with torch._C.DisableTorchFunctionSubclass():
        flat = _flat(t.detach())
        count, is_complex = flat.numel(), flat.is_complex()
        if not count:
            return Reduction(0, is_complex, ())
        if flat.device.type == "cpu" and not is_complex:
            return Reduction(count, False, tuple(_host_parts(flat)))
        rows = [_masked(_columns(chunk)) for chunk in torch.split(flat, _DEVICE_CHUNK)]
        return Reduction(count, is_complex, torch.stack(rows))


def pool(reductions: Iterable[Reduction]) -> Reduction:
    """The reduction of several tensors as if they were one, in host memory: this waits for their devices."""
    reductions = list(reductions)
    rows = [row for reduction in reductions for row in _rows(reduction)]
    count = sum(reduction.count for reduction in reductions)
    return Reduction(count, any(reduction.is_complex for reduction in reductions), (_joined(rows),))


def _rows(reduction: Reduction) -> Sequence[_Part]:
    if isinstance(reduction.parts, torch.Tensor):
        return [_Part(*row) for row in reduction.parts.tolist()]
    return reduction.parts


def _flat(t: torch.Tensor) -> torch.Tensor:
    """The elements in one dimension, in the order of memory where that saves a copy."""
    if not t.is_contiguous():
        order = sorted(range(t.ndim), key=lambda dim: (-t.stride()[dim], -t.shape[dim]))
        t = t.permute(order)
    return t.resolve_conj().resolve_neg().reshape(-1)


def _working(chunk: torch.Tensor) -> torch.Tensor:
    """The chunk in float32 where that holds each of its values exactly, else in float64."""
    dtype = chunk.dtype
    if dtype in _SAFE:
        return chunk
    exact = dtype.is_floating_point or dtype is torch.bool or dtype.itemsize <= 2
    try:
        return chunk.to(torch.float32 if exact or chunk.device.type == "mps" else torch.float64)
    except NotImplementedError:
        raise NotMaterialized(
            f"no statistics of this tensor: torch has no arithmetic for {dtype_name(chunk)}",
            hint="its shape, dtype and device are listed",
        ) from None


def _columns(chunk: torch.Tensor) -> torch.Tensor:
    """The chunk as (n, 1), or (n, 2) for complex, in float32 or float64."""
    if not chunk.is_complex():
        return _working(chunk)[:, None]
    return torch.view_as_real(chunk.to(torch.complex64) if chunk.dtype is torch.complex32 else chunk)


def _host_parts(flat: torch.Tensor) -> Iterator[_Part]:
    if flat.numel() <= _SMALL:
        yield _host_part(_working(flat).double(), alone=True)
        return
    chunks = torch.split(flat, _HOST_CHUNK)
    parts = [_host_part(_working(chunk), alone=len(chunks) == 1) for chunk in chunks]
    if len(chunks) > 1 and _cancels(parts):
        parts = [_host_part(_working(chunk).double(), alone=True) for chunk in chunks]
    yield from parts


def _host_part(chunk: torch.Tensor, *, alone: bool) -> _Part:
    """Reduce a float32 or float64 chunk on the CPU; `alone`: no other chunk follows that could cancel it."""
    low, high = (bound.item() for bound in torch.aminmax(chunk))
    nan = inf = 0
    if not (math.isfinite(low) and math.isfinite(high)):
        values = chunk.numpy()
        nan = int(numpy.count_nonzero(numpy.isnan(values)))
        chunk = torch.from_numpy(values[numpy.isfinite(values)])
        inf = len(values) - chunk.numel() - nan
        if not chunk.numel():
            return _Part(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, nan, inf)
        low, high = (bound.item() for bound in torch.aminmax(chunk))
    count = chunk.numel()
    # numpy compares, counts and selects in a quarter of torch's time.
    zeros = int(numpy.count_nonzero(chunk.numpy() == 0)) if low <= 0 <= high else 0
    if low == high:
        return _Part(count, low, 0.0, 0.0, math.sqrt(count) * abs(low), low, high, zeros, nan, inf)
    scale = 1.0
    largest = max(-low, high)
    smallest_safe, largest_safe = _SAFE[chunk.dtype]
    if not smallest_safe < largest < largest_safe:
        exponent = max(-1000, min(1000, math.frexp(largest)[1]))
        scale = 2.0**exponent
        chunk = chunk.double() * 2.0**-exponent
    mean, dev, norm = _moments(chunk, alone)
    return _Part(count, mean * scale, 0.0, dev * scale, norm * scale, low, high, zeros, nan, inf)


def _moments(chunk: torch.Tensor, alone: bool) -> tuple[float, float, float]:
    """Mean, root of the summed squared distances from it, and norm of a chunk of safe magnitudes."""
    count = chunk.numel()
    total, squares = _sums(chunk)
    if alone and chunk.dtype is torch.float32 and abs(total) < _CANCELS * math.sqrt(squares):
        total = _sums(chunk.double())[0]
    mean = total / count
    spread = squares - total * mean
    if spread < _OFF_CENTRE * total * mean:
        if chunk.dtype is torch.float32:
            mean = float(numpy.float32(mean))
        shift, spread = _sums(chunk - mean)
        mean += shift / count
        spread -= shift * shift / count
    return mean, math.sqrt(max(spread, 0.0)), math.sqrt(squares)


def _sums(chunk: torch.Tensor) -> tuple[float, float]:
    """Sum and sum of squares, accumulated in float64 beyond a row."""
    if chunk.dtype is torch.float64:
        return chunk.sum().item(), torch.dot(chunk, chunk).item()
    whole = chunk.numel() // _ROW * _ROW
    rows = chunk[:whole].view(-1, _ROW)
    rest = chunk[whole:].double()
    totals = rows.sum(1).double()
    norms = torch.linalg.vector_norm(rows, dim=1).double()
    return (
        totals.sum().item() + rest.sum().item(),
        torch.dot(norms, norms).item() + torch.dot(rest, rest).item(),
    )


def _cancels(parts: Sequence[_Part]) -> bool:
    """Whether the sum over all chunks is so small that float32's rounding shows in it."""
    total = math.fsum(part.finite * part.mean for part in parts)
    return abs(total) < _CANCELS * math.hypot(*(part.norm for part in parts))


def _masked(columns: torch.Tensor) -> torch.Tensor:
    """Reduce a chunk of shape (n, 1), or (n, 2) for complex, without asking the device for any value.

    The result has ten elements on the same device, in the order of _Part.
    """
    wide = torch.float32 if columns.device.type == "mps" else torch.float64
    nan = columns.isnan().any(1)
    finite = columns.isfinite().all(1)
    count = finite.sum()
    kept = torch.where(finite[:, None], columns, 0)
    scale = torch.ones((), dtype=wide, device=columns.device)
    if columns.dtype is wide:
        largest = kept.abs().amax()
        scale = torch.where(largest > 0, largest, 1)
        kept = kept / scale
    mean = kept.sum(0, dtype=wide) / count
    centre = mean.to(kept.dtype)
    off = torch.where(finite[:, None], kept - centre, 0)
    dev = torch.linalg.vector_norm(off, dtype=wide).square() - count * (mean - centre).square().sum()
    mean = mean * scale
    real = columns.shape[1] == 1
    row = (
        count,
        mean[0],
        torch.zeros_like(scale) if real else mean[1],
        dev.clamp(min=0).sqrt() * scale,
        torch.linalg.vector_norm(kept, dtype=wide) * scale,
        torch.where(finite, columns[:, 0], math.inf).amin(),
        torch.where(finite, columns[:, 0], -math.inf).amax(),
        (columns == 0).all(1).sum(),
        nan.sum(),
        columns.shape[0] - count - nan.sum(),
    )
    return torch.stack([value.to(wide) for value in row])


def _combine(count: int, is_complex: bool, parts: Sequence[_Part]) -> StatsRecord:
    """The statistics of all chunks."""
    whole = _joined(parts)
    zeros, nan, inf = int(whole.zeros), int(whole.nan), int(whole.inf)
    if not whole.finite:
        return StatsRecord(count, None, None, None, None, None, zeros, nan, inf)
    std = whole.dev / math.sqrt(whole.finite)
    if is_complex:
        return StatsRecord(count, None, std, None, None, whole.norm, zeros, nan, inf)
    return StatsRecord(count, whole.mean, std, whole.low, whole.high, whole.norm, zeros, nan, inf)


def _joined(parts: Sequence[_Part]) -> _Part:
    """All chunks as one; hypot keeps squares of huge values from overflowing."""
    zeros, nan, inf = (sum(part[column] for part in parts) for column in (7, 8, 9))
    parts = [part for part in parts if part.finite]
    finite = sum(part.finite for part in parts)
    if not finite:
        return _Part(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, zeros, nan, inf)
    mean, imag = (math.fsum(part[column] * (part.finite / finite) for part in parts) for column in (1, 2))
    distances = (
        component
        for part in parts
        for component in (
            part.dev,
            math.sqrt(part.finite) * (part.mean - mean),
            math.sqrt(part.finite) * (part.mean_imag - imag),
        )
    )
    dev = math.hypot(*distances)
    norm = math.hypot(*(part.norm for part in parts))
    low, high = min(part.low for part in parts), max(part.high for part in parts)
    return _Part(finite, mean, imag, dev, norm, low, high, zeros, nan, inf)
