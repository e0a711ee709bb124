"""The async client: the twin of the sync one, name for name and value for value."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import modscope_client
import modscope_server
from modscope_client import aio
from modscope_client.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from tests.client.served_net import Net, Stop, stop_at
from tests.end_to_end.serving import bits, fingerprint


@pytest.fixture
def module() -> Iterator[Net]:
    torch.manual_seed(0)
    made = Net()
    with modscope_server.attach(made, torch.optim.Adam(made.parameters()), writable=True):
        yield made


def run(body: Callable[[aio.RemoteModel], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with aio.connect(timeout=30) as client:
            return await body(await client.model())

    return asyncio.run(main())


def surface(kind: type) -> dict[str, Any]:
    members = {name: member for name, member in inspect.getmembers(kind) if not name.startswith("_")}
    return {
        name: inspect.signature(member) if callable(member) else type(member)
        for name, member in members.items()
    }


@pytest.mark.parametrize(
    "name",
    [
        "Client",
        "InterventionHandle",
        "RemoteModel",
        "RemoteModule",
        "RemoteParameter",
        "Run",
        "Subscription",
        "Transaction",
    ],
)
def test_the_twins_have_the_same_names_and_arguments(name: str) -> None:
    mine, theirs = surface(getattr(aio, name)), surface(getattr(modscope_client, name))
    assert list(mine) == list(theirs)
    for member, signature in theirs.items():
        if isinstance(signature, inspect.Signature):
            assert mine[member].parameters == signature.parameters, member
    assert str(inspect.signature(aio.connect)) == str(inspect.signature(modscope_client.connect))


def test_everything_that_asks_is_awaited() -> None:
    local = {"module", "parameter", "transaction", "watch"}
    for name in ("RemoteModel", "RemoteModule", "RemoteParameter"):
        for member, method in inspect.getmembers(getattr(aio, name), inspect.isfunction):
            if not member.startswith("_"):
                assert inspect.iscoroutinefunction(method) == (member not in local), member


def test_structure_and_reads(module: Net) -> None:
    async def body(model: aio.RemoteModel) -> None:
        assert repr(model).startswith("<RemoteModel 'model' at unix:") and str(model) == repr(model)
        assert (await model.module_info()).repr == repr(module) == (await model.module().info()).repr
        assert (await model.info()).modules == len(list(module.modules()))
        assert [m.path for m in await model.modules(type=nn.Linear)] == ["body.0", "head"]
        assert [c.path for c in await model.module("body").children()] == ["body.0", "body.1", "body.2"]
        assert [m.path for m in await model.module("body").modules(type="Linear")] == ["body.0"]
        assert [p.path for p in await model.parameters()] == [n for n, _ in module.named_parameters()]
        assert [p.path for p in await model.module("head").parameters()] == ["head.weight", "head.bias"]
        assert [b.path for b in await model.buffers()] == [n for n, _ in module.named_buffers()]
        assert len(await model.module("body").buffers()) == 3
        for path, tensor in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items():
            array, step = await model.read(path, with_step=True)
            assert bits(array) == bits(tensor) and step == 0
        both = await model.read(["large", "brief"])
        assert bits(both["brief"]) == bits(module.brief)
        head = model.parameter("head.bias")
        assert bits(await head.read()) == bits(module.head.bias)
        assert (
            await head.digest() == await model.digest("twin.bias") == (await model.tensor("head.bias")).digest
        )
        assert (await head.info()).shape == (4,)
        assert "RemoteParameter" in repr(head) and "RemoteModule" in repr(model.module())
        with pytest.raises(FailedPrecondition):
            await head.grad()
        with pytest.raises(NotFound):
            await model.read("nowhere")
        assert await model.hooks() is not None

    run(body)


def test_changes(module: Net) -> None:
    async def body(model: aio.RemoteModel) -> None:
        assert (await model.write("head.bias", [1, 2, 3, 4])).kind == "write"
        await model.parameter("large").write(torch.ones(600, 1000))
        assert (await model.freeze("head")).paths == ("head.weight", "head.bias")
        await model.module("body").freeze()
        await model.parameter("large").freeze(force=True)
        assert not any(p.requires_grad for p in module.parameters())
        await model.unfreeze("head")
        await model.module("body").unfreeze()
        await model.parameter("large").unfreeze()
        await model.reinitialize("head", scheme="zeros_", parameter="weight")
        await model.module("body").reinitialize(scheme="ones_", parameter="weight", type="Linear")
        with pytest.raises(InvalidArgument):
            await model.write("head.bias", torch.zeros(5))

    run(body)
    assert all(p.requires_grad for p in module.parameters())
    assert module.head.bias.tolist() == [1, 2, 3, 4] and (module.large == 1).all()
    assert (module.head.weight == 0).all() and (module.body.get_parameter("0.weight") == 1).all()


def test_state_dicts(module: Net, tmp_path: Path) -> None:
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}

    async def body(model: aio.RemoteModel) -> None:
        told: list[int] = []
        found = await model.state_dict(progress=lambda done, total: told.append(done))
        assert {key: bits(a) for key, a in found.items()} == {key: bits(t) for key, t in state.items()}
        assert told[0] == 0 and told[-1] == sum(tensor.nbytes for tensor in state.values())
        keys = await model.state_dict_keys()
        assert [entry.key for entry in keys.entries] == list(state)
        assert (await model.save_state_dict(tmp_path / "f")).entries == keys.entries
        nn.init.zeros_(module.large)
        result = await model.load_state_dict(tmp_path / "f")
        assert (result.missing_keys, result.unexpected_keys) == ([], [])
        assert torch.equal(module.large, state["large"])
        before = fingerprint(module)
        for attempt in (
            lambda: model.state_dict(progress=stop_at(1 << 20)),
            lambda: model.save_state_dict(tmp_path / "g", progress=stop_at(1 << 20)),
            lambda: model.load_state_dict(state, progress=stop_at(1 << 20)),
        ):
            with pytest.raises(Stop):
                await attempt()
        assert fingerprint(module) == before and os.listdir(tmp_path) == ["f"]

    run(body)


def test_forward(module: Net) -> None:
    x = torch.randn(3, 8)

    async def body(model: aio.RemoteModel) -> Any:
        with pytest.raises(InvalidArgument, match="mat1"):
            await model.forward(torch.randn(3, 9))
        return await model.forward(x, scale=2.0)

    found = run(body)
    module.eval()
    assert torch.allclose(torch.from_numpy(found), module(x, scale=2.0).detach())


def test_a_watch(module: Net) -> None:
    def counts() -> list[int]:
        return [len(part._forward_hooks) for part in module.modules()]

    before = counts()

    async def body(model: aio.RemoteModel) -> None:
        watch = model.watch("head", payload="tensor")
        with pytest.raises(RuntimeError, match="not armed"):
            await anext(watch)
        async with watch as events:
            assert counts() != before and events.paths == ("head",)
            expected = module(torch.zeros(2, 8))
            event = await anext(events)
            assert (event.path, event.seq) == ("head", 0) and bits(event.values[0].array) == bits(expected)
            rest = asyncio.create_task(_all(events, asyncio.Event()))
            module(torch.zeros(2, 8))
            await events.stop()
            assert counts() == before
            assert [event.seq for event in await rest] == [1]
            assert events.counters.published == 2
        with pytest.raises(RuntimeError, match="once"):
            await watch.__aenter__()
        with pytest.raises(ZeroDivisionError):
            async with model.module("head").watch():
                raise ZeroDivisionError
        assert counts() == before
        with pytest.raises(NotFound):
            async with model.watch("nowhere"):
                pass

    run(body)


async def _all(events: aio.Subscription, begun: asyncio.Event) -> list[modscope_client.Event]:
    begun.set()
    return [event async for event in events]


def test_leaving_while_another_task_iterates(module: Net) -> None:
    async def body(model: aio.RemoteModel) -> None:
        async with model.watch("head") as events:
            begun = asyncio.Event()
            reader = asyncio.create_task(_all(events, begun))
            await begun.wait()
        assert await asyncio.wait_for(reader, 30) == []

    run(body)


def test_a_server_that_closes_ends_the_iteration_with_an_error() -> None:
    scope = modscope_server.attach(nn.Linear(2, 2))

    async def body(model: aio.RemoteModel) -> None:
        async with model.watch() as events:
            scope.close()
            with pytest.raises(Unavailable):
                await anext(events)

    run(body)


def test_many_at_once(module: Net) -> None:
    async def body(model: aio.RemoteModel) -> None:
        arrays = await asyncio.gather(*(model.read("large") for _ in range(10)))
        assert all(bits(array) == bits(module.large) for array in arrays)

    run(body)


def test_a_client_is_awaited_or_entered_and_closed_once(module: Net) -> None:
    async def main() -> None:
        client = await aio.connect()
        assert [model.name for model in await client.models()] == ["model"]
        assert "aio.Client of unix:" in repr(client) and client.timeout == 10
        await client.close()
        await client.close()
        assert "closed" in repr(client)
        with pytest.raises(Unavailable, match="is closed"):
            await client.models()

    asyncio.run(main())
