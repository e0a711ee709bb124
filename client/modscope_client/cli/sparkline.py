"""A histogram as a line of bars."""

from __future__ import annotations

from modscope_client.types import Histogram

__all__ = ["sparkline"]

_BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def sparkline(histogram: Histogram, width: int = 24) -> str:
    """Equally wide columns from the least to the largest element; a blank where there is none.

    Buckets are of unequal width: what lies in one is spread evenly over the columns that it covers.
    """
    low, high = histogram.edges[0], histogram.edges[-1]
    # Halves, since the distance of the largest doubles is none.
    column = (high / 2 - low / 2) / width * 2
    if not column:
        return _BARS[-1]
    amounts = [0.0] * width
    for left, right, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
        begin, end = (edge / column - low / column for edge in (left, right))
        first = min(int(begin), width - 1)
        last = min(max(int(end), first), width - 1)
        for index in range(first, last + 1):
            covered = min(end, index + 1) - max(begin, index)
            share = covered / (end - begin) if end > begin else 1.0 / (last - first + 1)
            amounts[index] += count * max(share, 0.0)
    most = max(amounts)
    return "".join(_bar(amount / most) for amount in amounts)


def _bar(share: float) -> str:
    return _BARS[min(int(share * len(_BARS)), len(_BARS) - 1)] if share > 0 else " "
