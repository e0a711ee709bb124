"""Statistics of a tensor: on the CPU at once, elsewhere as a small tensor that is fetched later."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import torch

from modscope_server.errors import NotMaterialized
from modscope_server.inspection.device_reduction import counted, masked
from modscope_server.inspection.histogram import Buckets, host_histogram
from modscope_server.inspection.host_reduction import CHUNK, host_parts, plain_parts, plain_values
from modscope_server.inspection.partial_sums import Part, joined, record
from modscope_server.inspection.records import HistogramRecord, SampleRecord, StatsRecord
from modscope_server.inspection.row_reduction import Rows
from modscope_server.inspection.sampling import sample_record, stride_for
from modscope_server.inspection.tensors import dtype_name, unreadable_reason

__all__ = ["Later", "Reduction", "pool", "reduce", "statistics"]

_DEVICE_CHUNK = 1 << 24
"""Elements reduced at a time; bounds the temporaries."""
_EXACT = frozenset((torch.float32, torch.float64))


class Gathered(Protocol):
    """Small tensors on the CPU that are reduced together."""

    def reduce(self) -> None:
        """Give each of them its `result`; this computes, and waits for no device."""


class Later:
    """What stands for the part of a small tensor on the CPU until somebody asks for it.

    Args:
        gathered: what the tensor is one of.
    """

    __slots__ = ("_gathered", "result")

    def __init__(self, gathered: Gathered) -> None:
        self._gathered = gathered
        self.result: tuple[Rows, int] | None = None

    def row(self) -> tuple[Rows, int]:
        """Of what it is which row; where that is not known, all that were gathered are reduced."""
        if self.result is None:
            self._gathered.reduce()
        assert self.result is not None
        return self.result

    def part(self) -> Part:
        """What its one chunk contributes."""
        rows, row = self.row()
        return rows.part(row)


class Numbers(Protocol):
    """A tensor, or what stands for one whose elements are on their way to the host."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the elements."""

    def tolist(self) -> Any:
        """The elements in lists; away from the CPU this waits for the device."""


_HERE = (tuple, Later)


class Reduction(NamedTuple):
    """A tensor's statistics, perhaps still on its device."""

    elements: int
    """How many were looked at."""
    is_complex: bool
    parts: tuple[Part, ...] | Later | Numbers
    """One row of ten numbers for each chunk; a tensor of shape (chunks, 10) away from the CPU."""
    buckets: HistogramRecord | Numbers | None = None
    """The histogram, where it was asked for and there is one; away from the CPU as `counted` gives it."""
    population: int | None = None
    """Elements of the tensor, where only a sample of them was looked at."""

    @property
    def is_here(self) -> bool:
        """Whether all of it is known on the host, or takes no waiting to be."""
        return isinstance(self.parts, _HERE)

    def resolve(self) -> StatsRecord:
        """The statistics; away from the CPU this waits for the device."""
        parts = self.parts
        # Most tensors are one chunk on the CPU; this is asked once for each value of each event.
        if isinstance(parts, Later):
            return record(self.elements, self.is_complex, parts.part())
        if isinstance(parts, tuple) and len(parts) == 1:
            return record(self.elements, self.is_complex, parts[0])
        return record(self.elements, self.is_complex, self._whole())

    def histogram(self) -> HistogramRecord | None:
        """The histogram, where it was asked for; None for complex tensors and where no element is finite."""
        if self.buckets is None or isinstance(self.buckets, HistogramRecord):
            return self.buckets
        whole = self._whole()
        if not whole.finite:
            return None
        if whole.low == whole.high:
            return HistogramRecord((whole.low, whole.high), (int(whole.finite),))
        centre, unit, scale, *counts = self.buckets.tolist()
        buckets = Buckets(centre, unit, scale, self.buckets.dtype.itemsize)
        return buckets.histogram([int(count) for count in counts], whole.low, whole.high)

    def sample(self) -> SampleRecord | None:
        """How the elements were sampled; None where all were looked at."""
        if self.population is None:
            return None
        return sample_record(self.population, self.elements, self.is_complex, self._whole())

    def _whole(self) -> Part:
        return joined(self.rows())

    def rows(self) -> tuple[Part, ...]:
        """The parts, in host memory."""
        if isinstance(self.parts, tuple):
            return self.parts
        if isinstance(self.parts, Later):
            return (self.parts.part(),)
        return tuple(Part(*row) for row in self.parts.tolist())


def statistics(t: torch.Tensor) -> StatsRecord:
    """Statistics of a tensor, true to float64. Raises NotMaterialized for what has no plain elements."""
    return reduce(t).resolve()


def reduce(t: torch.Tensor, *, histogram: bool = False, sample: int = 0) -> Reduction:
    """Reduce a tensor on its own device; away from the CPU nothing waits for the device.

    Any dtype with arithmetic is served. Where `sample` is given, no more elements than that are looked
    at. Raises NotMaterialized for what has no plain elements.
    """
    values = plain_values(t)
    if values is not None and 0 < len(values) <= CHUNK and not 0 < sample < len(values):
        parts = plain_parts(values)
        buckets = host_histogram((values,), joined(parts), values.itemsize) if histogram else None
        return Reduction(len(values), False, parts, buckets)
    reason = unreadable_reason(t)
    if reason:
        raise NotMaterialized(
            f"no statistics of this tensor: it is {reason}", hint="read a dense tensor instead"
        )
    with torch._C.DisableTorchFunctionSubclass():
        flat = _flat(t.detach())
        population = None
        if 0 < sample < flat.numel():
            population = flat.numel()
            flat = flat[:: stride_for(t.shape, sample)].contiguous()
        count, is_complex = flat.numel(), flat.is_complex()
        if not count:
            return Reduction(0, is_complex, ())
        if flat.device.type == "cpu" and not is_complex:
            parts = host_parts(flat, _working)
            buckets = _host_histogram(flat, parts) if histogram else None
            return Reduction(count, False, parts, buckets, population)
        chunks = [_columns(chunk) for chunk in torch.split(flat, _DEVICE_CHUNK)]
        rows = torch.stack([masked(chunk) for chunk in chunks])
        wanted = histogram and not is_complex
        codes = counted([chunk[:, 0] for chunk in chunks], rows) if wanted else None
        return Reduction(count, is_complex, rows, codes, population)


def pool(reductions: Iterable[Reduction]) -> Reduction:
    """The reduction of several tensors as if they were one, in host memory: this waits for their devices.

    Histograms are left out.
    """
    reductions = list(reductions)
    rows = [row for reduction in reductions for row in reduction.rows()]
    count = sum(reduction.elements for reduction in reductions)
    return Reduction(count, any(reduction.is_complex for reduction in reductions), (joined(rows),))


def _host_histogram(flat: torch.Tensor, parts: tuple[Part, ...]) -> HistogramRecord | None:
    chunks = (_working(chunk) for chunk in torch.split(flat, CHUNK))
    itemsize = _working(flat[:1]).dtype.itemsize
    return host_histogram((chunk.numpy() for chunk in chunks), joined(parts), itemsize)


def _flat(t: torch.Tensor) -> torch.Tensor:
    """The elements in one dimension, in the order of memory where that saves a copy."""
    if not t.is_contiguous():
        order = sorted(range(t.ndim), key=lambda dim: (-t.stride()[dim], -t.shape[dim]))
        t = t.permute(order)
    return t.resolve_conj().resolve_neg().reshape(-1)


def _working(chunk: torch.Tensor) -> torch.Tensor:
    """The chunk in float32 where that holds each of its values exactly, else in float64."""
    dtype = chunk.dtype
    if dtype in _EXACT:
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
