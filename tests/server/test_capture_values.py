"""What watches tell of forwards is what PyTorch's own hooks see, whatever modules take and give."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from modscope_server.runtime.hooks import HookManager
from tests.models import ZOO
from tests.server.capture_support import (
    ALL,
    FORWARD,
    Oracle,
    Residual,
    armed,
    assert_same_gradients,
    drained,
    leaves,
    manager,
    tensor_of,
)

__all__ = ["manager"]


def test_all_kinds_equal_pytorchs_own_hooks(manager: HookManager) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Residual(), nn.Tanh(), Residual())
    twin = copy.deepcopy(model)
    oracle = Oracle(twin)
    watch = armed(manager, model, kinds=ALL, payload="tensor")
    for _ in range(2):
        inputs = torch.randn(5, 3)
        for one in (model, twin):
            one(inputs.clone().requires_grad_()).square().sum().backward()
    oracle.equals(drained(watch))
    assert_same_gradients(model, twin)


@pytest.mark.parametrize(
    "name", ["shared", "multi_output", "kwargs_only", "containers", "bf16", "dtypes", "rude", "gpt2", "t5"]
)
def test_forwards_of_the_zoo(manager: HookManager, name: str) -> None:
    model = ZOO[name].build()
    twin = copy.deepcopy(model)
    oracle = Oracle(twin, FORWARD)
    watch = armed(manager, model, kinds=FORWARD, payload="tensor")
    args, kwargs = ZOO[name].inputs()
    for _ in range(2):
        for one in (model, twin):
            torch.manual_seed(0)
            one(*args, **kwargs)
    oracle.equals(drained(watch))


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor | None


@dataclasses.dataclass
class Record:
    logits: torch.Tensor
    past: tuple[torch.Tensor, tuple[torch.Tensor, None]]


class Structured(nn.Module):
    """Gives tensors in one of several structures."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.kind = kind

    def forward(self, x: torch.Tensor, *, mask: torch.Tensor | None = None) -> Any:
        y = self.linear(x)
        if mask is not None:
            y = y * mask
        return {
            "tensor": y,
            "tuple": (y, y + 1),
            "list": [y, None],
            "dict": {"a": y, "b": {"c": y * 2}},
            "named": Pair(y, None),
            "record": Record(y, (y + 1, (y + 2, None))),
            "nothing": None,
        }[self.kind]


STRUCTURES = {
    "tensor": [""],
    "tuple": ["0", "1"],
    "list": ["0", "1"],
    "dict": ["a", "b.c"],
    "named": ["0", "1"],
    "record": ["logits", "past.0", "past.1.0", "past.1.1"],
    "nothing": [""],
}


@pytest.mark.parametrize("kind", STRUCTURES)
def test_values_in_any_structure(manager: HookManager, kind: str) -> None:
    model = Structured(kind)
    twin = copy.deepcopy(model)
    watch = armed(manager, model, glob="", kinds=ALL, payload="tensor")
    x, mask = torch.randn(1, 2, requires_grad=True), torch.rand(1, 2)
    given = list(leaves(model(x, mask=mask)))
    loss = _loss(given)
    if loss is not None:
        loss.backward()
    events = {event.hook: event for event in drained(watch)}
    assert [value.key for value in events["forward_pre"].values] == ["0", "mask"]
    assert _same(events["forward_pre"].values, [x, mask])
    assert [value.key for value in events["forward"].values] == STRUCTURES[kind]
    assert _same(events["forward"].values, given)
    if loss is None:
        assert set(events) == set(FORWARD)
        return
    # PyTorch's full backward hooks serve few of these structures; what they would give autograd tells.
    outputs = list(leaves(twin(x, mask=mask)))
    wanted = [x, *(tensor for tensor in outputs if tensor is not None)]
    of_x, *rest = torch.autograd.grad(_loss(outputs), wanted)  # type: ignore[arg-type]
    of_outputs = [None if tensor is None else rest.pop(0) for tensor in outputs]
    assert _same(events["backward_pre"].values, of_outputs)
    assert [value.key for value in events["backward"].values] == ["0", "mask", *STRUCTURES[kind]]
    assert _same(events["backward"].values, [of_x, None, *of_outputs])


