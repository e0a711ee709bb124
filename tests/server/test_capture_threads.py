"""Modules that are called on several threads at once, and replicas as DataParallel makes them."""

from __future__ import annotations

import copy
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from modscope_server.runtime.calls import CallNumbers
from modscope_server.runtime.hooks import HookManager
from tests.server.capture_support import ALL, armed, drained, tensor_of
from tests.server.intervention_support import here, intervened, told

THREADS = 8
CALLS = 25


@pytest.fixture
def manager() -> Iterator[HookManager]:
    hooks = HookManager(watches=8, events=10_000, size=1 << 24)
    yield hooks
    hooks.stop_all("closed")


@pytest.fixture(autouse=True)
def _switches_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def at_once(work: Sequence[Callable[[], object]]) -> None:
    """Do all of it, each on a thread of its own, none before all are there. Raises what one raises."""
    gate = threading.Barrier(len(work))

    def one(act: Callable[[], object]) -> None:
        gate.wait(20)
        act()

    with ThreadPoolExecutor(len(work)) as pool:
        for done in [pool.submit(one, act) for act in work]:
            done.result(60)


class Nested(nn.Module):
    """Gives what it takes through two others, one of which it calls twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Identity()
        self.second = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.first(self.second(x) * 2)) * 3
        return out


def test_calls_are_numbered_each_once_and_values_stay_with_their_calls(manager: HookManager) -> None:
    model = Nested()
    watches = [
        armed(manager, model, kinds=kinds, payload="tensor", index="[0]") for kinds in (("forward",), ALL)
    ]

    def calls(thread: int) -> None:
        for number in range(CALLS):
            x = torch.full((2,), float(thread * CALLS + number + 1), requires_grad=True)
            model(x).sum().backward()
            assert x.grad is not None
            assert x.grad.tolist() == [6, 6]

    at_once([lambda thread=thread: calls(thread) for thread in range(THREADS)])  # type: ignore[misc]
    total = THREADS * CALLS
    for watch in watches:
        events = drained(watch)
        by_call: dict[tuple[str, int], dict[str, float]] = {}
        for kind in watch.kinds:
            for path, times in (("", 1), ("first", 1), ("second", 2)):
                numbers = Counter(e.call for e in events if (e.hook, e.path) == (kind, path))
                assert numbers == Counter(range(times * total))
        for event in events:
            by_call.setdefault((event.path, event.call), {})[event.hook] = float(tensor_of(event.values[0]))
        for (path, _), kinds in by_call.items():
            if "forward_pre" in kinds:
                assert kinds["forward"] == kinds["forward_pre"] * (6 if path == "" else 1)
                assert kinds["backward"] == kinds["backward_pre"] * (6 if path == "" else 1)
        assert len({kinds["forward"] for (path, _), kinds in by_call.items() if path == ""}) == total
    for watch in watches:
        assert all(tap.calls == tap.firings(watch.selection, "forward").count for tap in watch.taps)
    assert all(not tap.faults for tap in watches[0].taps)


def test_a_step_that_moves_while_threads_call_begins_at_zero_once() -> None:
    step = 0
    numbers = CallNumbers(lambda: step)
    given: list[list[tuple[int, int]]] = [[] for _ in range(THREADS)]

    def count(mine: list[tuple[int, int]]) -> None:
        nonlocal step
        for number in range(400):
            mine.append(numbers.next(False))
            if number % 50 == 49:
                step += 1

    at_once([lambda mine=mine: count(mine) for mine in given])  # type: ignore[misc]
    by_step: dict[int, list[int]] = {}
    for at, number in (pair for mine in given for pair in mine):
        by_step.setdefault(at, []).append(number)
    assert sum(map(len, by_step.values())) == 400 * THREADS
    for calls in by_step.values():
        assert sorted(calls) == list(range(len(calls)))


def test_threads_that_begin_a_step_together_begin_it_once() -> None:
    both = threading.Barrier(2)
    mine = threading.local()

    def step() -> int:
        if not hasattr(mine, "asked"):
            mine.asked = True
            both.wait(20)
        return 5

    numbers = CallNumbers(step)
    given: list[tuple[int, int]] = []
    at_once([lambda: given.append(numbers.next(False))] * 2)
    assert sorted(given) == [(5, 0), (5, 1)]


class Branch(nn.Module):
    """A linear module and what follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.act = nn.Tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.act(self.linear(x))
        return out


def replicate(model: nn.Module, number: int) -> list[nn.Module]:
    """Replicas as torch.nn.parallel.replicate makes them of a model on devices, here all on the CPU."""
    paths = list(model.named_modules())
    replicas = []
    for _ in range(number):
        copies = {path: module._replicate_for_data_parallel() for path, module in paths}
        for path, module in paths:
            for name, parameter in module._parameters.items():
                # A replica's parameters are copies that autograd joins to the original's.
                setattr(copies[path], name, None if parameter is None else parameter * 1)
            for name in module._modules:
                copies[path]._modules[name] = copies[f"{path}.{name}".lstrip(".")]
        replicas.append(copies[""])
    return replicas


def test_replicas_are_seen_as_the_module_that_they_replicate(manager: HookManager) -> None:
    torch.manual_seed(0)
    model = Branch()
    twin = copy.deepcopy(model)
    watch = armed(manager, model, kinds=ALL, payload="tensor")
    parts = torch.randn(3, 5, 2)
    replicas = replicate(model, 3)
    outputs: list[torch.Tensor | None] = [None] * 3

    def run(n: int) -> None:
        outputs[n] = replicas[n](parts[n].clone().requires_grad_())

    at_once([lambda n=n: run(n) for n in range(3)])  # type: ignore[misc]
    torch.stack([out for out in outputs if out is not None]).square().sum().backward()
    twin(parts).square().sum().backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad)  # type: ignore[arg-type]
    events = drained(watch)
    for kind in ALL:
        for path in ("", "linear", "act"):
            assert sorted(e.call for e in events if (e.hook, e.path) == (kind, path)) == [0, 1, 2]
    of_root = {event.call: event for event in events if (event.hook, event.path) == ("forward", "")}
    taken = {event.call: event for event in events if (event.hook, event.path) == ("forward_pre", "")}
    for call in range(3):
        (n,) = (n for n in range(3) if torch.equal(tensor_of(taken[call].values[0]), parts[n]))
        assert torch.equal(tensor_of(of_root[call].values[0]), outputs[n])  # type: ignore[arg-type]
    assert {(tap.path, tap.calls) for tap in watch.taps} == {("", 3), ("linear", 3), ("act", 3)}


def test_copies_of_replicas_and_of_the_model_are_silent(manager: HookManager) -> None:
    model = Branch()
    watch = armed(manager, model, kinds=ALL)
    (replica,) = replicate(model, 1)
    x = torch.ones(1, 2)
    for silent in (copy.deepcopy(model), copy.copy(model.linear), copy.copy(model.act)):
        silent(x)
    assert drained(watch) == []
    replica(x)
    assert {event.path for event in drained(watch)} == {"", "linear", "act"}


def test_an_intervention_acts_in_replicas_and_in_no_copy() -> None:
    model = Branch()
    x = torch.randn(3, 2)
    plain = model(x)
    with here(model) as rpc:
        made = intervened(rpc, "act", scale=2.0)
        replicas = replicate(model, 3)
        assert torch.equal(copy.deepcopy(model)(x), plain)
        assert all(torch.equal(replica(x), 2 * plain) for replica in replicas)
        assert told(rpc, made).applied == 3
    assert torch.equal(replicas[0](x), plain)
