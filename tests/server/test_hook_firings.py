"""How often hooks have fired is told to each watch for itself, although they share what is on the module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from modscope_server.runtime.hook_states import HookState
from modscope_server.runtime.hooks import Watch
from tests.server.compiled_support import ALL, Rig, rig


def told(here: Rig, watch: Watch, kind: str) -> HookState:
    (hook,) = [hook for hook in here.hooks.states(here.registered, watch) if hook.kind == kind]
    return hook


@pytest.mark.parametrize("kinds", [("forward",), ALL], ids=["one kind", "all kinds"])
def test_each_watch_of_a_module_is_told_its_own_firings(kinds: tuple[str, ...]) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 3, requires_grad=True)).sum().backward()
        optimizer.step()

    with rig(model, optimizer) as here:
        specs: list[dict[str, Any]] = [{}, {"every": 3}, {"stop": 2}, {"phase": "evaluation"}, {"start": 9}]
        watches = [here.watch(glob="1", kinds=kinds, **spec) for spec in specs]
        for _ in range(5):
            step()
        # Of the same selection as the first, and armed later.
        watches.append(here.watch(glob="1", kinds=kinds))
        for _ in range(2):
            step()
        for watch, fired, last in zip(watches, (7, 3, 2, 0, 0, 2), (6, 6, 1, None, None, 6), strict=True):
            hooks = [told(here, watch, kind) for kind in kinds]
            assert {(hook.fired, hook.last_step) for hook in hooks} == {(fired, last)}
            assert watch.subscription.counters().published == fired * len(kinds)
        here.stop(watches[0])
        here.stop(watches[1])
        step()
        assert [told(here, watch, "forward").fired for watch in (watches[1], watches[5])] == [3, 3]
