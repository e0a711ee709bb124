"""What one chunk of a tensor contributes to its statistics, and how chunks make a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from modscope_server.inspection.records import StatsRecord

__all__ = ["Part", "joined", "record"]


class Part(NamedTuple):
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


def joined(parts: Sequence[Part]) -> Part:
    """All chunks as one; hypot keeps squares of huge values from overflowing."""
    if len(parts) == 1:
        return parts[0]
    zeros, nan, inf = (sum(part[column] for part in parts) for column in (7, 8, 9))
    parts = [part for part in parts if part.finite]
    finite = sum(part.finite for part in parts)
    if not finite:
        return Part(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, zeros, nan, inf)
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
    return Part(finite, mean, imag, dev, norm, low, high, zeros, nan, inf)


def record(count: int, is_complex: bool, whole: Part) -> StatsRecord:
    """The statistics of `count` elements of which `whole` tells."""
    finite, mean, _, dev, norm, low, high, zeros, nan, inf = whole
    zeros, nan, inf = int(zeros), int(nan), int(inf)
    if not finite:
        return StatsRecord(count, None, None, None, None, None, zeros, nan, inf)
    std = dev / math.sqrt(finite)
    if is_complex:
        return StatsRecord(count, None, std, None, None, norm, zeros, nan, inf)
    return StatsRecord(count, mean, std, low, high, norm, zeros, nan, inf)
