"""The buckets of histograms: where they lie, which is known once mean and spread are.

Buckets lie about the mean. With `unit`, the power of two from 1/16 to 1/8 of the standard deviation,
bucket k to the right of the mean holds the distances d for which floor(4 * log2'(1 + d / unit)) is k, where
log2' is the logarithm drawn straight between powers of two: four buckets in each octave, as the exponent and
the first two bits of the mantissa of unit + d have it. So they are fine where most elements are, and some 45
of them hold a normal distribution whatever its scale; and since no element is more than sqrt(n) standard
deviations from the mean, 128 to each side are always enough. Outer buckets that hold nothing are left out,
and the outermost edges are the least and the largest element.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from modscope_server.inspection.host_reduction import finite_elements, safe_scale
from modscope_server.inspection.partial_sums import Part
from modscope_server.inspection.records import HistogramRecord

__all__ = ["BITS", "CODES", "MANTISSA", "Buckets", "buckets_of", "host_histogram"]

CODES = 256
"""A bucket has a code of one byte: k to the right of the mean, 255 - k to its left."""
MANTISSA = {4: 23, 8: 52}
"""Item size -> bits of the mantissa."""
BITS = 2
"""So many bits of the mantissa tell the buckets of an octave apart."""
_BLOCK = 1 << 15
"""Elements in a pass: what belongs to them stays in the cache from one operation to the next."""
_SMALLEST_UNIT = {4: 2.0**-120, 8: 2.0**-1000}
_LARGEST = {4: 1e38, 8: 1e307}


@dataclass(frozen=True, slots=True)
class Buckets:
    """Where the buckets lie, for elements that were divided by `scale`."""

    centre: float
    """The mean, to what their dtype holds of it."""
    unit: float
    scale: float
    itemsize: int
    """Of the floating-point elements that are told apart, in bytes."""

    def histogram(self, counts: Sequence[int], low: float, high: float) -> HistogramRecord:
        """The record of the counts by code."""
        half = CODES // 2
        in_order = [*counts[half:], *counts[:half]]
        filled = [index for index, count in enumerate(in_order) if count]
        first, last = filled[0], filled[-1]
        inner = [self._edge(index - half) for index in range(first + 1, last + 1)]
        edges = (low, *(min(max(edge, low), high) for edge in inner), high)
        return HistogramRecord(edges, tuple(in_order[first : last + 1]))

    def _edge(self, number: int) -> float:
        """The left edge of bucket `number`, counted from the centre."""
        octave, quarter = divmod(abs(number), 1 << BITS)
        distance = self.unit * (2.0**octave * (1 + quarter / (1 << BITS)) - 1)
        return (self.centre + math.copysign(distance, number)) * self.scale


def buckets_of(whole: Part, itemsize: int) -> Buckets:
    """The buckets for the elements that `whole` tells of; at least one is finite, and not all are equal."""
    scale = 1.0
    # The spread is no less than this, whatever was rounded.
    dev = max(whole.dev, (whole.high - whole.low) / math.sqrt(2))
    std = dev / math.sqrt(whole.finite)
    if std / 16 <= _SMALLEST_UNIT[itemsize] or max(-whole.low, whole.high) >= _LARGEST[itemsize]:
        scale, itemsize = safe_scale(max(-whole.low, whole.high), 8), 8
    unit = math.ldexp(1.0, math.frexp(std / scale)[1] - 4)
    centre = whole.mean / scale
    return Buckets(float(numpy.float32(centre)) if itemsize == 4 else centre, unit, scale, itemsize)


def host_histogram(chunks: Iterable[Any], whole: Part, itemsize: int) -> HistogramRecord | None:
    """The histogram of chunks of float32 or float64 on the CPU; None where no element is finite."""
    if not whole.finite:
        return None
    if whole.low == whole.high:
        return HistogramRecord((whole.low, whole.high), (int(whole.finite),))
    buckets = buckets_of(whole, itemsize)
    counter = _Counter(buckets)
    for values in chunks:
        for start in range(0, len(values), _BLOCK):
            block = values[start : start + _BLOCK]
            counter.add(finite_elements(block) if whole.nan or whole.inf else block)
    return buckets.histogram(counter.counts.tolist(), whole.low, whole.high)


class _Counter:
    """Counts elements by the codes of their buckets."""

    def __init__(self, buckets: Buckets) -> None:
        self.counts = numpy.zeros(CODES, "int64")
        self._scale = buckets.scale
        bits = 8 * buckets.itemsize
        self._dtype, self._whole = numpy.dtype(f"float{bits}"), numpy.dtype(f"int{bits}")
        # A centre of -0.0 makes no difference of -0.0, whose sign would tell the wrong side.
        self._centre = self._dtype.type(buckets.centre or -0.0)
        self._unit = self._dtype.type(buckets.unit)
        self._shift = MANTISSA[buckets.itemsize] - BITS
        self._first = self._whole.type(int(self._unit.view(self._whole)) >> self._shift)
        self._sign = bits - 1

    def add(self, values: Any) -> None:
        """Count one block."""
        if self._scale != 1.0:
            values = values.astype(numpy.float64) / self._scale
        distance = numpy.subtract(values, self._centre, dtype=self._dtype)
        length = numpy.abs(distance)
        length += self._unit
        bucket, side = length.view(self._whole), distance.view(self._whole)
        bucket >>= self._shift
        bucket -= self._first
        side >>= self._sign
        codes = numpy.empty(len(values), "uint8")
        numpy.bitwise_xor(bucket, side, out=codes, casting="unsafe")
        self.counts += torch.bincount(torch.from_numpy(codes), minlength=CODES).numpy()
