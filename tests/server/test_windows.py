"""A watch sees the steps, calls and phases that it wants, no more often than it wants, and pays for these."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from modscope_server.runtime.hooks import HookManager
from modscope_server.runtime.watch_spec import WatchSpec
from modscope_server.runtime.windows import WatchWindow
from tests.server.capture_support import ALL, Oracle, armed, drained, manager

__all__ = ["manager"]

X = torch.ones(1, 2)


class Loop:
    """Steps of training, each with so many forwards."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.step = 0

    def __call__(self) -> int:
        return self.step

    def run(self, steps: int, forwards: int = 1) -> None:
        for _ in range(steps):
            for _ in range(forwards):
                self.model(X.clone().requires_grad_()).sum().backward()
            self.step += 1


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, range(7)),
        ({"every": 3}, [0, 3, 6]),
        ({"start": 2}, [2, 3, 4, 5, 6]),
        ({"stop": 2}, [0, 1]),
        ({"start": 1, "stop": 6, "every": 2}, [2, 4]),
    ],
)
def test_steps(manager: HookManager, options: dict[str, Any], steps: Any) -> None:
    loop = Loop(nn.Linear(2, 2))
    watch = armed(manager, loop.model, loop, kinds=("forward", "backward"), **options)
    loop.run(7, forwards=2)
    expected = [(step, call, kind) for step in steps for call in (0, 1) for kind in ("forward", "backward")]
    assert [(event.step, event.call, event.hook) for event in drained(watch)] == expected
    assert [step for step in range(7) if watch.window.wants_step(step)] == list(steps)


def test_the_first_call_of_each_module_in_a_step(manager: HookManager) -> None:
    shared = nn.Linear(2, 2)
    loop = Loop(nn.Sequential(shared, nn.Tanh(), shared))
    watch = armed(manager, loop.model, loop, kinds=ALL, first_call=True)
    loop.run(2, forwards=2)
    seen = [(event.step, event.path, event.call, event.hook) for event in drained(watch)]
    assert sorted(seen) == sorted(
        (step, path, 0, kind) for step in (0, 1) for path in ("", "0", "1") for kind in ALL
    )


def test_phases_are_those_of_the_module_that_is_called(manager: HookManager) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    watches = {phase: armed(manager, model, phase=phase) for phase in ("training", "evaluation")}
    model[1].eval()
    model(X)
    assert [event.path for event in drained(watches["training"])] == ["0", ""]
    assert [event.path for event in drained(watches["evaluation"])] == ["1"]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            model(X)
        assert drained(watches["training"]) == []
        assert [event.path for event in drained(watches["evaluation"])] == ["0", "1", ""]
    phases = {tap.path: tap.phases_seen for tap in watches["training"].taps}
    both = {"training", "evaluation"}
    assert phases == {"": both, "0": both, "1": {"evaluation"}}


def test_a_backward_follows_its_forward(manager: HookManager) -> None:
    """Whether it is wanted is known at the call: what has changed until the backward changes nothing."""
    model = nn.Linear(2, 2)
    step = 0
    watch = armed(manager, model, lambda: step, kinds=("forward", "backward"), every=2, phase="training")
    first = model(X)
    step = 1
    second = model(X)
    model.eval()
    (first.sum() + second.sum()).backward()
    assert [(event.hook, event.step) for event in drained(watch)] == [("forward", 0), ("backward", 0)]


