"""The ledger, undo, conditions and transactions against the real server: sync and async client alike."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch

from modscope.v1 import model_pb2, model_service_pb2, operation_pb2, operation_service_pb2
from modscope_client import ledger, rpcs
from modscope_client.errors import FailedPrecondition, InvalidArgument, NotFound
from tests.client.both import CLIENTS, entered, over, served_to, settle
from tests.client.fake_server import serving
from tests.client.served_net import Net, digest_of, net
from tests.end_to_end.serving import Served, fingerprint, raw, served

BOTH = pytest.mark.parametrize("kind", CLIENTS, ids=["sync", "aio"])


@pytest.fixture
def live() -> Iterator[Served]:
    torch.manual_seed(0)
    module = Net()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    with served(module, optimizer) as made:
        module(torch.randn(4, 8)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()  # a gradient is of its moment, and no change brings one back
        yield made


@BOTH
def test_what_was_done_is_listed(kind: Any, live: Served) -> None:
    async def body(model: Any) -> None:
        assert await settle(model.operations()) == []
        done = [
            await settle(model.write("head.bias", [1, 2, 3, 4], request_id="mine")),
            await settle(model.parameter("large").write(fill=0)),
            await settle(model.module("body").freeze()),
            (await settle(model.load_state_dict({"brief": torch.ones(3)}, strict=False))).operation,
        ]
        assert await settle(model.operations()) == done
        assert [operation.kind for operation in done] == ["write", "write", "freeze", "load_state_dict"]
        assert {operation.step for operation in done} == {1} and done[0].request_id == "mine"
        assert await settle(model.operation(done[1].id)) == done[1]
        listed = await settle(model.operation_list())
        assert (list(listed.operations), listed.forgotten) == (done, 0)
        with pytest.raises(NotFound) as unknown:
            await settle(model.operation("op-99"))
        assert unknown.value.reason == "UNKNOWN_OPERATION"

    served_to(kind, live.scope, body)


@BOTH
def test_pages_are_asked_for_until_the_last(kind: Any) -> None:
    asked: list[str] = []

    def page(request: bytes, context: Any) -> Any:
        asked.append(operation_service_pb2.ListOperationsRequest.FromString(request).page_token)
        number = len(asked)
        return operation_service_pb2.ListOperationsResponse(
            operations=[operation_pb2.Operation(id=f"op-{number}")],
            next_page_token="" if number == 3 else f"token-{number}",
            forgotten=number,
        )

    async def body(client: Any) -> None:
        found = await settle((await settle(client.model())).operation_list())
        assert [operation.id for operation in found.operations] == ["op-1", "op-2", "op-3"]
        assert found.forgotten == 3

    model = model_service_pb2.GetModelResponse(model=model_pb2.ModelInfo(name="net"))
    behaviours: dict[Any, Any] = {
        rpcs.GET_MODEL: lambda request, context: model,
        ledger.LIST_OPERATIONS: page,
    }
    with serving(behaviours) as endpoint:
        over(kind, endpoint, body)
    assert asked == ["", "token-1", "token-2"]


async def optimizing(model: Any) -> tuple[list[float], dict[str, bytes]]:
    """The learning rates, and Adam's moments of two parameters."""
    moments = await settle(model.read(["head.bias", "body.0.weight"], what="exp_avg"))
    rates = [group.lr for group in await settle(model.optimizers())]
    return rates, {path: moment.tobytes() for path, moment in moments.items()}


@BOTH
def test_undo_puts_every_bit_back(kind: Any, live: Served) -> None:
    before, state = fingerprint(live.module), copy.deepcopy(net(live).state_dict())

    async def body(model: Any) -> None:
        known = await optimizing(model)
        for change in (
            lambda: model.write("large", torch.randn(600, 1000)),
            lambda: model.freeze("body"),
            lambda: model.unfreeze("*"),
            lambda: model.reinitialize("*", scheme="normal_"),
            lambda: model.set_optimizer(lr=7.0),
        ):
            done = await settle(change())
            plan = await settle(model.undo(done.id, dry_run=True))
            assert plan.outcome == "dry_run" and not (await settle(model.operation(done.id))).undone
            undone = await settle(model.undo(done.id))
            assert (undone.kind, undone.undoes) == ("undo", done.id)
            assert (await settle(model.operation(done.id))).undone
            with pytest.raises(FailedPrecondition) as again:
                await settle(model.undo(done.id))
            assert again.value.reason == "NOT_UNDOABLE"
            assert await optimizing(model) == known

    served_to(kind, live.scope, body)
    assert fingerprint(live.module) == before
    assert all(raw(tensor) == raw(state[key]) for key, tensor in net(live).state_dict().items())


