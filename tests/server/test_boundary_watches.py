"""Watches of what is told at the ends of iterations: when, for whom, and what they say of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from modscope_server.errors import NoMatch
from modscope_server.inspection import statistics
from modscope_server.runtime.hooks import Watch
from tests.server.boundary_support import BOTH, Loop, following
from tests.server.capture_support import drained


class Training:
    """A linear layer, its optimizer, and iterations of theirs."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def iterate(self, times: int = 1) -> None:
        for _ in range(times):
            self.optimizer.zero_grad()
            self.model(torch.ones(3, 2)).sum().backward()
            self.optimizer.step()


def steps(watch: Watch) -> list[int]:
    return [event.step for event in drained(watch) if event.path.endswith("weight")]


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"every": 3}, [3, 6]),
        ({"start": 2, "stop": 5}, [2, 3, 4]),
        ({"first_call": True}, [1, 2, 3, 4, 5, 6]),
        ({"phase": "training"}, [1, 2, 3, 4, 5, 6]),
        ({"phase": "evaluation"}, []),
    ],
    ids=str,
)
def test_windows_are_about_the_iteration_that_is_complete(
    window: dict[str, Any], expected: list[int]
) -> None:
    training = Training()
    with following(training.model) as loop:
        watch = loop.watch(kinds=("gradient",), payload="none", **window)
        training.iterate(6)
        assert steps(watch) == expected


def test_a_rate_leaves_out_whole_iterations_and_counts_what_it_has_left_out() -> None:
    training = Training()
    with following(training.model) as loop:
        watch = loop.watch(kinds=BOTH, payload="none", max_rate=1e-6)
        training.iterate(3)
        events = drained(watch)
        assert [(event.step, event.hook) for event in events] == [
            (1, "gradient"),
            (1, "parameter"),
            (1, "gradient"),
            (1, "parameter"),
        ]
        assert watch.window.skipped == 8


def test_an_iteration_that_was_complete_before_the_watch_is_not_told() -> None:
    training = Training()
    training.model.append(nn.Linear(1, 1))  # no optimizer holds it: it is told at the next forward
    with following(training.model) as loop:
        first = loop.watch(kinds=("parameter",), payload="none")
        training.iterate()
        second = loop.watch(kinds=("parameter",), payload="none")
        training.iterate()
        loop.step()
        assert [(event.step, event.path) for event in drained(second)] == [
            (2, "0.weight"),
            (2, "0.bias"),
            (2, "2.weight"),
            (2, "2.bias"),
        ]
        assert len(drained(first)) == 8


def test_nothing_is_looked_at_in_an_iteration_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    training = Training()
    with following(training.model) as loop:

        def look(module: nn.Module, kind: str) -> list[Any]:
            looked.append(loop.safepoint.step_count)
            return []

        monkeypatch.setattr("modscope_server.runtime.parameter_targets.tensors", look)
        watch = loop.watch(kinds=BOTH, every=3)
        looked.clear()
        training.iterate(7)
        assert set(looked) == {3, 6}
        loop.hooks.stop(watch.subscription.id)
        looked.clear()
        training.iterate(3)
        assert looked == []
        assert not loop.safepoint.activity.alert


def test_all_who_want_the_same_share_one_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    reduced: list[tuple[int, ...]] = []
    reduce = statistics.reduce

    def counting(t: torch.Tensor, **options: Any) -> statistics.Reduction:
        reduced.append(tuple(t.shape))
        return reduce(t, **options)

    monkeypatch.setattr("modscope_server.runtime.captured.reduce", counting)
    training = Training()
    with following(training.model) as loop:
        same = [loop.watch(kinds=("parameter",)) for _ in range(3)]
        loop.watch(kinds=("parameter",), payload="histogram")
        loop.watch(glob="1", kinds=("parameter",))
        training.iterate()
        assert sorted(reduced) == [(1,), (1, 2)]
        first, second, third = (drained(watch) for watch in same)
    assert len(first) == 2
    for one, two, three in zip(first, second, third, strict=True):
        assert one.values == two.values == three.values


