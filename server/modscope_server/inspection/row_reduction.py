"""Reductions of many small tensors of float32 on the CPU at once: each is a row of a matrix."""

from __future__ import annotations

from typing import Any

import numpy

from modscope_server.inspection.host_reduction import OFF_CENTRE, plain_parts
from modscope_server.inspection.partial_sums import Part

__all__ = ["FEW", "Rows", "reduced_rows"]

FEW = 1 << 11
"""Up to so many elements, the calls that reduce them cost more than their work."""


class Rows:
    """What each row contributes, in columns of numbers.

    Args:
        count: elements of a row.
        means, devs, norms, lows, highs: of the elements of each row; arrays of float64.
        zeros: how many are zero, of each row.
        own: parts of the rows for which these mean nothing.
    """

    __slots__ = ("count", "devs", "encoded", "highs", "lows", "means", "norms", "own", "zeros")

    def __init__(
        self,
        count: int,
        *,
        means: Any,
        devs: Any,
        norms: Any,
        lows: Any,
        highs: Any,
        zeros: list[int],
        own: dict[int, Part],
    ) -> None:
        self.count = count
        self.means, self.devs, self.norms, self.lows, self.highs = means, devs, norms, lows, highs
        self.zeros = zeros
        self.own = own
        self.encoded: list[bytes] | None = None
        """What subscribers are sent of each, once the first has been encoded."""

    def __len__(self) -> int:
        return len(self.zeros)

    def part(self, row: int) -> Part:
        """What one row contributes."""
        own = self.own.get(row)
        if own is not None:
            return own
        columns = (self.means, self.devs, self.norms, self.lows, self.highs)
        mean, dev, norm, low, high = (float(column[row]) for column in columns)
        return Part(self.count, mean, 0.0, dev, norm, low, high, self.zeros[row], 0, 0)


def reduced_rows(rows: Any) -> Rows:
    """Reduce each row of a matrix of float32, of at most FEW columns: all rows at once, in float64.

    It takes the calls of one reduction for all of them; only rows with something special get their own.
    """
    # What warns of nan and of overflow are the rows that get their own.
    with numpy.errstate(all="ignore"):
        return _reduced_rows(rows)


def _reduced_rows(rows: Any) -> Rows:
    count = rows.shape[1]
    lows, highs = numpy.minimum.reduce(rows, axis=1), numpy.maximum.reduce(rows, axis=1)
    is_zero = rows == 0
    zeros = [0] * len(rows)
    if numpy.count_nonzero(is_zero):
        zeros = [int(numpy.count_nonzero(row)) for row in is_zero]
    wide = rows.astype(numpy.float64)
    total = numpy.add.reduce(wide, axis=1)
    squares = numpy.matmul(wide[:, None, :], wide[:, :, None]).reshape(-1)
    means = total / count
    centre = total * means
    spread = squares - centre
    # Not where an element is nan or infinite, all are alike, or the mean is large.
    is_plain = (lows < highs) & (spread >= OFF_CENTRE * centre) & numpy.isfinite(squares)
    return Rows(
        count,
        means=means,
        devs=numpy.sqrt(spread),
        norms=numpy.sqrt(squares),
        lows=lows.astype(numpy.float64),
        highs=highs.astype(numpy.float64),
        zeros=zeros,
        own={int(row): plain_parts(rows[row])[0] for row in numpy.flatnonzero(~is_plain)},
    )
