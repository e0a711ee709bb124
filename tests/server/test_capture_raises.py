"""A module whose call raises is told, and the exception is the user's alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from modscope_server.runtime.bus import HookEvent
from modscope_server.runtime.hooks import HookManager, Watch
from tests.server.capture_support import ALL, armed, drained, manager, tensor_of

__all__ = ["manager"]

X = torch.ones(1, 2)


class Raises(nn.Module):
    """Raises where it is told to."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.error is not None:
            raise self.error
        return x * 2


class Nested(nn.Module):
    """Calls another module, and goes on without it where that raises."""

    def __init__(self, inner: Any, *, catches: bool = False) -> None:
        super().__init__()
        self.inner: Any = inner
        self.catches = catches

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            return self.inner(x)
        except ValueError:
            if not self.catches:
                raise
            return x


class Nothing(nn.Module):
    """Gives None."""

    def forward(self, x: torch.Tensor) -> None:
        return None


def notes(events: list[HookEvent]) -> list[tuple[str, int, str | None, str]]:
    """Of the forward events: path, call, dtype and note of the only value."""
    return [
        (event.path, event.call, event.values[0].dtype, event.values[0].note)
        for event in events
        if event.hook == "forward" and len(event.values) == 1
    ]


@pytest.mark.parametrize("kinds", [("forward",), ALL])
def test_a_raise_is_told_and_reaches_the_user_unchanged(manager: HookManager, kinds: tuple[str, ...]) -> None:
    model = Nested(Raises())
    twin = copy.deepcopy(model)
    for module in twin.modules():
        module.register_forward_hook(lambda *rest: None)
    watch = armed(manager, model, kinds=kinds)
    tracebacks = []
    for one in (model, twin):
        one.inner.error = error = ValueError("the user's")
        with pytest.raises(ValueError, match="the user's") as caught:
            one(X)
        assert caught.value is error
        assert (error.__cause__, error.__context__) == (None, None)
        tracebacks.append([entry.name for entry in caught.traceback])
    assert tracebacks[0] == tracebacks[1]
    note = "forward raised ValueError"
    assert notes(drained(watch)) == [("inner", 0, None, note), ("", 0, None, note)]
    model.inner.error = None
    model(X)
    assert notes(drained(watch)) == [("inner", 1, "float32", ""), ("", 1, "float32", "")]
    assert {(tap.calls, tap.raised) for tap in watch.taps} == {(2, 1)}


@pytest.mark.parametrize("kinds", [("forward",), ALL])
def test_a_raise_that_the_parent_catches_is_the_childs_alone(
    manager: HookManager, kinds: tuple[str, ...]
) -> None:
    model = Nested(Raises(ValueError("the user's")), catches=True)
    watch = armed(manager, model, kinds=kinds)
    assert model(X) is not None
    assert notes(drained(watch)) == [("inner", 0, None, "forward raised ValueError"), ("", 0, "float32", "")]


@pytest.mark.parametrize("kinds", [("forward",), ALL])
def test_a_call_while_another_exception_is_handled_has_not_raised(
    manager: HookManager, kinds: tuple[str, ...]
) -> None:
    model = Nested(Nothing())
    watch = armed(manager, model, kinds=kinds)

    def handles() -> None:
        try:
            raise KeyError("the user's")
        except KeyError:
            assert model(X) is None

    handles()
    handles()
    assert notes(drained(watch)) == [(path, call, None, "") for call in (0, 1) for path in ("inner", "")]
    assert all(tap.raised == 0 for tap in watch.taps)


def test_a_call_in_the_hook_of_one_that_has_raised_has_not_raised(manager: HookManager) -> None:
    model = nn.ModuleDict({"raises": Raises(ValueError("the user's")), "spare": nn.Identity()})

    def calls_another(*args: Any) -> None:
        model["spare"](X)

    model["raises"].register_forward_hook(calls_another, always_call=True)
    watch = armed(manager, model)
    with pytest.raises(ValueError, match="the user's"):
        model["raises"](X)
    assert notes(drained(watch)) == [
        ("spare", 0, "float32", ""),
        ("raises", 0, None, "forward raised ValueError"),
    ]


def refuse(*args: Any) -> None:
    raise ValueError("the user's hook")


Put = Callable[[nn.Module], Any]
BEFORE: dict[str, Put] = {
    "a pre-hook before ours": lambda module: module.register_forward_pre_hook(refuse),
    "a hook before ours": lambda module: module.register_forward_hook(refuse),
}
AFTER: dict[str, Put] = {
    "a pre-hook after ours": lambda module: module.register_forward_pre_hook(refuse),
    "a hook after ours": lambda module: module.register_forward_hook(refuse),
}


