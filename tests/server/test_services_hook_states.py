"""The states of hooks over the wire: in the stream as they change, and in the listing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import modscope_server
from modscope.v1 import hook_service_pb2
from tests.server.compiled_support import Backend, graphs, stance
from tests.server.intervention_support import here
from tests.server.rpc import Rpc, serving, until
from tests.server.test_services_hook import armed, watched

ARMED = hook_service_pb2.HOOK_STATE_ARMED
FIRED = hook_service_pb2.HOOK_STATE_FIRED
BLIND = hook_service_pb2.HOOK_STATE_BLIND


class Half(nn.Module):
    """One of its layers is called while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)
        self.on = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.used(x)
        return self.unused(x) if self.on else x


def told(stream: Any) -> dict[str, Any]:
    """The next message about hooks, by path."""
    message = next(message for message in stream if message.hooks)
    return {hook.path: hook for hook in message.hooks}


def test_all_at_first_then_those_that_change() -> None:
    model = Half().eval()
    x = torch.ones(1, 2)
    with serving(model, limits=modscope_server.Limits(heartbeat=0.5)) as rpc:
        stream, created = armed(rpc)
        first = told(stream)
        assert list(first) == ["", "used", "unused"]
        assert {hook.state for hook in first.values()} == {ARMED}
        assert {tuple(hook.watch_ids) for hook in first.values()} == {(created.watch_id,)}
        model(x)
        changed = told(stream)
        assert {path: (hook.state, hook.fired) for path, hook in changed.items()} == {
            "": (FIRED, 1),
            "used": (FIRED, 1),
            "unused": (BLIND, 0),
        }
        assert changed["unused"].reason == "never called since step 0"
        listed = {hook.path: hook for hook in watched(rpc)}
        assert {path: hook.state for path, hook in listed.items()} == {
            "": FIRED,
            "used": FIRED,
            "unused": BLIND,
        }
        assert listed["unused"].reason == changed["unused"].reason
        model.on = True
        model(x)
        assert {path: hook.state for path, hook in told(stream).items()} == {"unused": FIRED}


def test_the_last_word_comes_with_the_end() -> None:
    model = Half().eval()
    with serving(model) as rpc:
        stream, created = armed(rpc)
        told(stream)
        model(torch.ones(1, 2))
        rpc.StopWatch(watch_id=created.watch_id)
        messages = list(stream)
        assert messages[-1].HasField("ended")
        states = {hook.path: hook.state for message in messages for hook in message.hooks}
        assert states == {"": FIRED, "used": FIRED, "unused": BLIND}


def test_watches_that_fare_alike_are_listed_together() -> None:
    model = Half().eval()
    with serving(model) as rpc:
        streams = [armed(rpc, glob="used") for _ in range(2)]
        model(torch.ones(1, 2))
        (hook,) = watched(rpc)
        assert list(hook.watch_ids) == [created.watch_id for _, created in streams]
        _stream, third = armed(rpc, glob="used", phase=1)
        model(torch.ones(1, 2))
        states = {tuple(hook.watch_ids): (hook.state, hook.reason) for hook in watched(rpc)}
        assert states[(third.watch_id,)] == (BLIND, "called in evaluation only")


@pytest.fixture
def compiled() -> Iterator[tuple[nn.Module, Backend]]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, backend = Half(), Backend("aot_eager")
    model.compile(backend=backend)
    model(torch.ones(1, 2))
    yield model, backend
    assert stance() == "default"


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()


def test_the_remedy_for_compiled_code_is_told_with_its_cost(compiled: tuple[nn.Module, Backend]) -> None:
    model, backend = compiled
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with here(model, optimizer) as rpc:
        stream, created = armed(rpc, glob="used")
        assert list(created.notes) == [
            "'used' is compiled: the steps that are watched run eagerly, by torch.compiler.set_stance; the "
            "compiled code is back when the watch ends"
        ]
        for _ in range(12):
            step(model, optimizer)
        (hook,) = watched(rpc)
        assert (hook.state, hook.fired, hook.remedy) == (FIRED, 12, "eager steps: 12")
        runs = backend.runs
        rpc.StopWatch(watch_id=created.watch_id)
        step(model, optimizer)
        assert backend.runs > runs and graphs() == 1
        assert next(message for message in stream if message.HasField("ended")).ended.published == 12


def gone(rpc: Rpc) -> bool:
    return not watched(rpc) and stance() == "default"


@pytest.mark.parametrize("how", ["the reader goes", "the server closes"])
def test_the_compiled_code_is_back_however_a_watch_ends(
    compiled: tuple[nn.Module, Backend], how: str
) -> None:
    model, backend = compiled
    scope = modscope_server.attach(model)
    with scope, Rpc(scope.address, scope.token) as rpc:
        stream, _ = armed(rpc)
        model(torch.ones(1, 2))
        assert stance() == "force_eager"
        if how == "the reader goes":
            stream.cancel()
            until(lambda: gone(rpc))
        else:
            scope.close()
        runs = backend.runs
        model(torch.ones(1, 2))
        assert backend.runs > runs and graphs() == 1


def test_a_server_that_closes_leaves_nothing_on_parameters() -> None:
    model = Half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with here(model, optimizer) as rpc:
        _stream, _ = armed(rpc)
        step(model, optimizer)
        watched(rpc)
        step(model, optimizer)
        assert model.unused.weight._post_accumulate_grad_hooks
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
