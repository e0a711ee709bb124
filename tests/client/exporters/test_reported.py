"""Points of reported metrics: each once, in the order of their steps, whoever tells them."""

from __future__ import annotations

from modscope_client.exporters.reported import Reported, ReportedPoint
from modscope_client.types import Metric, MetricPoint


def told(step: int, name: str = "loss") -> ReportedPoint:
    return ReportedPoint(1e9 + step, step, name, float(step))


def kept(*steps: int, name: str = "loss") -> Metric:
    return Metric(name, tuple(MetricPoint(step, float(step)) for step in steps))


def steps(points: list[ReportedPoint]) -> list[int]:
    return [point.step for point in points]


def test_events_wait_for_what_is_older() -> None:
    reported = Reported()
    assert reported.told(told(8)) == reported.told(told(9)) == []
    points = reported.kept([kept(6, 7, 8)], now=5.0)
    assert steps(points) == [6, 7, 8, 9]
    assert [point.time for point in points] == [5.0, 5.0, 5.0, 1e9 + 9]
    assert reported.told(told(10)) == [told(10)]


def test_each_point_is_given_on_once() -> None:
    reported = Reported()
    assert steps(reported.kept([kept(1, 2)], now=0)) == [1, 2]
    assert reported.told(told(2)) == reported.kept([kept(1, 2)], now=0) == []
    assert steps(reported.told(told(3))) == [3]
    assert steps(reported.kept([kept(2, 3, 4), kept(3, name="lr")], now=0)) == [4, 3]
    assert reported.told(told(3)) == reported.told(told(4)) == reported.told(told(3, "lr")) == []
    assert reported.rest() == []


def test_where_nothing_older_comes_they_go_with_the_end_or_when_there_are_many() -> None:
    reported = Reported()
    reported.told(told(1))
    assert steps(reported.rest()) == [1]
    many = Reported()
    given = [many.told(told(step)) for step in range(2000)]
    assert given[1022] == []
    assert [point.step for points in given for point in points] == list(range(2000))


def test_a_long_run_is_remembered_by_a_bound() -> None:
    reported = Reported()
    reported.kept([], now=0)
    for step in range(10_000):
        assert steps(reported.told(told(step))) == [step]
    assert reported.kept([kept(*range(8976, 10_000))], now=0) == []
    assert sum(map(len, reported._told.values())) <= 2048
