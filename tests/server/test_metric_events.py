"""Reported scalars are told as events: their numbers, their steps, and that nobody waits for them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from modscope_server.inspection.records import HistogramRecord, StatsRecord
from modscope_server.runtime.bus import Draft, Reader
from modscope_server.services.event_bytes import pack
from tests.server.boundary_support import following
from tests.server.capture_support import drained, hook_tables, tensor_of
from tests.server.elsewhere import Elsewhere, Stream, on_elsewhere


@pytest.mark.parametrize(
    "value", [0.25, -2, True, 0.0, torch.tensor([3.5]), torch.tensor(7, dtype=torch.int8)]
)
def test_the_statistics_are_those_of_the_one_number(value: Any) -> None:
    number = float(value)
    with following(nn.Linear(1, 1)) as loop:
        watch = loop.watch(kinds=("metric",))
        loop.step(loss=value)
        (event,) = drained(watch)
    assert (event.step, event.model, event.path, event.raw_path) == (1, "model", "loss", "loss")
    assert (event.type, event.hook, event.call, event.recompute) == ("", "metric", 0, False)
    (told,) = event.values
    assert (told.role, told.key, told.shape, told.dtype, told.note) == ("metric", "", (), "float64", "")
    zeros = int(number == 0)
    assert told.stats == StatsRecord(1, number, 0.0, number, number, abs(number), zeros, 0, 0)
    assert (told.tensor, told.histogram, told.sample) == (None, None, None)


@pytest.mark.parametrize(("value", "nan", "inf"), [(math.nan, 1, 0), (math.inf, 0, 1), (-math.inf, 0, 1)])
def test_what_is_not_finite_is_counted_apart(value: float, nan: int, inf: int) -> None:
    with following(nn.Linear(1, 1)) as loop:
        stats, histogram, whole = (
            loop.watch(kinds=("metric",), payload=payload) for payload in ("stats", "histogram", "tensor")
        )
        loop.step(loss=torch.tensor(value))
        for watch in (stats, histogram):
            (told,) = drained(watch)[0].values
            assert told.stats == StatsRecord(1, None, None, None, None, None, 0, nan, inf)
            assert told.histogram is None
        number = tensor_of(drained(whole)[0].values[0])
    assert number.equal(torch.tensor(value, dtype=torch.float64)) or number.isnan() == math.isnan(value)


def test_each_payload_carries_the_number_whatever_part_or_cast_of_tensors_is_asked_for() -> None:
    with following(nn.Linear(1, 1)) as loop:
        none = loop.watch(kinds=("metric",), payload="none")
        histogram = loop.watch(kinds=("metric",), payload="histogram", sample=1, index="[0]")
        tensor = loop.watch(kinds=("metric",), payload="tensor", index="[0]", dtype="float16")
        loop.step(loss=0.1)
        (nothing,), (drawn,), (whole,) = (drained(one)[0].values for one in (none, histogram, tensor))
    assert (nothing.dtype, nothing.stats, nothing.tensor) == ("float64", None, None)
    assert drawn.histogram == HistogramRecord((0.1, 0.1), (1,))
    assert (whole.shape, whole.dtype, whole.stats) == ((), "float64", None)
    assert tensor_of(whole).equal(torch.tensor(0.1, dtype=torch.float64))


def test_it_needs_no_module_and_puts_no_hook_on_any() -> None:
    model = nn.Linear(1, 1)
    with following(model) as loop:
        before = hook_tables(model)
        watch = loop.watch(glob="no.such", type="Conv2d", kinds=("metric",))
        assert hook_tables(model) == before
        assert watch.subscription.paths == watch.subscription.notes == ()
        assert not loop.safepoint.activity.alert
        loop.step(loss=1.0)
        assert len(drained(watch)) == 1


def test_steps_are_those_under_which_metrics_are_kept_and_windows_are_about_them() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with following(model, optimizer) as loop:
        watch = loop.watch(kinds=("metric",))
        third = loop.watch(kinds=("metric",), every=3, start=4)
        evaluation = loop.watch(kinds=("metric",), phase="evaluation")
        for _ in range(9):
            loss = model(torch.ones(1, 1)).sum()
            loss.backward()
            optimizer.step()
            loop.step(loss=loss, lr=0.1)
        told = [
            (event.path, event.step, event.values[0].stats.mean)  # type: ignore[union-attr]
            for event in drained(watch)
        ]
        kept = [(one.name, *point) for one in loop.metrics.history(-1) for point in one.points]
        assert sorted(told) == sorted(kept)
        assert [event.step for event in drained(third)] == [6, 6, 9, 9]
        assert drained(evaluation) == []


def test_each_model_is_told_and_what_is_not_kept_is_not() -> None:
    with following({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}) as loop:
        watches = [loop.watch(name, kinds=("metric",)) for name in ("a", "b")]
        loop.step(bad="text", **{f"m{number:02}": number for number in range(65)})
        events = [drained(watch) for watch in watches]
    assert [{event.model for event in told} for told in events] == [{"a"}, {"b"}]
    assert [[event.path for event in told] for told in events] == [[f"m{n:02}" for n in range(64)]] * 2


@pytest.mark.parametrize("payload", ["none", "stats", "histogram", "tensor"])
def test_a_number_on_an_accelerator_is_waited_for_by_its_reader_alone(
    monkeypatch: pytest.MonkeyPatch, payload: str
) -> None:
    with following(nn.Linear(1, 1)) as loop:
        watch = loop.watch(kinds=("metric",), payload=payload)
        on_elsewhere(monkeypatch)
        value = torch.tensor(1.5).as_subclass(Elsewhere)
        loop.step(loss=value)
        value.fill_(0)
        assert not Stream.arrived
        (told,) = drained(watch)[0].values
        assert Stream.arrived == (payload in ("stats", "histogram"))
    if payload in ("stats", "histogram"):
        assert told.stats is not None
        assert told.stats.mean == 1.5
    if payload == "tensor":
        assert tensor_of(told).equal(torch.tensor(1.5, dtype=torch.float64))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_number_of_a_gpu_is_that_of_its_moment() -> None:
    value = torch.ones((), device="cuda")
    with following(nn.Linear(1, 1)) as loop:
        watch = loop.watch(kinds=("metric",))
        torch.cuda._sleep(100_000_000)
        for _ in range(3):
            value.add_(1)
            loop.step(loss=value)
        value.fill_(-1)
        means = [event.values[0].stats.mean for event in drained(watch)]  # type: ignore[union-attr]
    assert means == [2.0, 3.0, 4.0]


def test_a_number_that_its_device_has_lost_ends_no_stream() -> None:
    class Lost:
        step = 1

        def number(self) -> float:
            raise RuntimeError("the device is gone")

    with following(nn.Linear(1, 1)) as loop:
        watch = loop.watch(kinds=("metric",), payload="histogram")
        loop.hooks.boundary_events.metrics.reported("loss", Lost(), None)
        (told,) = drained(watch)[0].values
    assert told.stats == StatsRecord(1, None, None, None, None, None, 0, 0, 0)
    assert told.histogram is None


@pytest.mark.parametrize("payload", ["stats", "histogram"])
def test_no_hook_waits_for_a_number(payload: str) -> None:
    class Coming:
        step = 1

        def number(self) -> float:
            asked.append(True)
            return 2.0

    asked: list[bool] = []
    with following(nn.Linear(1, 1)) as loop:
        loop.hooks.pack = pack
        watch = loop.watch(kinds=("metric",), payload=payload)
        reader = Reader(watch.subscription)
        reader.take(0)
        for _ in range(200):
            loop.hooks.boundary_events.metrics.reported("loss", Coming(), None)
        assert asked == []
        items = [item for run in reader.take(0).runs for _, item in run.numbered()]
    assert len(items) == 200 and all(isinstance(item, Draft) for item in items)


def test_a_fault_switches_itself_off_after_three_times_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("ours")

    with following(nn.Linear(1, 1)) as loop:
        watch = loop.watch(kinds=("metric",))
        monkeypatch.setattr("modscope_server.runtime.metric_events.Draft", broken)
        for _ in range(5):
            loop.step(loss=1.0)
        assert len(caplog.records) == 3
        state = loop.states(watch)["metric", ""]
        assert (state.state, state.fired) == ("blind", 0)
        assert state.reason == "switched off after 3 faults, the last: RuntimeError: ours"
        assert len(loop.metrics.history(-1)[0].points) == 5
