"""What the tests of compiled models share: backends that count, and a loop with the safe point around it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn

from modscope_server.runtime.bus import HookEvent
from modscope_server.runtime.direct_use import DirectUse
from modscope_server.runtime.eager_steps import EagerSteps
from modscope_server.runtime.hooks import HookManager, Watch
from modscope_server.runtime.insight import Insight
from modscope_server.runtime.registry import Registry
from modscope_server.runtime.safepoint import SafePoint
from modscope_server.runtime.watch_spec import WatchSpec

__all__ = [
    "ALL",
    "INDUCTOR",
    "Backend",
    "Net",
    "Rig",
    "batch",
    "compiled_step",
    "drained",
    "fresh_compiler",
    "graphs",
    "rig",
    "stance",
    "trained",
]

ALL = ("forward_pre", "forward", "backward_pre", "backward")
INDUCTOR = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="Inductor needs a C++ compiler"
)


class Backend:
    """A backend of torch.compile, counting how often the code that it has made runs."""

    def __init__(self, name: str) -> None:
        self._compile: Any = torch._dynamo.lookup_backend(name)
        self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        code = self._compile(graph, inputs)

        def run(*args: Any) -> Any:
            self.runs += 1
            return code(*args)

        return run


def graphs() -> int:
    """How many graphs were compiled since the compiler was reset."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def stance() -> str:
    """The stance of the compiler."""
    return torch._dynamo.eval_frame._stance.stance


class Rig:
    """A model with its safe point, watched without a wire."""

    def __init__(
        self, model: nn.Module, safepoint: SafePoint, hooks: HookManager, registry: Registry
    ) -> None:
        self.safepoint = safepoint
        self.hooks = hooks
        self.registered = registry.get()
        assert hooks.insight.eager_steps is not None
        self.eager_steps = hooks.insight.eager_steps

    def watch(self, **spec: Any) -> Watch:
        """Arm a watch, between two steps."""
        return self.hooks.watch(self.registered, WatchSpec(**spec))

    def stop(self, watch: Watch) -> None:
        """End it."""
        self.hooks.stop(watch.subscription.id)


@contextmanager
def rig(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Iterator[Rig]:
    """The runtime around a model, as attach builds it."""
    registry = Registry({"model": model}, [] if optimizer is None else [optimizer])
    safepoint = SafePoint([model], is_ours=registry.holds, ours=registry.ours, optimizers=bool(optimizer))
    registry.count_steps_with(lambda: safepoint.step_count)
    hooks = HookManager(watches=8, events=1000, size=1 << 24)
    hooks.insight = Insight(EagerSteps([model], safepoint), DirectUse(safepoint))
    try:
        yield Rig(model, safepoint, hooks, registry)
    finally:
        hooks.stop_all("closed")
        safepoint.close()


def drained(watch: Watch) -> list[HookEvent]:
    """The events that wait."""
    return watch.subscription.drain(0, limit=10_000)


class Layer(nn.Module):
    """One of torch's own classes would not be compiled by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * 2


class Net(nn.Module):
    """Two layers; the first can be compiled by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Layer()
        self.second = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).tanh())


Step = Callable[[torch.Tensor], Any]


def trained(call: Callable[..., Any], optimizer: torch.optim.Optimizer) -> Step:
    """A step of training."""

    def step(x: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = call(x).square().sum()
        loss.backward()
        optimizer.step()
        return loss

    return step


def compiled_step(how: str, model: nn.Module, optimizer: torch.optim.Optimizer, backend: Any) -> Step:
    """A step of training in which the model is compiled in one of the ways in which people do it."""
    if how == "a wrapper":
        return trained(torch.compile(model, backend=backend), optimizer)
    if how == "a whole graph":
        return trained(torch.compile(model, backend=backend, fullgraph=True), optimizer)
    if how == "in place":
        model.compile(backend=backend)
        return trained(model, optimizer)
    if how == "a child in place":
        model.first.compile(backend=backend)  # type: ignore[union-attr,operator]
        return trained(model, optimizer)
    assert how == "a step function"
    return torch.compile(trained(model, optimizer), backend=backend)


def batch(seed: int) -> torch.Tensor:
    """Inputs for it."""
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@contextmanager
def fresh_compiler() -> Iterator[None]:
    """Nothing is compiled yet, and the stance of the compiler is as it was afterwards."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    assert stance() == "default"