@BOTH
def test_conditions_dry_runs_and_request_ids(kind: Any, live: Served) -> None:
    bias = net(live).head.bias
    digest = digest_of(bias)
    before = fingerprint(live.module)

    async def body(model: Any) -> None:
        stale = "sha256:" + "0" * 64
        for attempt in (
            lambda: model.write("head.bias", fill=1, expected=stale),
            lambda: model.freeze("head", expected={"head.bias": stale}),
            lambda: model.unfreeze("head", expected={"head.bias": stale}),
            lambda: model.module("head").reinitialize(expected={"head.bias": stale}),
            lambda: model.load_state_dict(net(live).state_dict(), expected={"head.bias": stale}),
            lambda: model.set_optimizer(lr=1.0, expected={"head.bias": stale}),
            lambda: expecting(model, stale),
        ):
            with pytest.raises(FailedPrecondition) as refusal:
                await settle(attempt())
            assert refusal.value.reason == "STALE_DIGEST"
            assert stale in str(refusal.value) and digest in str(refusal.value)
        for plan in (
            await settle(model.write("head.bias", fill=1, dry_run=True, expected=digest)),
            await settle(model.parameter("head.bias").freeze(dry_run=True)),
            await settle(model.unfreeze("head.bias", dry_run=True)),
            (await settle(model.load_state_dict({"head.bias": bias + 1}, False, dry_run=True))).operation,
        ):
            assert (plan.outcome, plan.paths[0]) == ("dry_run", "head.bias")
        assert fingerprint(live.module) == before and await settle(model.operations()) == []
        first = await settle(model.write("head.bias", fill=1, expected=digest, request_id="a"))
        net(live).head.bias.data.fill_(5)
        assert await settle(model.write("head.bias", fill=1, expected=digest, request_id="a")) == first
        assert (bias == 5).all(), "the same request is carried out once"

    served_to(kind, live.scope, body)


async def expecting(model: Any, digest: str) -> None:
    async with entered(model.transaction()) as t:
        t.write("brief", torch.zeros(3).bfloat16())
        t.write("head.bias", fill=1, expected=digest)


@BOTH
def test_a_transaction_is_all_or_nothing(kind: Any, live: Served) -> None:
    before = fingerprint(live.module)
    large = numpy.random.default_rng(0).normal(size=(600, 1000)).astype("f4")

    async def refused(model: Any) -> None:
        async with entered(model.transaction()) as t:
            t.write("large", large)
            t.freeze("body")
            t.write("head.bias", numpy.zeros(5, "f4"))

    async def body(model: Any) -> None:
        with pytest.raises(InvalidArgument) as refusal:
            await refused(model)
        assert refusal.value.reason == "SHAPE_MISMATCH" and fingerprint(live.module) == before
        async with entered(model.transaction(dry_run=True)) as plan:
            plan.write("large", large)
        assert plan.operation.outcome == "dry_run" and fingerprint(live.module) == before
        async with entered(model.transaction()) as t:
            t.write("large", large)
            t.write("head.bias", fill=0.5)
            t.freeze("body.0")
            t.set_optimizer(lr=0.25)
        assert t.operation.kind == "transaction"
        assert {"large", "head.bias", "body.0.weight", "body.0.bias"} <= set(t.operation.paths)
        assert net(live).large.detach().numpy().tobytes() == large.tobytes()
        assert (net(live).head.bias == 0.5).all() and not net(live).body[0].weight.requires_grad
        assert [group.lr for group in await settle(model.optimizers())] == [0.25]
        await settle(model.undo(t.operation.id))
        assert fingerprint(live.module) == before
        assert [group.lr for group in await settle(model.optimizers())] == [0.1]

    served_to(kind, live.scope, body)
