"""The statistics behind the benchmarks' verdicts, on made-up data. Nothing here is timed."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest

from benchmarks.__main__ import _fields, _table
from benchmarks.measure import (
    QUICK,
    Bar,
    Effort,
    Pairs,
    Row,
    absent,
    added,
    compared,
    in_turns,
    interval,
    measure,
    quantity,
    ratio,
)


def row(value: float, low: float, high: float, bar: Bar | None) -> Row:
    return Row("claim", value, "x", low, high, bar, 50, "")


@pytest.mark.parametrize(
    ("count", "rank"),
    # Ranks of the 95 % interval of a median, as tables of the sign test give them.
    [(6, 1), (8, 1), (9, 2), (10, 2), (20, 6), (30, 10), (50, 18), (100, 40)],
)
def test_interval_takes_the_tabled_ranks(count: int, rank: int) -> None:
    values = [float(number) for number in range(1, count + 1)]
    random.Random(0).shuffle(values)
    assert interval(values) == (rank, count + 1 - rank)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_interval_of_a_handful_is_its_range(count: int) -> None:
    assert interval([float(number) for number in range(count)]) == (0, count - 1)


def test_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        interval([])


def test_interval_of_many_is_near_the_normal_one() -> None:
    low, high = interval([float(number) for number in range(10_000)])
    assert (low, high) == pytest.approx((5_000 - 98, 5_000 + 98), abs=3)


def test_interval_covers_the_true_median_in_95_of_100_cases() -> None:
    draw = random.Random(1)
    covered = 0
    for _ in range(2_000):
        low, high = interval([draw.lognormvariate(0, 0.3) for _ in range(25)])
        covered += low <= 1 <= high
    assert 0.94 <= covered / 2_000 <= 0.98


def test_ratio_is_the_median_of_the_pairs_ratios() -> None:
    # The medians of the sides are 3 and 3; pair by pair ours is twice the peer's.
    pairs = Pairs(ours=[2, 3, 20], peers=[1, 3, 10])
    assert ratio("", pairs, bar=None, detail="").value == 2
    assert ratio("", pairs, bar=None, detail="", invert=True).value == 0.5


def test_ratio_of_drifting_machine_stays_put() -> None:
    speeds = [1 + 0.1 * step for step in range(30)]
    found = ratio("", Pairs([1.25 * s for s in speeds], speeds), bar=None, detail="")
    assert found.value == pytest.approx(1.25)
    assert found.width == pytest.approx(0)


@pytest.mark.parametrize(
    ("value", "low", "high", "bar", "verdict"),
    [
        (1.2, 1.0, 1.4, Bar(1.5), "yes"),
        (1.7, 1.6, 1.9, Bar(1.5), "no"),
        (1.45, 1.3, 1.6, Bar(1.5), "noisy"),
        (1.004, 1.0, 1.012, Bar(1.01), "yes"),
        (1.012, 1.003, 1.02, Bar(1.01), "yes"),
        (1.014, 1.011, 1.02, Bar(1.01), "no"),
        (0.9, 0.88, 0.92, Bar(0.85, at_least=True), "yes"),
        (0.8, 0.79, 0.81, Bar(0.85, at_least=True), "no"),
        (0.86, 0.8, 0.9, Bar(0.85, at_least=True), "noisy"),
        (0.845, 0.84, 0.852, Bar(0.85, at_least=True), "yes"),
        (9.0, 1.0, 99.0, None, ""),
    ],
)
def test_verdict(value: float, low: float, high: float, bar: Bar | None, verdict: str) -> None:
    assert row(value, low, high, bar).verdict == verdict


def test_quantity_needs_no_interval() -> None:
    assert quantity("memory", 570, "MiB", bar=Bar(576), detail="").verdict == "yes"
    assert quantity("memory", 577, "MiB", bar=Bar(576), detail="").verdict == "no"


def test_measure_alternates_who_comes_first_and_leaves_the_warm_up_out() -> None:
    calls: list[str] = []

    def side(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    pairs = measure(lambda: side("ours"), lambda: side("peer"), Effort(4, 4, 0))
    assert calls == ["ours", "peer", "ours", "peer", "peer", "ours", "ours", "peer", "peer", "ours"]
    assert pairs == Pairs(ours=[3, 6, 7, 10], peers=[4, 5, 8, 9])


def test_measure_stops_when_the_interval_is_narrow() -> None:
    assert len(measure(lambda: 2.0, lambda: 1.0, Effort(7, 1_000, 60)).ours) == 7


def test_measure_goes_on_while_the_interval_is_wide() -> None:
    draw = random.Random(2)
    pairs = measure(lambda: draw.uniform(0.9, 1.1), lambda: 1.0, Effort(7, 5_000, 60))
    found = ratio("", pairs, bar=None, detail="")
    assert 7 < found.pairs < 5_000
    assert found.width <= 0.02
    assert found.value == statistics.median(pairs.ours)


def test_each_turn_begins_with_another_side() -> None:
    calls: list[str] = []

    def side(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    sides = {name: lambda name=name: side(name) for name in "abc"}
    turns = in_turns(sides, Effort(4, 4, 0))
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert turns == {"a": [4, 9, 11, 13], "b": [5, 7, 12, 14], "c": [6, 8, 10, 15]}


def test_quick_measures_once_and_warms_nothing_up() -> None:
    values = {"a": iter([2.0]), "b": iter([3.0])}
    sides = {name: lambda name=name: next(values[name]) for name in values}
    assert in_turns(sides, QUICK) == {"a": [2.0], "b": [3.0]}


def test_compared_tells_the_medians_in_milliseconds() -> None:
    found = compared("", {"ours": [0.002, 0.003, 0.009], "peer": [0.001, 0.001, 0.002]}, "ours", "peer", None)
    assert (found.value, found.pairs, found.detail) == (3, 3, "3.00 beside 1.00 ms")


def test_added_is_the_ratio_of_the_medians_of_what_turns_add() -> None:
    # Turn by turn ours adds 1, 2, 1 and the peer 4, 4, 8, whatever the base.
    turns = {"base": [10.0, 20.0, 30.0], "ours": [11.0, 22.0, 31.0], "peer": [14.0, 24.0, 38.0]}
    found = added("", turns, "ours", "peer", "base", Bar(0.25))
    assert (found.value, found.low, found.high) == (0.25, 0.125, 0.5)
    assert found.detail == "+1000.00 beside +4000.00 ms"


def test_a_turn_in_which_the_peer_adds_next_to_nothing_says_little_of_added_cost() -> None:
    noise = random.Random(1)
    base = [10 + noise.gauss(0, 0.5) for _ in range(40)]
    # Ours adds 1.2 and the peer 1, with as much noise: many single turns are far off.
    ours = [value + 1.2 + noise.gauss(0, 1) for value in base]
    peer = [value + 1 + noise.gauss(0, 1) for value in base]
    found = added("", {"base": base, "ours": ours, "peer": peer}, "ours", "peer", "base", Bar(4))
    assert 0.6 < found.low < 1.2 < found.high < 3
    assert found.verdict == "yes"


def test_peer_that_adds_nothing_counts_against_us() -> None:
    turns = {"base": [1.0, 1.0, 1.0], "ours": [1.1, 1.1, 1.1], "peer": [0.9, 1.0, 2.0]}
    found = added("", turns, "ours", "peer", "base", Bar(2))
    assert found.value == math.inf
    assert found.low == pytest.approx(0.1)
    assert found.verdict == "noisy"


def test_absent_is_neither_held_nor_missed() -> None:
    found = absent("claim", "wandb is not installed", bar=Bar(0.25))
    assert (found.verdict, found.pairs, found.detail) == ("absent", 0, "wandb is not installed")


def test_report_holds_null_where_there_is_no_number() -> None:
    fields = json.loads(json.dumps(_fields(absent("claim", "", bar=None)), allow_nan=False))
    assert fields["value"] is None and fields["low"] is None and fields["verdict"] == "absent"


def test_table_shows_why_a_row_is_absent() -> None:
    heading, line = _table([absent("claim", "wandb is not installed", bar=Bar(0.25))])
    assert heading.split()[0] == "claim"
    assert line.split("  ")[0] == "claim" and "<= 0.25" in line and "absent" in line
    assert line.endswith("wandb is not installed") and "nan" not in line
