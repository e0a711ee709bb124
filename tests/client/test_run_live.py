"""The run under control against the real server: a real loop is held, stepped, stopped by breaks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from modscope_client.channel import Endpoint
from modscope_client.errors import DeadlineExceeded, InvalidArgument, NotFound, PermissionDenied
from tests.client.both import CLIENTS, entered, over, settle
from tests.end_to_end.serving import Served, running_loop, served, until

BOTH = pytest.mark.parametrize("kind", CLIENTS, ids=["sync", "aio"])


class Trained:
    """A model, its server, and a loop that reports the number of its step as its loss."""

    def __init__(self, live: Served, optimizer: torch.optim.Optimizer) -> None:
        self.live = live
        self.done = 0
        self._optimizer = optimizer

    def iteration(self) -> None:
        self._optimizer.zero_grad()
        self.live.module(torch.ones(1, 2)).sum().backward()
        self._optimizer.step()
        self.done += 1
        self.live.scope.step(loss=float(self.done))

    def over(self, kind: Any, body: Any, token: str | None = None, timeout: float = 30) -> None:
        """Runs the body with a client of that kind."""
        scope = self.live.scope
        over(kind, Endpoint.find(scope.address, token or scope.token, None, insecure=False), body, timeout)


@pytest.fixture
def trained() -> Iterator[Trained]:
    torch.manual_seed(0)
    module = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    with served(module, optimizer) as live:
        yield Trained(live, optimizer)


@contextmanager
def loop(trained: Trained) -> Iterator[None]:
    with running_loop(trained.iteration):
        until(lambda: trained.done > 0, "the loop has begun")
        yield


@BOTH
def test_a_paused_run_stands_still_and_serves(kind: Any, trained: Trained) -> None:
    weight = trained.live.module.get_parameter("weight")

    async def body(client: Any) -> None:
        model = await settle(client.model())
        async with entered(client.run.pause()) as paused:
            step, before = paused.status.step, weight.detach().clone()
            assert paused.status.state == "paused" and paused.status.pause.reason == "pause"
            array, read_at = await settle(model.read("weight", with_step=True))
            assert read_at == step and (array == before.numpy()).all()
            operation = await settle(model.write("weight", fill=0.5))
            assert operation.step == step and (weight == 0.5).all()
            assert (await settle(client.run.status())).step == step == trained.live.scope.step_count
        until(lambda: trained.live.scope.step_count > step, "the loop goes on")
        status = await settle(client.run.status(history=3))
        assert status.state == "running" and "operator" in status.last_resume
        (loss,) = status.metrics
        assert loss.name == "loss" and 1 <= len(loss.points) <= 3
        assert [point.value for point in loss.points] == [point.step for point in loss.points]

    with loop(trained):
        trained.over(kind, body)


@BOTH
def test_a_block_that_raises_lets_the_run_go_on(kind: Any, trained: Trained) -> None:
    async def fail(client: Any) -> None:
        async with entered(client.run.pause()):
            raise ZeroDivisionError

    async def body(client: Any) -> None:
        with pytest.raises(ZeroDivisionError):
            await fail(client)
        step = trained.live.scope.step_count
        until(lambda: trained.live.scope.step_count > step, "the loop goes on")

    with loop(trained):
        trained.over(kind, body)


@BOTH
def test_steps_are_counted_exactly(kind: Any, trained: Trained) -> None:
    async def body(client: Any) -> None:
        async with entered(client.run.pause()) as paused:
            for n in (1, 1, 5, 100):
                before = (await settle(client.run.status())).step
                status = await settle(client.run.step(n))
                assert (status.state, status.step, status.pause.reason) == ("paused", before + n, "step")
        ahead = await settle(client.run.step(2))
        assert ahead.state == "paused" and ahead.step > paused.status.step + 107
        await settle(client.run.resume())

    with loop(trained):
        trained.over(kind, body)


@BOTH
def test_a_break_holds_the_run_where_it_says(kind: Any, trained: Trained) -> None:
    async def body(client: Any) -> None:
        async with entered(client.run.pause()) as paused:
            target = paused.status.step + 20
            made = await settle(client.run.break_when(f"loss >= {target}"))
            assert await settle(client.run.breaks()) == [made]
        status = await settle(client.run.wait())
        assert (status.state, status.step) == ("paused", target)
        assert (status.pause.break_id, status.pause.reason) == (made.id, made.expression)
        (hit,) = await settle(client.run.clear(made.id))
        assert hit.hits == 1 and await settle(client.run.breaks()) == []
        with pytest.raises(NotFound):
            await settle(client.run.clear(made.id))
        with pytest.raises(InvalidArgument) as wrong:
            await settle(client.run.break_when("loss >"))
        assert wrong.value.reason == "BAD_EXPRESSION"
        assert (await settle(client.run.resume())).pause is None

    with loop(trained):
        trained.over(kind, body)


@BOTH
def test_without_training_nothing_is_held(kind: Any, trained: Trained) -> None:
    async def body(client: Any) -> None:
        with pytest.raises(DeadlineExceeded, match="withdrawn"):
            await settle(client.run.pause())
        status = await settle(client.run.status())
        assert status.pause is None and status.state == "no_training"
        with pytest.raises(DeadlineExceeded):
            await settle(client.run.wait(0.1))

    trained.over(kind, body, timeout=1)


@BOTH
def test_a_loop_that_is_over_ends_the_wait(kind: Any, trained: Trained) -> None:
    with loop(trained):
        pass

    async def body(client: Any) -> None:
        assert (await settle(client.run.wait())).state == "no_training"

    trained.over(kind, body)


@BOTH
def test_a_viewer_looks_and_does_not_touch(kind: Any, trained: Trained) -> None:
    async def body(client: Any) -> None:
        assert (await settle(client.run.status())).state == "no_training"
        assert await settle(client.run.breaks()) == []
        for attempt in (client.run.resume, client.run.step, client.run.clear, client.run.pause):
            with pytest.raises(PermissionDenied) as refusal:
                await settle(attempt())
            assert refusal.value.reason == "VIEWER_TOKEN"

    trained.over(kind, body, trained.live.scope.viewer_token)


@BOTH
def test_a_pause_whose_client_dies_ends_with_its_lease(kind: Any, trained: Trained) -> None:
    async def body(client: Any) -> None:
        await settle(client.run.pause(lease=1))
        assert trained.live.client.run.status().state == "paused"

    with loop(trained):
        trained.over(kind, body)
        until(lambda: trained.live.client.run.status().state == "running", "it goes on by itself")
        assert "lease" in trained.live.client.run.status().last_resume


@BOTH
def test_a_pause_outlives_its_lease_while_its_client_lives(kind: Any, trained: Trained) -> None:
    async def body(client: Any) -> None:
        async with entered(client.run.pause(lease=1)) as paused:
            first = paused.status.pause.lease
            expires = first.expires
            while expires < first.expires + 1:
                status = await settle(client.run.wait(30))
                assert status.pause.lease.id == first.id and status.step == paused.status.step
                expires = status.pause.lease.expires

    with loop(trained):
        trained.over(kind, body)