@pytest.mark.parametrize("payload", ["none", "stats", "histogram", "tensor"])
def test_payloads_parts_and_casts_are_those_of_modules(payload: str) -> None:
    training = Training()
    with following(training.model) as loop:
        part: dict[str, Any] = {} if payload == "none" else {"index": "[..., -1]"}
        cast: dict[str, Any] = {"dtype": "float16"} if payload == "tensor" else {}
        watch = loop.watch(glob="0", kinds=("parameter",), payload=payload, **part, **cast)
        training.iterate()
        (value,) = drained(watch)[0].values
    weight = training.model[0].weight
    assert (value.shape, value.dtype, value.note) == ((1, 2), "float32", "")
    assert (value.stats is not None) == (payload in ("stats", "histogram"))
    assert (value.histogram is not None) == (payload == "histogram")
    if value.stats is not None:
        assert (value.stats.count, value.stats.mean) == (1, weight[0, 1].item())
    if payload == "tensor":
        assert value.tensor is not None
        assert (value.tensor.shape, value.tensor.dtype) == ((1,), "float16")
        assert bytes(value.tensor.data) == weight[:, -1].detach().half().numpy().tobytes()


def test_a_sample_is_told_with_its_error() -> None:
    training = Training()
    with following(training.model) as loop:
        watch = loop.watch(glob="0", kinds=("parameter",), sample=1)
        training.iterate()
        (value,) = drained(watch)[0].values
    assert value.sample is not None
    assert value.sample.elements == 1


def test_the_listing_tells_what_has_fired_when_and_for_whom() -> None:
    training = Training()
    with following(training.model) as loop:
        first = loop.watch(kinds=(*BOTH, "metric"))
        assert {state.state for state in loop.states(first).values()} == {"armed"}
        training.iterate(2)
        second = loop.watch(kinds=("gradient",))
        training.iterate()
        listed = [state for state in loop.hooks.listing(first.registered) if state.owner == "watch"]
        ids = first.subscription.id, second.subscription.id
        rows = [(state.kind, state.path, state.watch_ids, state.fired, state.last_step) for state in listed]
        assert rows == [
            ("gradient", "0.weight", (ids[0],), 3, 3),
            ("gradient", "0.bias", (ids[0],), 3, 3),
            ("parameter", "0.weight", (ids[0],), 3, 3),
            ("parameter", "0.bias", (ids[0],), 3, 3),
            ("metric", "", (ids[0],), 0, None),
            ("gradient", "0.weight", (ids[1],), 1, 3),
            ("gradient", "0.bias", (ids[1],), 1, 3),
        ]
        assert [state.state for state in listed] == ["fired"] * 4 + ["blind"] + ["fired"] * 2
        assert listed[4].reason.startswith("nothing is reported")
        loop.hooks.stop(ids[0])
        assert {state.watch_ids for state in loop.hooks.states(first.registered)} == {(ids[1],)}


def test_modules_without_parameters_of_their_own_are_told_of() -> None:
    training = Training()
    with following(training.model) as loop:
        for glob in ("", "1"):
            watch = loop.watch(glob=glob, kinds=("gradient",))
            assert any("parameters of its own" in note for note in watch.subscription.notes)
        assert loop.watch(kinds=("gradient",)).subscription.notes == ()
        with pytest.raises(NoMatch):
            loop.watch(glob="no.such", kinds=("gradient", "metric"))


def failing(loop: Loop, monkeypatch: pytest.MonkeyPatch, *, name: str) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("ours")

    monkeypatch.setattr(f"modscope_server.runtime.{name}", broken)


def test_a_parameter_that_fails_is_switched_off_after_three_times_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training()
    with following(training.model) as loop:
        watch = loop.watch(glob="0", kinds=BOTH)
        failing(loop, monkeypatch, name="captured.reduced_later")
        training.iterate(5)
        events = drained(watch)
        assert len(caplog.records) == len(events) == 3 * 4
        assert all(event.values[0].note.endswith("RuntimeError: ours") for event in events)
        states = loop.states(watch)
    for kind in BOTH:
        state = states[kind, "0.weight"]
        assert (state.state, state.fired) == ("blind", 3)
        assert state.reason.startswith("switched off after 3 faults")


def test_a_fault_elsewhere_never_reaches_the_loop_and_switches_all_off_after_three(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training()
    with following(training.model) as loop:
        watch = loop.watch(kinds=BOTH)
        failing(loop, monkeypatch, name="parameter_events.targets")
        training.iterate(5)
        assert len(caplog.records) == 3
        assert drained(watch) == []
        assert {state.state for state in loop.states(watch).values()} == {"blind"}
        assert {state.reason for state in loop.states(watch).values()} == {
            "switched off after 3 faults, the last: RuntimeError: ours"
        }
        assert not loop.safepoint.activity.alert