@pytest.mark.parametrize(
    "options", [{"every": 2}, {"start": 9}, {"stop": 1}, {"phase": "evaluation"}, {"max_rate": 0.001}]
)
def test_what_is_not_wanted_is_neither_reduced_nor_changes_the_graph(
    manager: HookManager, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    loop = Loop(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    twin = copy.deepcopy(loop.model)
    if "max_rate" not in options:
        loop.step = 1
    watch = armed(manager, loop.model, loop, kinds=ALL, **options)
    if "max_rate" in options:
        # The first step is told; it fills what may be told for a long time.
        loop.run(1)
        assert len(drained(watch)) == 3 * 4

    def broken(*args: Any, **options: Any) -> None:
        raise AssertionError("reduced")

    monkeypatch.setattr("modscope_server.runtime.captured.reduced_later", broken)
    x = X.clone().requires_grad_()
    output, expected = loop.model(x), twin(x)
    assert _nodes(output) == _nodes(expected)
    assert not output._backward_hooks
    output.sum().backward()
    assert drained(watch) == []
    assert all(not tap.faults for tap in watch.taps)
    assert watch.window.skipped == (3 * 4 if "max_rate" in options else 0)


def _nodes(tensor: torch.Tensor) -> list[str]:
    """Names of the nodes of a graph, depth first."""
    found, waiting = [], [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            found.append(node.name())
            waiting += [below for below, _ in node.next_functions]
    return found


def test_windows_of_one_module_do_not_disturb_each_other(manager: HookManager) -> None:
    loop = Loop(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    twin = copy.deepcopy(loop.model)
    oracle = Oracle(twin)
    every = armed(manager, loop.model, loop, kinds=ALL, payload="tensor")
    second = armed(manager, loop.model, loop, kinds=("forward",), every=2)
    third = armed(manager, loop.model, loop, kinds=("backward",), every=3, payload="histogram")
    loop.run(6)
    Loop(twin).run(6)
    oracle.equals(drained(every))
    assert {event.step for event in drained(second)} == {0, 2, 4}
    assert {(event.step, event.hook) for event in drained(third)} == {(0, "backward"), (3, "backward")}


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def rated(rate: float, **options: Any) -> tuple[WatchWindow, Clock]:
    clock = Clock()
    return WatchWindow(WatchSpec(max_rate=rate, **options), clock), clock


def watched(manager: HookManager, loop: Loop, clock: Clock, rate: float, **options: Any) -> Any:
    """A watch that goes by that clock."""
    watch = armed(manager, loop.model, loop, payload="none", max_rate=rate, **options)
    assert watch.window.rate is not None
    watch.window.rate._clock = clock
    watch.window.rate._refilled = clock()
    return watch


def test_a_rate_leaves_out_whole_steps_and_counts_what_it_leaves_out(manager: HookManager) -> None:
    loop = Loop(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    clock = Clock()
    watch = watched(manager, loop, clock, 6.0, kinds=("forward", "backward"))
    for _ in range(400):
        loop.run(1, forwards=2)
        clock.now += 0.1
    events = drained(watch)
    whole = 2 * 3 * 2
    steps = {event.step for event in events}
    assert all(sum(event.step == step for event in events) == whole for step in steps)
    assert 0.9 * 6 * 40 <= len(events) <= 6 * 40 + whole
    assert watch.window.skipped == 400 * whole - len(events)
    # Not always the same phase of the loop.
    assert len({step % 7 for step in steps}) > 1


@pytest.mark.parametrize("kinds", [("forward",), ("forward_pre", "forward")])
@pytest.mark.parametrize("served", ["evaluation", "in the first step", "in a step that was left out"])
def test_a_model_that_is_only_served_is_told_by_whole_forwards(
    manager: HookManager, served: str, kinds: tuple[str, ...]
) -> None:
    """No iteration is counted: a step that never ends is not told whole."""
    shared = nn.Linear(2, 2)
    loop = Loop(nn.Sequential(shared, nn.Tanh(), shared).train(served != "evaluation"))
    clock = Clock()
    watch = watched(manager, loop, clock, 2.0, kinds=kinds)
    whole = 4 * len(kinds)
    # Of a step that may still end at most a minute's worth is told, or left out.
    patience = 0 if served == "evaluation" else 60
    told = [0]
    if served == "in a step that was left out":
        loop.run(1)
        told = [len(drained(watch))]
        assert told == [whole]
    for _ in range(1000):
        loop.model(X)
        told.append(len(drained(watch)))
        clock.now += 0.5
        assert sum(told) <= 2 * (clock.now - 100 + patience) + whole
    assert set(told[1:]) == {0, whole}
    assert sum(told) >= 0.9 * 2 * (500 - patience)
    assert watch.window.skipped == 1000 * whole - sum(told[1:])


def test_an_evaluation_within_a_step_is_told_by_forwards_of_its_own(manager: HookManager) -> None:
    loop = Loop(nn.Linear(2, 2))
    clock = Clock()
    watch = watched(manager, loop, clock, 1.0, kinds=("forward",))
    loop.model(X)
    assert len(drained(watch)) == 1
    loop.model.eval()
    for _ in range(20):
        loop.model(X)
    assert len(drained(watch)) <= 1
    clock.now += 5
    loop.model(X)
    assert len(drained(watch)) == 1


def test_a_rate_is_never_exceeded_for_long_however_irregular_the_steps() -> None:
    window, clock = rated(10.0)
    random = torch.Generator().manual_seed(0)
    told = 0
    for step in range(2000):
        firings = int(torch.randint(1, 40, (), generator=random))
        told += sum(window.admits(step, 0, True) for _ in range(firings))
        clock.now += float(torch.rand((), generator=random))
        assert told <= 10 * (clock.now - 100) + 40 + 10
    assert told >= 0.5 * 10 * (clock.now - 100)


def test_what_a_quiet_time_saves_up_is_bounded() -> None:
    window, clock = rated(4.0)
    clock.now += 1e6
    assert sum(window.admits(step, 0, True) for step in range(100)) == 4


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, True),
        ({"every": 2}, False),
        ({"start": 0}, False),
        ({"stop": 9}, False),
        ({"first_call": True}, False),
    ],
)
def test_what_wants_everything_is_plain(options: dict[str, Any], plain: bool) -> None:
    window = WatchWindow(WatchSpec(**options))
    assert window.is_plain is plain
    assert window.skipped == 0
    assert window.admits(0, 0, True)