@pytest.mark.parametrize("kinds", [("forward",), ALL])
@pytest.mark.parametrize("what", [*BEFORE, *AFTER])
def test_hooks_of_the_users_that_raise(manager: HookManager, what: str, kinds: tuple[str, ...]) -> None:
    model = nn.Linear(2, 2)
    handle = BEFORE[what](model) if what in BEFORE else None
    watch = armed(manager, model, kinds=kinds, payload="tensor")
    if handle is None:
        handle = AFTER[what](model)
    with pytest.raises(ValueError, match="the user's hook"):
        model(X)
    events = drained(watch)
    forward = notes(events)
    if what == "a hook after ours":
        assert [(dtype, note) for _, _, dtype, note in forward] == [("float32", "")]
    elif what == "a hook before ours":
        assert [(dtype, note) for _, _, dtype, note in forward] == [
            (None, "a hook after forward raised ValueError")
        ]
    else:
        assert [(dtype, note) for _, _, dtype, note in forward] == [(None, "forward raised ValueError")]
    handle.remove()
    model(X)
    assert [(call, dtype) for _, call, dtype, _ in notes(drained(watch))] == [(1, "float32")]


class Within(nn.Module):
    """Calls itself so many times, one inside the other."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0
        self.most = 0
        self.raising: int | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        depth = self.depth
        if depth == self.raising:
            raise ValueError("the user's")
        if depth == self.most:
            return x + depth
        self.depth += 1
        try:
            return self(x) + depth
        except ValueError:
            return x
        finally:
            self.depth -= 1


def calls_and_values(watch: Watch) -> dict[str, list[tuple[int, float | None]]]:
    """By kind: the number of each call, and the first element of its only value."""
    found: dict[str, list[tuple[int, float | None]]] = {}
    for event in drained(watch):
        (value,) = event.values
        element = None if value.dtype is None else float(tensor_of(value)[0, 0])
        found.setdefault(event.hook, []).append((event.call, element))
    return found


def test_a_module_that_calls_itself_and_raises_within(manager: HookManager) -> None:
    model = Within()
    model.most, model.raising = 3, 2
    watch = armed(manager, model, kinds=("forward_pre", "forward"), payload="tensor")
    model(X)
    found = calls_and_values(watch)
    assert [call for call, _ in found["forward_pre"]] == [0, 1, 2]
    # The innermost raised, the one around it went on without it.
    assert found["forward"] == [(2, None), (1, 1.0), (0, 1.0)]


def test_a_pre_hook_of_the_users_that_raises_in_an_inner_call(manager: HookManager) -> None:
    """Nothing tells that the inner call has begun, and its end is not the outer one's."""
    model = Within()
    model.most = 1

    def refuse_the_inner(module: nn.Module, args: Any) -> None:
        if model.depth == 1:
            raise ValueError("the user's hook")

    model.register_forward_pre_hook(refuse_the_inner)
    watch = armed(manager, model, kinds=("forward_pre", "forward"), payload="tensor")
    model(X)
    assert calls_and_values(watch) == {"forward_pre": [(0, 1.0)], "forward": [(1, None), (0, 1.0)]}


def test_after_an_interrupt_calls_are_right_again(manager: HookManager) -> None:
    """Of a KeyboardInterrupt torch tells no hook."""
    model = Nested(Raises(KeyboardInterrupt()))
    watch = armed(manager, model, kinds=ALL, payload="tensor")
    with pytest.raises(KeyboardInterrupt):
        model(X.clone().requires_grad_())
    assert {event.hook for event in drained(watch)} == {"forward_pre"}
    model.inner.error = None
    for number in (1, 2):
        x = (X * number).requires_grad_()
        model(x).sum().backward()
        events = drained(watch)
        assert {event.call for event in events} == {number}
        assert len(events) == 8
        for event in events:
            (value, *_) = event.values
            expected = {"forward_pre": x, "forward": 2 * x, "backward_pre": X, "backward": 2 * X}[event.hook]
            assert torch.equal(tensor_of(value), expected)
    assert all(not tap._open._calls for tap in watch.taps)


def test_a_fault_of_ours_while_torch_handles_a_raise_changes_no_hook_then(
    manager: HookManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("modscope_server.runtime.capture.captured", broken)
    model = Raises(ValueError("the user's"))
    watch = armed(manager, model)
    model.register_forward_hook(lambda *rest: None, always_call=True)
    for _ in range(5):
        with pytest.raises(ValueError, match="the user's"):
            model(X)
    assert len(caplog.records) == 3
    manager.stop(watch.subscription.id)
    assert len(model._forward_hooks) == 1
