"""Pairs measured side by side, their median ratio, its interval, and whether a bar holds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["MAX_WIDTH", "Bar", "Effort", "Pairs", "Row", "interval", "measure", "quantity", "ratio"]

MAX_WIDTH = 0.02
"""Widest interval, as a share of the median, under which a bar that lies inside it is decided."""

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Bar:
    """A limit that a ratio or a quantity must keep."""

    limit: float
    at_least: bool = False
    """Whether the limit is the least that is allowed, instead of the most."""

    def holds(self, value: float) -> bool:
        """Whether the value keeps the limit."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


@dataclass(frozen=True)
class Effort:
    """How long to measure: until the interval is narrow enough, within these bounds."""

    least: int
    """Pairs, at least."""
    most: int
    """Pairs, at most."""
    seconds: float
    """No new pair is begun later than this, once the least is reached."""
    width: float = MAX_WIDTH
    """Width of the interval, as a share of the median, at which it is narrow enough."""


@dataclass(frozen=True)
class Pairs:
    """Measurements of two things, taken in turns. Element i of both belongs together."""

    ours: list[float]
    peers: list[float]


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    value: float
    """Median ratio, or a quantity."""
    unit: str
    """"x" for a ratio, else the unit of the quantity."""
    low: float
    """Lower end of the 95 % interval; the value itself for a quantity."""
    high: float
    """Upper end."""
    bar: Bar | None
    pairs: int
    """Pairs behind a ratio; 0 for a quantity."""
    detail: str
    """The two medians, or what is counted."""

    @property
    def width(self) -> float:
        """Width of the interval as a share of the value."""
        return (self.high - self.low) / self.value if self.value else 0.0

    @property
    def verdict(self) -> str:
        """yes, no or noisy; "" without a bar.

        Where the bar lies outside the interval the matter is clear. Where it lies inside, it holds
        if the interval is at most 2 % wide, and otherwise the machine was too noisy to tell.
        """
        if self.bar is None:
            return ""
        low, high = self.bar.holds(self.low), self.bar.holds(self.high)
        if low == high:
            return "yes" if low else "no"
        return "yes" if self.width <= MAX_WIDTH else "noisy"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the median, from order statistics; no distribution is assumed.

    Fewer than six values cannot give one: their range is returned, which is less certain.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    count = len(ordered)
    # The ranks k and n + 1 - k miss the median when fewer than k values fall on one side of it.
    rank, missed = 0, _share(count, 0)
    while missed <= (1 - _CONFIDENCE) / 2:
        rank += 1
        missed += _share(count, rank)
    rank = max(rank, 1)
    return ordered[rank - 1], ordered[count - rank]


def ratio(name: str, pairs: Pairs, *, bar: Bar | None, detail: str, invert: bool = False) -> Row:
    """The row for ours / peers, the median of the pairs' ratios; inverted, of peers / ours.

    Times become a ratio of throughputs by inversion. Raises ValueError without pairs.
    """
    ratios = [b / a if invert else a / b for a, b in zip(pairs.ours, pairs.peers, strict=True)]
    low, high = interval(ratios)
    return Row(name, statistics.median(ratios), "x", low, high, bar, len(ratios), detail)


def quantity(name: str, value: float, unit: str, *, bar: Bar | None, detail: str) -> Row:
    """The row for one number that needs no peer."""
    return Row(name, value, unit, value, value, bar, 0, detail)


def measure(ours: Callable[[], float], peer: Callable[[], float], effort: Effort) -> Pairs:
    """Measure both in turns, the first of a pair alternating, until the interval of ours / peers is
    narrow enough or the effort is spent. The first pair warms up and is left out."""
    pairs = Pairs([], [])
    ours(), peer()
    ends = time.monotonic() + effort.seconds
    while len(pairs.ours) < effort.most:
        if len(pairs.ours) % 2:
            peers_value = peer()
            pairs.ours.append(ours())
            pairs.peers.append(peers_value)
        else:
            pairs.ours.append(ours())
            pairs.peers.append(peer())
        if len(pairs.ours) >= effort.least and (
            time.monotonic() > ends or ratio("", pairs, bar=None, detail="").width <= effort.width
        ):
            break
    return pairs


def _share(count: int, heads: int) -> float:
    """Probability of so many heads in `count` throws of a coin."""
    ways = math.lgamma(count + 1) - math.lgamma(heads + 1) - math.lgamma(count - heads + 1)
    return math.exp(ways - count * math.log(2))
