"""Things measured in turns, their median ratio, its interval, and whether a bar holds."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "MAX_WIDTH",
    "QUICK",
    "Bar",
    "Effort",
    "Pairs",
    "Row",
    "Turns",
    "absent",
    "added",
    "compared",
    "in_turns",
    "interval",
    "measure",
    "quantity",
    "ratio",
]

Turns: TypeAlias = "dict[str, list[float]]"
"""Measurements of several things, by name. Element i of all belongs together."""

MAX_WIDTH = 0.02
"""Widest interval, as a share of the median, under which a bar that lies inside it is decided."""

_CONFIDENCE = 0.95
_RESAMPLED = 2000


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
    warms_up: bool = True
    """Whether a first turn is left out."""


QUICK = Effort(1, 1, 0.0, warms_up=False)
"""Once: it shows that a measurement runs, and nothing of its numbers."""


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
    """Median ratio, or a quantity; NaN where it could not be measured."""
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
        """yes, no or noisy; absent where it could not be measured; "" without a bar.

        Where the bar lies outside the interval the matter is clear. Where it lies inside, it holds
        if the interval is at most 2 % wide, and otherwise the machine was too noisy to tell.
        """
        if math.isnan(self.value):
            return "absent"
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


def absent(name: str, why: str, *, bar: Bar | None = None) -> Row:
    """The row for what cannot be measured here, such as a peer that is not installed."""
    return Row(name, math.nan, "x", math.nan, math.nan, bar, 0, why)


def compared(name: str, turns: Turns, ours: str, peer: str, bar: Bar | None) -> Row:
    """The row for the seconds of one thing over those of another."""
    one, other = (statistics.median(turns[side]) * 1e3 for side in (ours, peer))
    pairs = Pairs(turns[ours], turns[peer])
    return ratio(name, pairs, bar=bar, detail=f"{one:.2f} beside {other:.2f} ms")


def added(name: str, turns: Turns, ours: str, peer: str, base: str, bar: Bar | None) -> Row:
    """The row for what one thing adds to the base, over what another adds to it: the medians of the turns.

    Not the median of the turns' ratios: where the other adds little, the ratio of one turn is mostly noise.
    The interval is the bootstrap's, over turns. Where the other adds nothing the ratio is infinite.
    """
    extra = {
        side: [value - plain for value, plain in zip(turns[side], turns[base], strict=True)]
        for side in (ours, peer)
    }
    one, other = (statistics.median(extra[side]) for side in (ours, peer))
    low, high = _bootstrapped(extra[ours], extra[peer])
    detail = f"{one * 1e3:+.2f} beside {other * 1e3:+.2f} ms"
    return Row(name, _over(one, other), "x", low, high, bar, len(extra[ours]), detail)


def measure(ours: Callable[[], float], peer: Callable[[], float], effort: Effort) -> Pairs:
    """Measure both in turns until the interval of ours / peers is narrow enough or the effort is spent."""
    turns = in_turns({"ours": ours, "peer": peer}, effort)
    return Pairs(turns["ours"], turns["peer"])


def in_turns(sides: Mapping[str, Callable[[], float]], effort: Effort) -> Turns:
    """Measure all in turns, each time another first, until the interval of the first over the second is
    narrow enough or the effort is spent."""
    names = list(sides)
    turns: Turns = {name: [] for name in names}
    if effort.warms_up:
        for name in names:
            sides[name]()
    ours, peer = names[:2]
    ends, count = time.monotonic() + effort.seconds, 0
    while count < effort.most:
        first = count % len(names)
        for name in names[first:] + names[:first]:
            turns[name].append(sides[name]())
        count += 1
        if count >= effort.least and (
            time.monotonic() > ends or compared("", turns, ours, peer, None).width <= effort.width
        ):
            break
    return turns


def _over(one: float, other: float) -> float:
    return one / other if other > 0 else math.inf


def _bootstrapped(ours: Sequence[float], peers: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the ratio of the medians, were other turns drawn from these."""
    draw, turns = random.Random(0), range(len(ours))
    ratios = []
    for _ in range(_RESAMPLED):
        drawn = draw.choices(turns, k=len(turns))
        sides = (statistics.median([side[turn] for turn in drawn]) for side in (ours, peers))
        ratios.append(_over(*sides))
    ratios.sort()
    cut = int(_RESAMPLED * (1 - _CONFIDENCE) / 2)
    return ratios[cut], ratios[-1 - cut]


def _share(count: int, heads: int) -> float:
    """Probability of so many heads in `count` throws of a coin."""
    ways = math.lgamma(count + 1) - math.lgamma(heads + 1) - math.lgamma(count - heads + 1)
    return math.exp(ways - count * math.log(2))
