"""Transactions: what is collected, what is sent, and that nothing is where the block raises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy
import pytest
import torch

from modscope.v1 import model_pb2, model_service_pb2, operation_pb2, operation_service_pb2
from modscope_client import ledger, rpcs
from modscope_client.errors import FailedPrecondition, InvalidArgument
from tests.client.both import CLIENTS, entered, over, settle
from tests.client.fake_server import serving

BOTH = pytest.mark.parametrize("kind", CLIENTS, ids=["sync", "aio"])
WEIGHT = numpy.arange(700_000, dtype="f4")


class Server:
    """Keeps what it is sent, and refuses it where it is told to."""

    def __init__(self) -> None:
        self.streams: list[list[operation_service_pb2.TransactRequest]] = []
        self.refuses = False

    def behaviours(self) -> dict[Any, Any]:
        found = model_service_pb2.GetModelResponse(model=model_pb2.ModelInfo(name="net"))
        return {rpcs.GET_MODEL: lambda request, context: found, ledger.TRANSACT: self._transact}

    def _transact(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        self.streams.append([operation_service_pb2.TransactRequest.FromString(data) for data in requests])
        if self.refuses:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no")
        done = operation_pb2.Operation(id="op-1", kind="transaction", paths=["w", "b"])
        return operation_service_pb2.TransactResponse(operation=done)


def tried(kind: Any, server: Server, body: Any) -> None:
    async def main(client: Any) -> None:
        await body(await settle(client.model()))

    with serving(server.behaviours()) as endpoint:
        over(kind, endpoint, main)


@BOTH
def test_all_of_it_is_one_stream(kind: Any) -> None:
    server = Server()

    async def body(model: Any) -> None:
        async with entered(model.transaction(dry_run=True, request_id="mine", expected={"b": "d"})) as t:
            array = WEIGHT.copy()
            assert t.write("w", array, expected="e") is None
            array[:] = 0
            t.write("b", fill=0.5)
            t.write("c", torch.ones(2), cast=True)
            t.freeze("body", type="Linear", norm_stats=True)
            t.unfreeze("*", expected={"b": "d"})
            t.reinitialize("head", scheme="normal_", std=0.1, seed=3, reset_optimizer=False)
            t.set_optimizer(1, lr=0.5, betas=(0.9, 0.95), base_lr=True)
            t.add_to_optimizer("head.*", 0)
            assert server.streams == []
        assert (t.operation.id, t.operation.paths) == ("op-1", ("w", "b"))

    tried(kind, server, body)
    ((first, *rest),) = server.streams
    assert (first.model, first.options.dry_run, first.options.request_id) == ("net", True, "mine")
    assert dict(first.options.expected) == {"b": "d", "w": "e"} and not first.HasField("change")
    begun = [request.change for request in rest if request.HasField("change")]
    assert [change.WhichOneof("verb") for change in begun] == [
        "write", "write", "write", "freeze", "unfreeze", "reinitialize", "set_optimizer", "add_to_optimizer",
    ]  # fmt: skip
    inner: list[Any] = [getattr(change, change.WhichOneof("verb") or "") for change in begun]
    assert not any(asked.model or asked.HasField("options") for asked in inner)
    assert [len(request.data) for request in rest[:4]] == [1 << 20, 1 << 20, 2_800_000 - (2 << 20), 0]
    assert b"".join(request.data for request in rest[:3]) == WEIGHT.tobytes(), "copied when it was added"
    assert begun[1].write.fill.real == 0.5
    assert begun[2].write.cast and rest[4].data == numpy.ones(2, "f4").tobytes()
    assert begun[3].freeze.norm_stats and begun[3].freeze.type == "Linear"
    assert begun[5].reinitialize.keep_optimizer_state and begun[5].reinitialize.arguments["std"].real == 0.1
    assert begun[6].set_optimizer.group == 1 and begun[6].set_optimizer.base_lr
    betas = begun[6].set_optimizer.hyperparameters["betas"].list_value.values
    assert [value.number_value for value in betas] == [0.9, 0.95]
    assert begun[7].add_to_optimizer.HasField("group") and begun[7].add_to_optimizer.glob == "head.*"


@BOTH
def test_a_block_that_raises_sends_nothing(kind: Any) -> None:
    server = Server()

    async def fail(transaction: Any) -> None:
        async with entered(transaction) as t:
            t.write("w", fill=0)
            raise ZeroDivisionError

    async def body(model: Any) -> None:
        transaction = model.transaction()
        with pytest.raises(ZeroDivisionError):
            await fail(transaction)
        with pytest.raises(RuntimeError, match="not been carried out"):
            assert transaction.operation
        with pytest.raises(RuntimeError, match="inside its `with`"):
            transaction.freeze("w")
        with pytest.raises(RuntimeError, match="entered once"):
            await fail(transaction)
        with pytest.raises(RuntimeError, match="inside its `with`"):
            model.transaction().freeze("w")
        async with entered(model.transaction()):
            pass

    tried(kind, server, body)
    assert server.streams == []


@BOTH
def test_what_is_wrong_is_told_when_it_is_added(kind: Any) -> None:
    server = Server()

    async def body(model: Any) -> None:
        async with entered(model.transaction(expected={"w": "d"})) as t:
            for attempt, field in (
                (lambda: t.write("w", numpy.array(["text"])), ""),
                (lambda: t.write("w"), "fill"),
                (lambda: t.write("w", fill=0, expected="e"), "expected"),
                (lambda: t.write("w", fill=0, expected=7), "expected"),
                (lambda: t.set_optimizer(), "hyperparameters"),
                (lambda: t.set_optimizer(lr={}), "lr"),
                (lambda: t.freeze(7), "glob"),
            ):
                with pytest.raises(InvalidArgument) as refusal:
                    attempt()
                assert refusal.value.details.get("field", "") == field

    tried(kind, server, body)
    assert server.streams == [], "what was refused is no part of it, and nothing else was added"


@BOTH
def test_a_refusal_is_raised_where_the_block_ends(kind: Any) -> None:
    server = Server()
    server.refuses = True

    async def attempt(model: Any) -> None:
        async with entered(model.transaction()) as t:
            t.write("w", fill=0)

    async def body(model: Any) -> None:
        with pytest.raises(FailedPrecondition):
            await attempt(model)

    tried(kind, server, body)
    assert len(server.streams) == 1
