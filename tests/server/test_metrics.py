"""Metrics keep what a loop reports: bounded, without its graph, and never in its way."""

from __future__ import annotations

import gc
import logging
import math
import weakref
from fractions import Fraction
from typing import Any

import numpy
import pytest
import torch

from modscope_server.runtime.metrics import Metric, Metrics, Point
from tests.server.elsewhere import Elsewhere, Stream, on_elsewhere


def reported(**values: Any) -> Metrics:
    metrics = Metrics()
    metrics.report(1, values)
    return metrics


@pytest.mark.parametrize(
    "value",
    [
        3,
        True,
        -2.5,
        Fraction(1, 4),
        numpy.float32(0.1),
        numpy.int64(7),
        numpy.array(1.5),
        torch.tensor(1.5),
        torch.tensor([[2]], dtype=torch.int8),
        torch.tensor(0.1, dtype=torch.bfloat16),
        torch.tensor(True),
        math.inf,
        -math.inf,
    ],
)
def test_numbers_and_tensors_of_one_element_are_kept(value: Any) -> None:
    metrics = reported(loss=value)
    assert metrics.latest("loss") == float(value)
    assert metrics.history(0) == [Metric("loss", ())]
    assert metrics.history(1) == [Metric("loss", (Point(1, float(value)),))]
    assert not metrics.notes


def test_nan_is_a_value() -> None:
    assert math.isnan(reported(loss=torch.tensor(math.nan)).latest("loss") or 0)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "3",
        b"3",
        [1.0],
        object(),
        1j,
        torch.ones(2),
        torch.ones(0),
        torch.tensor(1j),
        torch.empty((), device="meta"),
        numpy.ones(2),
    ],
)
def test_a_bad_value_is_logged_once_and_hides_no_other(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    with caplog.at_level(logging.WARNING, "modscope_server"):
        for step in range(3):
            metrics.report(step, {"first": 1.0, "bad": value, "last": 2.0})
    assert [record.getMessage()[:16] for record in caplog.records] == ["scope.step: bad "]
    assert [metric.name for metric in metrics.history(-1)] == ["first", "last"]
    assert metrics.latest("bad") is None
    assert any("'bad'" in note for note in metrics.notes)


def test_names_are_text_of_some_length() -> None:
    metrics = Metrics()
    metrics.report(1, {"": 1.0, "x" * 257: 1.0, 3: 1.0, "odd name/\n": 1.0})  # type: ignore[dict-item]
    assert [metric.name for metric in metrics.history(1)] == ["odd name/\n"]


def test_the_graph_of_a_value_is_let_go() -> None:
    weight = torch.ones(3, requires_grad=True)
    middle = weight * 2
    graph = weakref.ref(middle)
    metrics = reported(loss=middle.sum(), weight=torch.nn.Parameter(torch.tensor([4.0])))
    del middle
    gc.collect()
    assert graph() is None
    assert (metrics.latest("loss"), metrics.latest("weight")) == (6.0, 4.0)


def test_a_value_is_taken_before_the_loop_goes_on_with_it() -> None:
    running = torch.tensor(1.0)
    metrics = reported(loss=running)
    running.add_(1)
    assert metrics.latest("loss") == 1.0


def test_the_last_1024_points_are_kept() -> None:
    metrics = Metrics()
    for step in range(1500):
        metrics.report(step, {"loss": step / 2})
    (all_kept,) = metrics.history(-1)
    assert all_kept.points == tuple(Point(step, step / 2) for step in range(476, 1500))
    (last,) = metrics.history(3)
    assert last.points == all_kept.points[-3:]
    assert metrics.history(10_000) == [all_kept]


def test_a_65th_name_is_told_and_the_others_go_on() -> None:
    metrics = Metrics()
    for step in range(2):
        metrics.report(step, {f"m{number:02}": number for number in range(66)})
    history = metrics.history(-1)
    assert [metric.name for metric in history] == [f"m{number:02}" for number in range(64)]
    assert all(len(metric.points) == 2 for metric in history)
    (note,) = metrics.notes
    assert "'m64', 'm65'" in note
    assert metrics.latest("m64") is None


def test_a_value_of_an_accelerator_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    on_elsewhere(monkeypatch)
    metrics = Metrics()
    for step in (1, 2):
        metrics.report(step, {"loss": torch.tensor(step * 1.5).as_subclass(Elsewhere)})
    assert not Stream.arrived, "reporting has waited for the device"
    assert metrics.history(-1) == [Metric("loss", (Point(1, 1.5), Point(2, 3.0)))]
    assert Stream.arrived
    Stream.arrived = False
    metrics.report(3, {"loss": torch.tensor(4.5).as_subclass(Elsewhere)})
    metrics.report(4, {"loss": 6.0})
    assert [point.step for point in metrics.history(-1)[0].points] == [1, 2, 3, 4], "values keep their order"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_value_of_a_gpu_is_that_of_its_moment() -> None:
    value = torch.ones((), device="cuda")
    metrics = Metrics()
    torch.cuda._sleep(100_000_000)
    for step in range(3):
        value.add_(1)
        metrics.report(step, {"loss": value})
    value.fill_(-1)
    assert metrics.history(-1) == [Metric("loss", (Point(0, 2.0), Point(1, 3.0), Point(2, 4.0)))]
