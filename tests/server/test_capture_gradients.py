"""Gradients are the module's share, as PyTorch's full backward hooks give it; training is as without."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from modscope_server.runtime.hooks import HookManager
from tests.server.capture_support import (
    ALL,
    Oracle,
    Residual,
    armed,
    assert_same_gradients,
    drained,
    manager,
    tensor_of,
    told,
)

__all__ = ["manager"]


def test_gradient_of_the_input_is_the_modules_share_not_the_accumulated(manager: HookManager) -> None:
    model = Residual()
    watch = armed(manager, model, glob="f", kinds=("backward",), payload="tensor")
    inputs = torch.randn(2, 3, requires_grad=True)
    model(inputs).sum().backward()
    (event,) = drained(watch)
    share = torch.ones(2, 3) @ model.f.weight
    assert [value.role for value in event.values] == ["grad_input", "grad_output"]
    assert torch.allclose(tensor_of(event.values[0]), share)
    assert torch.allclose(inputs.grad, share + 1)  # type: ignore[arg-type]


class Scales(nn.Module):
    """Works in place, and does not say so."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2.0)


@pytest.mark.parametrize("kinds", [("backward",), ("backward_pre",), ALL])
def test_in_place_modules_train_as_without_a_watch(manager: HookManager, kinds: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), Scales(), nn.Linear(4, 1))
    twin = copy.deepcopy(model)
    watch = armed(manager, model, kinds=kinds, payload="tensor")
    inputs = torch.randn(6, 3)
    for one in (model, twin):
        one(inputs.clone().requires_grad_()).sum().backward()
    assert_same_gradients(model, twin)
    # PyTorch's own hooks raise here, so that the oracle is a model that works out of place.
    clean = nn.Sequential(twin[0], nn.ReLU(), twin[2], Doubles(), twin[4])
    oracle = Oracle(clean)
    clean(inputs.requires_grad_()).sum().backward()
    events = drained(watch)
    for event in events:
        if event.hook == "backward" and event.path in ("1", "3"):
            (value,) = (value for value in event.values if value.role == "grad_input")
            assert value.dtype is None
            assert "in-place" in value.note
    got = told(events)
    for path in ("0", "1", "2", "3", "4"):
        if "backward_pre" in kinds:
            assert _equal(got["backward_pre", path][0], oracle.seen["backward_pre", path][0])
        if "backward" in kinds:
            mine, theirs = got["backward", path][0], oracle.seen["backward", path][0]
            assert _equal(mine[-1:], theirs[-1:])
            assert path in ("1", "3") or _equal(mine, theirs)


class Doubles(nn.Module):
    """What Scales does, out of place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2.0


def _equal(mine: list[torch.Tensor | None], theirs: list[torch.Tensor | None]) -> bool:
    return len(mine) == len(theirs) and all(
        one is None if other is None else one is not None and torch.equal(one, other)
        for one, other in zip(mine, theirs, strict=True)
    )


class Recurrent(nn.Module):
    """Calls one module three times, and adds what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first: torch.Tensor = self.cell(x)
        second = self.cell(first)
        return first + second + self.cell(second)


def test_a_module_that_is_called_several_times_a_step(manager: HookManager) -> None:
    model = Recurrent()
    twin = copy.deepcopy(model)
    oracle = Oracle(twin)
    watch = armed(manager, model, kinds=ALL, payload="tensor")
    x = torch.randn(1, 2)
    for one in (model, twin):
        one(x.clone().requires_grad_()).square().sum().backward()
    events = drained(watch)
    oracle.equals(events)
    calls = {
        kind: [event.call for event in events if (event.hook, event.path) == (kind, "cell")] for kind in ALL
    }
    assert calls == {
        "forward_pre": [0, 1, 2],
        "forward": [0, 1, 2],
        "backward_pre": [2, 1, 0],
        "backward": [2, 1, 0],
    }
    assert_same_gradients(model, twin)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.a(x), self.b(x)


def test_an_unused_output_gets_no_gradient_and_the_event_still_comes(manager: HookManager) -> None:
    model = TwoHeads()
    watch = armed(manager, model, glob="", kinds=("backward", "backward_pre"), payload="none")
    model(torch.ones(1, 2, requires_grad=True))[1].sum().backward()
    events = {event.hook: event for event in drained(watch)}
    outputs = [value for value in events["backward"].values if value.role == "grad_output"]
    assert [value.dtype for value in outputs] == [None, "float32"]
    assert [value.dtype for value in events["backward_pre"].values] == [None, "float32"]


def test_a_graph_walked_twice_gives_two_events(manager: HookManager) -> None:
    model = nn.Linear(2, 2)
    watch = armed(manager, model, kinds=("backward",), payload="none")
    loss = model(torch.ones(1, 2, requires_grad=True)).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert [event.hook for event in drained(watch)] == ["backward", "backward"]


def test_a_backward_that_raised_leaves_nothing_behind(manager: HookManager) -> None:
    """One output had its gradient when a hook of the user's raised: of that the next event tells nothing."""
    model = TwoHeads()
    refuse = True

    def raises(gradient: torch.Tensor) -> None:
        if refuse:
            raise ValueError("the user's")

    def hook_output(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        output.register_hook(raises)

    model.a.register_forward_hook(hook_output)
    watch = armed(manager, model, glob="", kinds=("backward_pre",), payload="tensor")
    first, second = model(torch.ones(1, 2))
    with pytest.raises(ValueError, match="the user's"):
        (first.sum() + second.sum()).backward(retain_graph=True)
    assert drained(watch) == []
    refuse = False
    (3 * first.sum()).backward()
    (event,) = drained(watch)
    assert [value.dtype for value in event.values] == ["float32", None]
    assert torch.equal(tensor_of(event.values[0]), torch.full((1, 2), 3.0))


def test_frozen_modules_have_no_backward(manager: HookManager) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).requires_grad_(False)
    model[1].requires_grad_(True)
    watch = armed(manager, model, kinds=("backward",), payload="none")
    model(torch.ones(1, 2)).sum().backward()
    with torch.no_grad():
        model(torch.ones(1, 2))
    assert {event.path for event in drained(watch)} == {"", "1"}
    seen = {tap.path: (tap.calls, tap.calls_with_grad, tap.differentiable) for tap in watch.taps}
    assert seen == {"": (2, 1, 1), "0": (2, 1, 0), "1": (2, 1, 1)}


def test_a_watch_keeps_no_graph_and_no_tensor_alive(manager: HookManager) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    armed(manager, model, kinds=ALL)
    inputs = torch.ones(1, 2, requires_grad=True)
    output = model(inputs)
    node = weakref.ref(inputs), weakref.ref(output)
    gc.disable()
    try:
        del inputs, output
        assert [ref() for ref in node] == [None, None]
    finally:
        gc.enable()
