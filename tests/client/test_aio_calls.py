"""Deadlines, cancellation and refusals of the async calls."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest

from modscope.v1 import hook_service_pb2, model_service_pb2, parameter_service_pb2, state_dict_service_pb2
from modscope.wire import Frame
from modscope_client import rpcs
from modscope_client.aio.calls import Calls, at_once
from modscope_client.channel import Endpoint
from modscope_client.errors import (
    DeadlineExceeded,
    InvalidArgument,
    Unavailable,
)
from tests.client.fake_server import Hold, serving


def over(endpoint: Endpoint, body: Callable[[Calls], Awaitable[Any]], timeout: float = 10) -> Any:
    async def main() -> Any:
        calls = Calls(endpoint, timeout)
        try:
            return await body(calls)
        finally:
            await calls.close()

    return asyncio.run(main())


READ = parameter_service_pb2.ReadTensorsRequest()


MESSAGE = parameter_service_pb2.ReadTensorsResponse(step=1, data=b"x")


@pytest.mark.parametrize(("sent", "reason"), [(0, "NO_SAFE_POINT"), (2, "DEADLINE_EXCEEDED")])
def test_a_transfer_that_stands_still_is_ended(sent: int, reason: str) -> None:
    hold = Hold()

    def behaviour(request: bytes, context: Any) -> Iterator[Any]:
        yield from [MESSAGE] * sent
        hold.wait(context)

    async def body(calls: Calls) -> None:
        with pytest.raises(DeadlineExceeded) as ended:
            await calls.download(rpcs.READ_TENSORS, READ, at_once(lambda message: None))
        assert ended.value.reason == reason

    with serving({rpcs.READ_TENSORS: behaviour}) as endpoint:
        over(endpoint, body, 0.3)


def test_deadlines_of_the_others() -> None:
    holds = [Hold() for _ in range(3)]

    def upload(requests: Iterator[bytes], context: Any) -> Any:
        list(requests)
        holds[1].wait(context)

    def watch(request: bytes, context: Any) -> Iterator[Any]:
        holds[2].wait(context)
        yield from ()

    frames = [Frame(state_dict_service_pb2.UploadRequest(), b"x")]
    asked = hook_service_pb2.WatchRequest()

    async def body(calls: Calls) -> None:
        for attempt in (
            lambda: calls.unary(rpcs.GET_MODEL, model_service_pb2.GetModelRequest()),
            lambda: calls.upload(rpcs.UPLOAD, frames, bulk=True),
            lambda: calls.watch(rpcs.WATCH, asked),
        ):
            with pytest.raises(DeadlineExceeded):
                await attempt()

    behaviours: dict[Any, Any] = {
        rpcs.GET_MODEL: lambda request, context: holds[0].wait(context),
        rpcs.UPLOAD: upload,
        rpcs.WATCH: watch,
    }
    with serving(behaviours) as endpoint:
        over(endpoint, body, 0.3)


@pytest.mark.parametrize("rpc", [rpcs.READ_TENSORS, rpcs.UPLOAD])
def test_a_cancelled_task_ends_its_call(rpc: Any) -> None:
    hold = Hold()
    ended = threading.Event()

    def behaviour(request: bytes, context: Any) -> Iterator[Any]:
        context.add_callback(ended.set)
        hold.wait(context)
        yield from ()

    def start(calls: Calls) -> Any:
        if rpc is rpcs.UPLOAD:
            return calls.upload(rpc, [Frame(state_dict_service_pb2.UploadRequest())], bulk=True)
        return calls.download(rpc, READ, at_once(lambda message: None))

    async def body(calls: Calls) -> None:
        task = asyncio.create_task(start(calls))
        await asyncio.to_thread(hold.reached.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(ended.wait, 30)

    with serving(
        {rpc: behaviour if rpc is rpcs.READ_TENSORS else lambda *a: next(behaviour(*a), b"")}
    ) as endpoint:
        over(endpoint, body)


def test_closing_ends_what_another_task_waits_for() -> None:
    hold = Hold()

    def behaviour(request: bytes, context: Any) -> Iterator[Any]:
        hold.wait(context)
        yield from ()

    async def body(calls: Calls) -> None:
        tasks = [
            asyncio.create_task(calls.download(rpcs.READ_TENSORS, READ, at_once(print))),
            asyncio.create_task(calls.listing(rpcs.READ_TENSORS, READ, print)),
        ]
        await asyncio.to_thread(hold.reached.wait, 30)
        await calls.close()
        for task in tasks:
            with pytest.raises(Unavailable, match="is closed"):
                await task

    with serving({rpcs.READ_TENSORS: behaviour}) as endpoint:
        over(endpoint, body)


def test_what_the_source_raises_is_raised() -> None:
    def behaviour(requests: Iterator[bytes], context: Any) -> Any:
        list(requests)
        return state_dict_service_pb2.UploadResponse()

    def source() -> Iterator[Any]:
        yield Frame(state_dict_service_pb2.UploadRequest())
        raise OSError("the disk is gone")

    async def body(calls: Calls) -> None:
        for bulk in (False, True):
            with pytest.raises(OSError, match="the disk"):
                await calls.upload(rpcs.UPLOAD, source(), bulk=bulk)

    with serving({rpcs.UPLOAD: behaviour}) as endpoint:
        over(endpoint, body)


def test_an_early_refusal_ends_the_sending() -> None:
    def refuse(requests: Iterator[bytes], context: Any) -> Any:
        next(requests)
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "wrong keys")

    def refuse_streaming(requests: Iterator[bytes], context: Any) -> Iterator[Any]:
        refuse(requests, context)
        yield b""

    async def body(calls: Calls) -> None:
        frame: Any = Frame(model_service_pb2.ForwardRequest(), b"x" * 100_000)
        for _ in range(20):
            with pytest.raises(InvalidArgument, match="wrong keys"):
                await calls.upload(rpcs.UPLOAD, itertools.repeat(frame), bulk=True)
            with pytest.raises(InvalidArgument, match="wrong keys"):
                await calls.exchange(rpcs.FORWARD, itertools.repeat(frame), lambda message: None)

    with serving({rpcs.UPLOAD: refuse, rpcs.FORWARD: refuse_streaming}) as endpoint:
        over(endpoint, body)


def test_no_server() -> None:
    with serving({}) as endpoint:
        pass

    async def body(calls: Calls) -> None:
        for attempt in (
            lambda: calls.unary(rpcs.GET_MODEL, model_service_pb2.GetModelRequest()),
            lambda: calls.listing(rpcs.LIST_MODULES, model_service_pb2.ListModulesRequest(), print),
            lambda: calls.download(rpcs.READ_TENSORS, READ, at_once(lambda message: None)),
            lambda: calls.upload(rpcs.UPLOAD, [], bulk=False),
            lambda: calls.watch(rpcs.WATCH, hook_service_pb2.WatchRequest()),
        ):
            with pytest.raises(Unavailable, match="no server answers"):
                await attempt()

    over(endpoint, body)
