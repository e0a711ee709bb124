"""What a watch may ask for, from either client to a model at work; PyTorch itself says what must come."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import modscope_server
from modscope_client.channel import Endpoint
from modscope_client.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable
from modscope_client.types import Event, HookInfo
from tests.client.both import CLIENTS, entered, next_of, over, served_to, settle
from tests.client.line import line
from tests.end_to_end.serving import bits


class Twice(nn.Module):
    """Calls one module twice in each forward, and another never."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.outputs: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.layer(x)
        second: torch.Tensor = self.layer(first)
        self.outputs += [first.detach(), second.detach()]
        return second


class Job:
    """A loop over it, each iteration of which is one call of `train`."""

    def __init__(self, block_ms: float = 0.0) -> None:
        torch.manual_seed(0)
        self.module = Twice()
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1)
        self.scope = modscope_server.attach(
            self.module, optimizer=self.optimizer, limits=modscope_server.Limits(block_ms=block_ms)
        )
        self.losses: list[float] = []

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            loss = self.module(torch.randn(3, 4)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scope.step(loss=loss)
            self.losses.append(loss.item())


@pytest.fixture
def job() -> Iterator[Job]:
    made = Job()
    yield made
    made.scope.close()


async def take(events: Any, count: int) -> list[Event]:
    return [await next_of(events) for _ in range(count)]


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"start": 3, "stop": 5}, [(3, 0), (3, 1), (4, 0), (4, 1)]),
        ({"every": 3, "first_call": True}, [(0, 0), (3, 0), (6, 0), (9, 0)]),
        ({"phase": "training", "stop": 1}, [(0, 0), (0, 1)]),
        ({"phase": "evaluation", "first_call": True}, [(10, 0)]),
    ],
)
def test_windows(options: dict[str, Any], expected: list[tuple[int, int]], kind: Any, job: Job) -> None:
    async def body(model: Any) -> None:
        async with entered(model.watch("layer", **options)) as events:
            job.train(10)
            job.module.eval()
            with torch.no_grad():
                job.module(torch.randn(3, 4))
            await settle(events.stop())
            came = []
            while (event := await next_of(events)) is not None:
                came.append((event.step, event.call))
            assert came == expected

    served_to(kind, job.scope, body)


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_part_of_each_tensor_in_another_dtype(kind: Any, job: Job) -> None:
    async def body(model: Any) -> None:
        asked = {"payload": "tensor", "index": "[-1, ::2]", "dtype": "bfloat16"}
        async with entered(model.watch("layer", **asked)) as events:
            job.train()
            for event, output in zip(await take(events, 2), job.module.outputs, strict=True):
                assert bits(event.values[0].array) == bits(output[-1, ::2].to(torch.bfloat16))
        async with entered(model.watch("layer", index="[0]")) as events:
            job.train()
            (event,) = await take(events, 1)
            stats = event.values[0].stats
            assert stats.count == 4
            assert stats.mean == pytest.approx(job.module.outputs[2][0].double().mean().item(), rel=1e-5)

    served_to(kind, job.scope, body)


