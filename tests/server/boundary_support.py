"""A loop that watches follow, and PyTorch's own hooks on its optimizers beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from modscope_server.runtime.bus import HookEvent
from modscope_server.runtime.hooks import HookManager, HookState, Watch
from modscope_server.runtime.metrics import Metrics
from modscope_server.runtime.registry import Registry
from modscope_server.runtime.safepoint import SafePoint
from modscope_server.runtime.watch_spec import WatchSpec
from tests.server.capture_support import drained, tensor_of

__all__ = ["BOTH", "Loop", "Used", "following", "notes_of", "tensors"]

BOTH = ("parameter", "gradient")


class Loop:
    """What stands between a loop and its watches, as a server puts it together."""

    def __init__(
        self, models: Mapping[str, nn.Module], optimizers: Sequence[Optimizer] = (), scaler: Any = None
    ) -> None:
        self.registry = Registry(models, optimizers)
        self.safepoint = SafePoint(
            models.values(),
            is_ours=self.registry.holds,
            ours=self.registry.ours,
            optimizers=len(optimizers),
            scaler=scaler,
        )
        self.registry.count_steps_with(lambda: self.safepoint.step_count)
        self.hooks = HookManager(watches=8, events=10_000, size=1 << 24)
        self.hooks.boundary_events.follow(self.safepoint, self.registry.optimizers)
        self.metrics = Metrics(self.hooks.boundary_events.metrics.reported)

    def watch(self, model: str = "", **spec: Any) -> Watch:
        """A watch of a model."""
        return self.hooks.watch(self.registry.get(model), WatchSpec(**spec))

    def step(self, **metrics: Any) -> None:
        """As scope.step."""
        self.safepoint.mark_step(lambda step: self.metrics.report(step, metrics))

    def states(self, watch: Watch) -> dict[tuple[str, str], HookState]:
        """What a watch's hooks do, by kind and path."""
        return {(state.kind, state.path): state for state in self.hooks.states(watch.registered, watch)}


@contextmanager
def following(
    models: nn.Module | Mapping[str, nn.Module], *optimizers: Optimizer, scaler: Any = None
) -> Iterator[Loop]:
    """A loop over these models that watches follow, until the end of the `with`."""
    named = {"model": models} if isinstance(models, nn.Module) else models
    loop = Loop(named, optimizers, scaler)
    try:
        yield loop
    finally:
        loop.hooks.stop_all("closed")
        loop.safepoint.close()


class Used:
    """What optimizers have used and made, as a post-step hook of PyTorch's own sees it.

    `step` is the number of the iteration, kept by the test.
    """

    def __init__(self, model: nn.Module, *optimizers: Optimizer) -> None:
        self.step = 1
        self.seen: dict[tuple[int, str, str], torch.Tensor] = {}
        self._paths = {id(tensor): path for path, tensor in model.named_parameters()}
        for optimizer in optimizers:
            optimizer.register_step_post_hook(self._stepped)

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                path = self._paths[id(parameter)]
                self.seen[self.step, "parameter", path] = parameter.detach().clone()
                if parameter.grad is not None:
                    self.seen[self.step, "gradient", path] = parameter.grad.detach().clone()

    def equals(self, events: Sequence[HookEvent]) -> None:
        """Assert that a watch has told the same, each once."""
        got = tensors(events)
        assert got.keys() == self.seen.keys()
        for key, mine in got.items():
            assert torch.equal(mine, self.seen[key]), key


def tensors(events: Sequence[HookEvent]) -> dict[tuple[int, str, str], torch.Tensor]:
    """Step, kind and path -> the tensor that was told; each once."""
    found: dict[tuple[int, str, str], torch.Tensor] = {}
    for event in events:
        (value,) = event.values
        assert (value.role, value.key, event.call, event.recompute) == (event.hook, "", 0, False)
        key = event.step, event.hook, event.path
        assert key not in found
        found[key] = tensor_of(value)
    return found


def notes_of(watch: Watch) -> list[tuple[int, str, str, str]]:
    """Step, kind, path and note of all that a watch has seen since it was drained last."""
    return [(one.step, one.hook, one.path, one.values[0].note) for one in drained(watch)]
