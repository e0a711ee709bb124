"""Interventions through both clients: what is asked for, the handle, leases that are renewed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy
import pytest
import torch
from torch import nn

import modscope_server
from modscope_client.errors import InvalidArgument, NotFound, PermissionDenied
from tests.client.both import CLIENTS, entered, served_to, settle
from tests.end_to_end.serving import until
from tests.plain_models import MLP

BOTH = pytest.mark.parametrize("kind", CLIENTS, ids=["sync", "aio"])
ROW = numpy.array([1.5, -2.0, 0.25], "float32")
By = Callable[[torch.Tensor], torch.Tensor]


def served(kind: Any, module: nn.Module, body: Any, **options: Any) -> None:
    """Runs the body with the model of a server, through a client of that kind."""
    with modscope_server.attach(module, **{"writable": True, **options}) as scope:
        served_to(kind, scope, body)


def by_hand(module: nn.Module, change: By) -> nn.Module:
    twin = copy.deepcopy(module)
    twin.get_submodule("w2").register_forward_hook(lambda _, args, output: change(output))
    return twin


def put(output: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    output = output.clone()
    output[index] = torch.as_tensor(value)
    return output


CASES: list[tuple[dict[str, Any], str, By]] = [
    ({"scale": 2}, "scale 2", lambda y: y * 2),
    ({"scale": numpy.float32(0.5)}, "scale 0.5", lambda y: y * 0.5),
    ({"add": -1.5}, "add -1.5", lambda y: y - 1.5),
    ({"add": ROW}, "add float32[3]", lambda y: y + torch.from_numpy(ROW)),
    ({"add": [1, 2, 3]}, "add int64[3]", lambda y: y + torch.tensor([1.0, 2.0, 3.0])),
    ({"clamp": (0, None)}, "clamp 0 inf", lambda y: y.clamp(min=0)),
    ({"clamp": (-0.1, 0.1)}, "clamp -0.1 0.1", lambda y: y.clamp(-0.1, 0.1)),
    ({"zero": True, "index": "[:, 1]"}, "zero", lambda y: put(y, (slice(None), 1), 0.0)),
    ({"replace": ROW}, "replace float32[3]", lambda y: put(y, ..., ROW)),
    (
        {"replace": ROW.astype(ml_dtypes.bfloat16), "index": "0"},
        "replace bfloat16[3]",
        lambda y: put(y, 0, ROW),
    ),
    ({"replace": torch.zeros(3)}, "replace float32[3]", lambda y: put(y, ..., 0.0)),
]


@BOTH
@pytest.mark.parametrize(("asked", "action", "change"), CASES, ids=[action for _, action, _ in CASES])
def test_what_each_does(kind: Any, asked: dict[str, Any], action: str, change: By) -> None:
    module = MLP()
    twin = by_hand(module, change)
    x = torch.randn(2, 1)
    untouched = module(x)

    async def body(model: Any) -> None:
        async with entered(await settle(model.intervene("w2", **asked))) as handle:
            assert torch.equal(module(x), twin(x))
            info = await settle(handle.info())
            assert (info.id, info.action, info.index) == (handle.id, action, asked.get("index", ""))
            assert (info.path, info.paths, info.hook, info.model) == ("w2", ("w2",), "forward", "model")
            assert (info.applied, info.state, info.note) == (1, "acting", "")
            assert not info.persist and info.lease.holds == info.id and info.lease.seconds == 30
        assert torch.equal(module(x), untouched)
        assert (await settle(handle.info())).state == "ended"
        await settle(handle.remove())

    served(kind, module, body)


@BOTH
def test_an_array_of_several_messages(kind: Any) -> None:
    module = nn.Identity()
    value = torch.randn(700, 600)

    async def body(model: Any) -> None:
        await settle(model.intervene("", replace=value.numpy()))
        assert torch.equal(module(torch.zeros(700, 600)), value)

    served(kind, module, body)


@BOTH
def test_noise_is_told_with_its_seed_and_repeats(kind: Any) -> None:
    module = nn.Identity()
    zeros = torch.zeros(3, 4)

    async def body(model: Any) -> None:
        for seed in (11, None):
            async with entered(await settle(model.intervene("", noise=0.5, seed=seed))) as handle:
                told = int(handle.made.action.rpartition(" ")[2])
                assert seed in (told, None)
                for application in range(2):
                    generator = torch.Generator().manual_seed(told + application)
                    assert torch.equal(module(zeros), torch.randn(3, 4, generator=generator) * 0.5)

    served(kind, module, body)


@BOTH
def test_all_of_a_model_listed_and_ended(kind: Any) -> None:
    module = MLP()

    async def body(model: Any) -> None:
        assert await settle(model.interventions()) == []
        first = await settle(model.intervene("w1", scale=2.0, persist=True, start=5, stop=9))
        second = await settle(model.module("w2").intervene(add=1.0, hook="forward_pre", calls=3))
        listed = await settle(model.interventions())
        assert [one.id for one in listed] == [first.id, second.id]
        assert (listed[0].persist, listed[0].lease, listed[0].start, listed[0].stop) == (True, None, 5, 9)
        assert (listed[0].state, listed[0].note) == ("waiting", "it begins at step 5")
        assert (listed[1].calls, listed[1].hook) == (3, "forward_pre")
        hooks = [hook for hook in await settle(model.hooks()) if hook.owner == "intervention"]
        assert [(hook.path, hook.kind, hook.intervention_id) for hook in hooks] == [
            ("w1", "forward", first.id),
            ("w2", "forward_pre", second.id),
        ]
        (operation,) = [o for o in await settle(model.operations()) if o.paths == ("w2",)]
        assert (operation.kind, operation.outcome) == ("intervene", "applied")
        assert second.id in operation.not_undoable
        with pytest.raises(NotFound) as raised:
            await settle(model.unhook(first.id, "intervention-99"))
        assert raised.value.reason == "UNKNOWN_INTERVENTION"
        assert [one.id for one in await settle(model.unhook(first.id))] == [first.id]
        assert [one.id for one in await settle(model.unhook())] == [second.id]
        assert await settle(model.unhook()) == []

    served(kind, module, body)


@BOTH
def test_a_lease_is_renewed_while_the_client_lives_whoever_keeps_the_handle(kind: Any) -> None:
    module = nn.Identity()

    async def body(model: Any) -> None:
        made = (await settle(model.intervene("", scale=2.0, lease=1.0))).made
        while True:
            (now,) = await settle(model.interventions())
            if now.lease.expires > made.lease.expires + 1.0:
                break
        assert torch.equal(module(torch.ones(2)), torch.full((2,), 2.0))

    served(kind, module, body)


def test_a_lease_ends_with_its_client_and_so_does_what_it_held() -> None:
    module = nn.Identity()
    ones = torch.ones(2)
    with modscope_server.attach(module, writable=True) as scope:

        async def body(model: Any) -> None:
            await settle(model.intervene("", scale=2.0, lease=1.0))
            await settle(model.intervene("", scale=3.0, persist=True))
            assert torch.equal(module(ones), torch.full((2,), 6.0))

        served_to(CLIENTS[0], scope, body)
        until(lambda: torch.equal(module(ones), torch.full((2,), 3.0)), "the lease ends")

        async def look(model: Any) -> None:
            (left,) = await settle(model.interventions())
            assert left.persist

        served_to(CLIENTS[0], scope, look)


@BOTH
@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({}, "scale"),
        ({"scale": 2.0, "zero": True}, "scale"),
        ({"scale": "2"}, "scale"),
        ({"clamp": 3}, "clamp"),
        ({"zero": True, "seed": 3}, "seed"),
        ({"zero": True, "calls": 0}, "calls"),
        ({"zero": True, "hook": "backward"}, "hook"),
        ({"zero": True, "lease": 0}, "lease"),
        ({"zero": True, "index": "[0"}, "index"),
        ({"scale": float("inf")}, "scale"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(kind: Any, asked: dict[str, Any], field: str) -> None:
    module = MLP()

    async def body(model: Any) -> None:
        with pytest.raises(InvalidArgument) as raised:
            await settle(model.intervene("w2", **asked))
        assert field in str(raised.value.details)
        assert await settle(model.interventions()) == []

    served(kind, module, body)


@BOTH
def test_a_read_only_server_makes_none(kind: Any) -> None:
    async def body(model: Any) -> None:
        with pytest.raises(PermissionDenied):
            await settle(model.intervene("w2", scale=2.0))

    served(kind, MLP(), body, writable=False)