@pytest.mark.parametrize("kind", CLIENTS)
def test_parameters_gradients_and_metrics_in_one_subscription(kind: Any, job: Job) -> None:
    layer = job.module.layer

    async def body(model: Any) -> None:
        kinds = ("forward", "parameter", "gradient", "metric")
        async with entered(model.watch("layer", hooks=kinds, payload="tensor", first_call=True)) as events:
            job.train()
            came = {(event.hook, event.path): event.values[0] for event in await take(events, 6)}
        assert {(hook, path): bits(value.array) for (hook, path), value in came.items()} == {
            ("forward", "layer"): bits(job.module.outputs[0]),
            ("parameter", "layer.weight"): bits(layer.weight),
            ("parameter", "layer.bias"): bits(layer.bias),
            ("gradient", "layer.weight"): bits(_gradient(layer.weight)),
            ("gradient", "layer.bias"): bits(_gradient(layer.bias)),
            ("metric", "loss"): bits(torch.tensor(job.losses[0], dtype=torch.float64)),
        }
        assert {value.role for (hook, _), value in came.items() if hook != "forward"} == set(kinds[1:])

    served_to(kind, job.scope, body)


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_watch_goes_on_without_its_reader(kind: Any, job: Job) -> None:
    async def body(model: Any) -> None:
        async with entered(model.watch("layer", keep=60)) as events:
            job.train(2)
            first = await take(events, 3)
            await settle(events.leave())
        job.train(3)
        async with entered(model.watch(resume=events.watch_id, resume_after=first[-1].seq)) as events:
            job.train()
            rest = await take(events, 9)
            assert events.dropped == 0
        assert [event.seq for event in (*first, *rest)] == list(range(12))
        assert [event.step for event in (*first, *rest)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        with pytest.raises(NotFound) as refusal:
            await _resume(model, events.watch_id)
        assert refusal.value.reason == "UNKNOWN_WATCH" and refusal.value.hint
        assert not any(hook.owner == "watch" for hook in await settle(model.hooks()))

    served_to(kind, job.scope, body)


async def _resume(model: Any, watch_id: str) -> None:
    async with entered(model.watch(resume=watch_id)):
        pass


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_connection_that_is_cut_costs_no_event(kind: Any, job: Job, tmp_path: Path) -> None:
    async def body(client: Any) -> None:
        model = await settle(client.model())
        async with entered(model.watch("layer", keep=60)) as events:
            job.train()
            came = await take(events, 2)
            wire.cut()
            with pytest.raises(Unavailable):
                await _all(events)
        job.train(2)
        async with entered(model.watch(resume=events.watch_id, resume_after=1)) as events:
            came += await take(events, 4)
        assert [event.seq for event in came] == list(range(6)) and events.dropped == 0

    with line(tmp_path / "line", job.scope.address) as wire:
        over(kind, Endpoint.find(wire.address, job.scope.token, None, insecure=False), body)


@pytest.mark.parametrize("kind", CLIENTS)
def test_one_reader_at_a_time_the_last_that_came(kind: Any, job: Job) -> None:
    async def body(model: Any) -> None:
        async with entered(model.watch("layer", keep=60)) as first:
            job.train()
            await take(first, 2)
            async with entered(model.watch(resume=first.watch_id, resume_after=1)) as second:
                with pytest.raises(Unavailable, match="another reader"):
                    await next_of(first)
                await settle(first.close())
                job.train()
                assert [event.seq for event in await take(second, 2)] == [2, 3]

    served_to(kind, job.scope, body)


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_queue_that_overflows_ends_it(kind: Any, job: Job) -> None:
    async def body(model: Any) -> None:
        async with entered(model.watch("layer", overflow="disconnect", queue=4)) as events:
            job.train(100)
            with pytest.raises(ResourceExhausted) as end:
                await _all(events)
            assert end.value.reason == "LIMIT" and end.value.hint
        assert not any(hook.owner == "watch" for hook in await settle(model.hooks()))

    served_to(kind, job.scope, body)


@pytest.mark.parametrize("kind", CLIENTS)
def test_training_waits_where_it_was_asked_to_and_may(kind: Any) -> None:
    job = Job(block_ms=5000)

    async def body(model: Any) -> None:
        asked = {"overflow": "block", "block_ms": 5000, "queue": 2}
        async with entered(model.watch("layer", **asked)) as events:
            trainer = threading.Thread(target=job.train, args=(50,))
            trainer.start()
            came = await take(events, 100)
            trainer.join(30)
        assert [event.seq for event in came] == list(range(100)) and came[-1].dropped == 0

    with job.scope:
        served_to(kind, job.scope, body)


@pytest.mark.parametrize("kind", CLIENTS)
def test_training_waits_only_where_the_server_allows_it(kind: Any, job: Job) -> None:
    async def body(model: Any) -> None:
        with pytest.raises(InvalidArgument, match="training wait") as refusal:
            async with entered(model.watch(overflow="block", block_ms=1)):
                pass
        assert "limits.block_ms" in refusal.value.hint

    served_to(kind, job.scope, body)


async def _all(events: Any) -> None:
    while await next_of(events) is not None:
        pass


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_module_that_is_never_called_is_blind(kind: Any, job: Job) -> None:
    async def body(model: Any) -> None:
        watch = model.watch("{layer,unused}")
        noticed: list[HookInfo] = []
        watch.noticed = noticed.append
        async with entered(watch) as events:
            while not any(hook.state == "blind" for hook in events.states):
                job.train()
                await take(events, 2)
            states = {hook.path: hook for hook in events.states}
            assert states["layer"].state == "fired" and states["unused"].state == "blind"
            assert states["unused"].reason and not states["layer"].reason
            assert ("unused", "blind") in [(hook.path, hook.state) for hook in noticed]

    served_to(kind, job.scope, body)
