"""Which elements stand for a large tensor, and how far the mean of a sample may be off."""

from __future__ import annotations

import math
from collections.abc import Sequence

from modscope_server.inspection.partial_sums import Part
from modscope_server.inspection.records import SampleRecord

__all__ = ["sample_record", "stride_for"]


def stride_for(shape: Sequence[int], most: int) -> int:
    """Every how manieth element to take, so that there are at most `most`; 1 takes all.

    It has no divisor in common with any dimension: a sample that met the same channel again and again would
    tell of that channel alone.
    """
    stride = -(-math.prod(shape) // most)
    while any(math.gcd(stride, size) > 1 for size in shape):
        stride += 1
    return stride


def sample_record(population: int, elements: int, is_complex: bool, whole: Part) -> SampleRecord:
    """What is known of a sample of `elements` out of `population`, as if it were drawn at random."""
    if whole.finite < 2 or is_complex:
        return SampleRecord(elements, None)
    std = whole.dev / math.sqrt(whole.finite - 1)
    error = std / math.sqrt(whole.finite) * math.sqrt(max(0.0, 1 - elements / population))
    return SampleRecord(elements, error)