def _loss(outputs: list[torch.Tensor | None]) -> torch.Tensor | None:
    terms = [(n + 2) * tensor.sum() for n, tensor in enumerate(outputs) if tensor is not None]
    return torch.stack(terms).sum() if terms else None


def _same(values: Any, tensors: list[torch.Tensor | None]) -> bool:
    return len(values) == len(tensors) and all(
        value.dtype is None if tensor is None else torch.equal(tensor_of(value), tensor)
        for value, tensor in zip(values, tensors, strict=True)
    )


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_views_and_what_is_changed_in_place_later(manager: HookManager, mode: Any) -> None:
    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gives_a_view = nn.Flatten()
            self.gives_its_input = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.gives_its_input(self.gives_a_view(x * 1))
            y.mul_(2)
            return self.gives_its_input(y)[:, ::2]

    model = Changes()
    twin = copy.deepcopy(model)
    oracle = Oracle(twin, FORWARD)
    watch = armed(manager, model, kinds=FORWARD, payload="tensor")
    x = torch.randn(3, 2, 2)
    for one in (model, twin):
        with mode():
            one(x)
    oracle.equals(drained(watch))


def test_statistics_are_of_the_value_before_a_later_in_place_change(manager: HookManager) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
    with torch.no_grad():
        model[0].weight.fill_(-1.0)
        model[0].bias.zero_()
    watch = armed(manager, model, glob="0")
    model(torch.ones(1, 2))
    (event,) = drained(watch)
    assert event.values[0].stats is not None
    assert (event.values[0].stats.min, event.values[0].stats.max) == (-2.0, -2.0)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputation_under_checkpointing_is_told_apart(manager: HookManager, use_reentrant: bool) -> None:
    def run(model: nn.Module) -> None:
        x = torch.ones(1, 2, requires_grad=True)
        checkpoint(model, x, use_reentrant=use_reentrant).sum().backward()

    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    twin = copy.deepcopy(model)
    oracle = Oracle(twin, ("forward",))
    watch = armed(manager, model, payload="tensor")
    run(model)
    run(twin)
    events = drained(watch)
    oracle.equals(events)
    for path in ("", "0", "1", "2", "2.0", "2.1"):
        marks = [(event.call, event.recompute) for event in events if event.path == path]
        assert marks == [(0, False), (0, True)][: len(oracle.seen["forward", path])]
    # The part that is not needed again is not run again, and that it is broken off is nobody's error.
    assert len(oracle.seen["forward", ""]) == (2 if use_reentrant else 1)
    assert all(tap.raised == 0 for tap in watch.taps)


def test_backward_of_what_was_recomputed(manager: HookManager) -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    watch = armed(manager, inner, glob="0", kinds=("forward", "backward"), payload="none")
    checkpoint(inner, torch.ones(1, 2, requires_grad=True), use_reentrant=False).sum().backward()
    events = [(event.hook, event.recompute) for event in drained(watch)]
    assert events == [("forward", False), ("forward", True), ("backward", False)]


@pytest.fixture
def one_process() -> Iterator[None]:
    distributed.init_process_group(
        "gloo",
        store=distributed.HashStore(),  # type: ignore[attr-defined]
        rank=0,
        world_size=1,
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_distributed_model(manager: HookManager) -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(Residual(), nn.Tanh(), Residual())
    twin = copy.deepcopy(inner)
    model = DistributedDataParallel(inner)
    oracle = Oracle(twin)
    watch = armed(manager, model, kinds=ALL, payload="tensor")
    for _ in range(2):
        inputs = torch.randn(5, 3)
        for one in (model, twin):
            one(inputs.clone().requires_grad_()).square().sum().backward()
    events = drained(watch)
    assert {event.raw_path for event in events} >= {"module.0.f", "module.1"}
    oracle.equals(events)
    assert_same_gradients(model, twin)
