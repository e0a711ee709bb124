"""Watches as tests arm them, and PyTorch's own hooks beside them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
import torch
from torch import nn

from modscope_server.runtime.bus import HookEvent
from modscope_server.runtime.hooks import HookManager, Watch
from modscope_server.runtime.registry import Registry
from modscope_server.runtime.watch_spec import WatchSpec

__all__ = [
    "ALL",
    "FORWARD",
    "Oracle",
    "Residual",
    "armed",
    "assert_same_gradients",
    "drained",
    "hook_tables",
    "leaves",
    "manager",
    "tensor_of",
    "told",
]

ALL = ("forward_pre", "forward", "backward_pre", "backward")
FORWARD = ("forward_pre", "forward")

Seen: TypeAlias = "dict[tuple[str, str], list[list[torch.Tensor | None]]]"
"""Kind and path -> the values of each call."""


@pytest.fixture
def manager() -> Iterator[HookManager]:
    hooks = HookManager(watches=8, events=1000, size=1 << 24)
    yield hooks
    hooks.stop_all("closed")


def armed(manager: HookManager, model: nn.Module, step: Callable[[], int] = lambda: 0, **spec: Any) -> Watch:
    """A watch of a model whose iterations `step` counts."""
    registry = Registry({"model": model})
    registry.count_steps_with(step)
    return manager.watch(registry.get(), WatchSpec(**spec))


def drained(watch: Watch) -> list[HookEvent]:
    """All that it has seen since it was drained last."""
    return watch.subscription.drain(0, 10_000)


def tensor_of(value: Any) -> torch.Tensor:
    """The tensor that a value brought, in its own shape and dtype."""
    data = value.tensor
    dtype = getattr(torch, data.dtype)
    if not len(data.data):
        return torch.empty(data.shape, dtype=dtype)
    return torch.frombuffer(bytearray(data.data), dtype=dtype).view(data.shape)


def told(events: list[HookEvent]) -> Seen:
    """What a watch of tensors has told."""
    got: Seen = {}
    for event in events:
        tensors = [None if value.dtype is None else tensor_of(value) for value in event.values]
        got.setdefault((event.hook, event.path), []).append(tensors)
    return got


def hook_tables(model: nn.Module) -> list[dict[str, Any]]:
    """All tables of hooks that hold any."""
    return [
        {name: OrderedDict(table) for name, table in vars(module).items() if "hooks" in name and table}
        for module in model.modules()
    ]


class Oracle:
    """PyTorch's own hooks on each module of a model, which is no copy that a watch is on."""

    def __init__(self, model: nn.Module, kinds: tuple[str, ...] = ALL) -> None:
        self.seen: Seen = {}
        for path, module in model.named_modules():
            note = self._noting(path)
            if "forward_pre" in kinds:
                module.register_forward_pre_hook(
                    lambda m, args, kwargs, note=note: note("forward_pre", args, kwargs), with_kwargs=True
                )
            if "forward" in kinds:
                module.register_forward_hook(lambda m, args, out, note=note: note("forward", out))
            if "backward_pre" in kinds:
                module.register_full_backward_pre_hook(lambda m, go, note=note: note("backward_pre", go))
            if "backward" in kinds:
                module.register_full_backward_hook(lambda m, gi, go, note=note: note("backward", gi, go))

    def _noting(self, path: str) -> Callable[..., None]:
        def note(kind: str, *values: Any) -> None:
            copies = [None if t is None else t.detach().clone() for value in values for t in leaves(value)]
            self.seen.setdefault((kind, path), []).append(copies)

        return note

    def equals(self, events: list[HookEvent]) -> None:
        """Assert that a watch has told the same: the same calls in the same order, value by value."""
        got = told(events)
        assert got.keys() == self.seen.keys()
        for key, calls in self.seen.items():
            assert len(got[key]) == len(calls), key
            for mine, theirs in zip(got[key], calls, strict=True):
                for one, other in zip(mine, theirs, strict=True):
                    assert (one is None) == (other is None), key
                    assert one is None or other is None or torch.equal(one, other), key


def assert_same_gradients(model: nn.Module, twin: nn.Module) -> None:
    """A watched model trains as one that nobody watches, bit for bit."""
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad)


def leaves(value: Any) -> Iterator[torch.Tensor | None]:
    """The tensors and Nones of a value, in order."""
    if value is None or isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from leaves(getattr(value, name))


class Residual(nn.Module):
    """x + f(x): the gradient of x has two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.f(x)
        return out
