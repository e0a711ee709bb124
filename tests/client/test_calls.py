"""Calls: deadlines, stalled transfers, errors on either side, closing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from modscope.v1 import hook_service_pb2, model_service_pb2, parameter_service_pb2, state_dict_service_pb2
from modscope.wire import Frame
from modscope_client import rpcs
from modscope_client.calls import Calls
from modscope_client.channel import EVENTS_AHEAD
from modscope_client.errors import DeadlineExceeded, Internal, InvalidArgument, ModscopeError, Unavailable
from tests.client.fake_server import Hold, serving

READ = parameter_service_pb2.ReadTensorsRequest()
MESSAGE = parameter_service_pb2.ReadTensorsResponse(step=1, data=b"x")


@contextmanager
def calls_to(behaviours: dict[Any, Any], timeout: float = 10.0, **options: Any) -> Iterator[Calls]:
    with serving(behaviours) as endpoint:
        calls = Calls(endpoint, timeout, **options)
        try:
            yield calls
        finally:
            calls.close()


def download(calls: Calls) -> list[int]:
    steps: list[int] = []
    calls.download(rpcs.READ_TENSORS, READ, lambda message: steps.append(message.header.step))
    return steps


def test_a_unary_call_has_a_deadline() -> None:
    hold = Hold()
    with calls_to({rpcs.GET_MODEL: lambda request, context: hold.wait(context)}, 0.3) as calls:
        with pytest.raises(DeadlineExceeded, match="in time"):
            calls.unary(rpcs.GET_MODEL, model_service_pb2.GetModelRequest())


def test_a_deadline_of_a_call_that_waits_for_the_model_says_so() -> None:
    behaviours: dict[Any, Any] = {rpcs.FREEZE: late, rpcs.UPLOAD: late}
    with calls_to(behaviours, 0.3) as calls:
        for attempt in (
            lambda: calls.unary(rpcs.FREEZE, parameter_service_pb2.FreezeRequest()),
            lambda: calls.upload(rpcs.UPLOAD, frames(1), bulk=False),
        ):
            with pytest.raises(DeadlineExceeded) as ended:
                attempt()
            assert ended.value.reason == "NO_SAFE_POINT" and "boundary" in str(ended.value)


def late(request: Any, context: grpc.ServicerContext) -> Any:
    Hold().wait(context)


def test_a_listing_has_a_deadline() -> None:
    hold = Hold()

    def behaviour(request: bytes, context: grpc.ServicerContext) -> Iterator[Any]:
        yield model_service_pb2.ListModulesResponse(step=1)
        hold.wait(context)

    with calls_to({rpcs.LIST_MODULES: behaviour}, 0.3) as calls, pytest.raises(DeadlineExceeded):
        calls.listing(rpcs.LIST_MODULES, model_service_pb2.ListModulesRequest(), print)


@pytest.mark.parametrize(("sent", "reason"), [(0, "NO_SAFE_POINT"), (2, "DEADLINE_EXCEEDED")])
def test_a_download_that_stands_still_is_ended(sent: int, reason: str) -> None:
    hold = Hold()

    def behaviour(request: bytes, context: grpc.ServicerContext) -> Iterator[Any]:
        assert context.time_remaining() is None or context.time_remaining() > 1e6
        yield from [MESSAGE] * sent
        hold.wait(context)

    with calls_to({rpcs.READ_TENSORS: behaviour}, 0.3) as calls:
        with pytest.raises(DeadlineExceeded, match=r"0\.3 s") as ended:
            download(calls)
        assert ended.value.reason == reason
        assert hold.reached.is_set()


def test_a_download_that_moves_may_take_longer_than_the_timeout() -> None:
    def behaviour(request: bytes, context: grpc.ServicerContext) -> Iterator[Any]:
        for _ in range(6):
            threading.Event().wait(0.2)
            yield MESSAGE

    with calls_to({rpcs.READ_TENSORS: behaviour}, 1.0) as calls:
        assert download(calls) == [1] * 6


def test_a_reader_that_takes_its_time_is_no_stalled_transfer() -> None:
    with calls_to({rpcs.READ_TENSORS: lambda request, context: iter([MESSAGE] * 2)}, 0.3) as calls:
        took: list[int] = []

        def take(message: Any) -> None:
            threading.Event().wait(0.5)
            took.append(message.header.step)

        calls.download(rpcs.READ_TENSORS, READ, take)
        assert took == [1, 1]


def test_what_the_taker_raises_ends_the_call() -> None:
    ended = threading.Event()

    def behaviour(request: bytes, context: grpc.ServicerContext) -> Iterator[Any]:
        context.add_callback(ended.set)
        while context.is_active():
            yield MESSAGE

    def take(message: Any) -> None:
        raise KeyError("mine")

    with calls_to({rpcs.READ_TENSORS: behaviour}) as calls:
        with pytest.raises(KeyError, match="mine"):
            calls.download(rpcs.READ_TENSORS, READ, take)
        assert ended.wait(10)


def frames(count: int, then: BaseException | None = None) -> Iterator[Frame[Any]]:
    for index in range(count):
        yield Frame(state_dict_service_pb2.UploadRequest(begins=index), b"x" * 1000)
    if then is not None:
        raise then


def count_requests(requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:
    count = sum(1 for _ in requests)
    return state_dict_service_pb2.UploadResponse(missing_keys=[str(count)])


@pytest.mark.parametrize("bulk", [False, True])
def test_an_upload_is_sent_whole(bulk: bool) -> None:
    with calls_to({rpcs.UPLOAD: count_requests}) as calls:
        answer = calls.upload(rpcs.UPLOAD, frames(20), bulk=bulk)
    assert list(answer.missing_keys) == ["20"]


@pytest.mark.parametrize("bulk", [False, True])
def test_what_the_source_raises_is_raised(bulk: bool, caplog: pytest.LogCaptureFixture) -> None:
    with calls_to({rpcs.UPLOAD: count_requests}) as calls, pytest.raises(OSError, match="disk"):
        calls.upload(rpcs.UPLOAD, frames(3, OSError("the disk is gone")), bulk=bulk)
    assert not [record for record in caplog.records if "iterating requests" in record.message]


@pytest.mark.parametrize("rpc", [rpcs.UPLOAD, rpcs.FORWARD])
def test_an_early_refusal_ends_the_sending(rpc: Any) -> None:
    def refuse(requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        next(requests)
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "wrong keys")

    def refuse_streaming(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
        refuse(requests, context)
        yield b""

    sent = 0

    def endless() -> Iterator[Frame[Any]]:
        nonlocal sent
        kind = (
            state_dict_service_pb2.UploadRequest if rpc is rpcs.UPLOAD else model_service_pb2.ForwardRequest
        )
        while True:
            sent += 1
            yield Frame(kind(), b"x" * 100_000)

    def send(calls: Calls) -> None:
        if rpc is rpcs.UPLOAD:
            calls.upload(rpc, endless(), bulk=True)
        else:
            calls.exchange(rpc, endless(), lambda message: None)

    behaviour = refuse if rpc is rpcs.UPLOAD else refuse_streaming
    with calls_to({rpc: behaviour}) as calls, pytest.raises(InvalidArgument, match="wrong keys"):
        send(calls)
    assert sent < 1000


def test_an_upload_that_is_not_answered_is_ended() -> None:
    hold = Hold()

    def behaviour(requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        list(requests)
        hold.wait(context)

    with calls_to({rpcs.UPLOAD: behaviour}, 0.3) as calls:
        with pytest.raises(DeadlineExceeded) as ended:
            calls.upload(rpcs.UPLOAD, frames(3), bulk=True)
        assert ended.value.reason == "NO_SAFE_POINT"


def test_a_server_that_cancels_is_no_server() -> None:
    def behaviour(requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.CANCELLED, "no more")

    with calls_to({rpcs.UPLOAD: behaviour}) as calls, pytest.raises(Unavailable):
        calls.upload(rpcs.UPLOAD, frames(1), bulk=True)


def test_an_answer_that_is_no_message_is_an_internal_error() -> None:
    with calls_to({rpcs.GET_MODEL: lambda request, context: b"\xff\xff"}) as calls:
        with pytest.raises(Internal):
            calls.unary(rpcs.GET_MODEL, model_service_pb2.GetModelRequest())


def test_a_watch_waits_for_its_first_message_alone() -> None:
    hold = Hold()
    created = hook_service_pb2.WatchResponse(created=hook_service_pb2.WatchCreated(watch_id="1"))

    def behaviour(request: bytes, context: grpc.ServicerContext) -> Iterator[Any]:
        yield created
        threading.Event().wait(0.6)
        yield hook_service_pb2.WatchResponse(heartbeat=hook_service_pb2.WatchHeartbeat(step=3))

    with calls_to({rpcs.WATCH: behaviour}, 0.3, ahead=EVENTS_AHEAD) as calls:
        stream = calls.watch(rpcs.WATCH, hook_service_pb2.WatchRequest())
        assert stream.first.header == created
        second = stream.read()
        assert second is not None and second.header.heartbeat.step == 3
        assert stream.read() is None

    def silent(request: bytes, context: grpc.ServicerContext) -> Iterator[Any]:
        hold.wait(context)
        yield from ()

    with calls_to({rpcs.WATCH: silent}, 0.3, ahead=EVENTS_AHEAD) as calls:
        with pytest.raises(DeadlineExceeded) as ended:
            calls.watch(rpcs.WATCH, hook_service_pb2.WatchRequest())
        assert ended.value.reason == "NO_SAFE_POINT"


def test_no_server() -> None:
    with serving({}) as endpoint:
        pass
    calls = Calls(endpoint, 5)
    attempts: list[Callable[[], Any]] = [
        lambda: calls.unary(rpcs.GET_MODEL, model_service_pb2.GetModelRequest()),
        lambda: calls.listing(rpcs.LIST_MODULES, model_service_pb2.ListModulesRequest(), print),
        lambda: download(calls),
        lambda: calls.upload(rpcs.UPLOAD, frames(2), bulk=False),
        lambda: calls.watch(rpcs.WATCH, hook_service_pb2.WatchRequest()),
    ]
    for attempt in attempts:
        with pytest.raises(Unavailable, match="no server answers at unix:") as refusal:
            attempt()
        assert refusal.value.reason == "UNREACHABLE"
    calls.close()


def test_a_closed_client_says_so_and_closing_is_idempotent() -> None:
    with calls_to({}) as calls:
        calls.close()
        calls.close()
        attempts: list[Callable[[], Any]] = [
            lambda: calls.unary(rpcs.GET_MODEL, model_service_pb2.GetModelRequest()),
            lambda: calls.listing(rpcs.LIST_MODULES, model_service_pb2.ListModulesRequest(), print),
            lambda: download(calls),
            lambda: calls.upload(rpcs.UPLOAD, frames(2), bulk=False),
        ]
        for attempt in attempts:
            with pytest.raises(Unavailable, match="is closed"):
                attempt()


def test_closing_ends_what_another_thread_waits_for() -> None:
    hold = Hold()
    raised: list[BaseException] = []

    def behaviour(request: bytes, context: grpc.ServicerContext) -> Iterator[Any]:
        hold.wait(context)
        yield from ()

    def work() -> None:
        try:
            download(calls)
        except ModscopeError as error:
            raised.append(error)

    with calls_to({rpcs.READ_TENSORS: behaviour}) as calls:
        worker = threading.Thread(target=work)
        worker.start()
        assert hold.reached.wait(10)
        calls.close()
        worker.join(10)
    assert [type(error) for error in raised] == [Unavailable]


def test_many_threads_share_a_client() -> None:
    def behaviour(request: bytes, context: grpc.ServicerContext) -> Any:
        return model_service_pb2.GetModelResponse.FromString(b"")

    with calls_to({rpcs.GET_MODEL: behaviour}) as calls:
        done: list[int] = []

        def work() -> None:
            for _ in range(20):
                calls.unary(rpcs.GET_MODEL, model_service_pb2.GetModelRequest())
            done.append(1)

        workers = [threading.Thread(target=work) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        assert len(done) == 8
